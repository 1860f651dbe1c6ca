"""cropl score BENCHMARK: an existing file of answers by the official rules, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.benchmarks.names import BENCHMARKS, FILES, benchmark, check_files
from cropl.commands.arguments import Parser
from cropl.commands.printing import table_console

if TYPE_CHECKING:
    from cropl.benchmarks.scoring import Score

DESCRIPTION = """\
Scores a file of answers exactly as the benchmark's official script does, with 95 % bootstrap intervals. Every question
needs one answer: missing, double and further ones are an error that names them."""
EPILOG = f"""\
ANSWERS is LLaVA's JSONL (question_id, text, prompt), what `cropl answer` wrote, or a submission: a JSON list of
questionId and prediction (GQA), or of question_id and answer (VQA, TextVQA); MME's folder of TASK.txt, POPE's files of
question and answer in the order of the labels, LLaVA's result of ScienceQA. --submission writes each of these forms;
VQA's server wants all questions of a split: give its file of questions as the annotations.

annotation files:
{chr(10).join(f"  {name:<10} {' '.join(files)}" for name, files in FILES.items())}

examples:
  cropl score gqa --predictions answers.jsonl --annotations testdev_balanced_questions.json
  cropl score pope --predictions ilp.jsonl --against dense.jsonl --annotations pope/coco_pope_*.json --out pope.json"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("score", DESCRIPTION, EPILOG)
    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"{', '.join(BENCHMARKS)}, or a class path")
    parser.add_argument("--predictions", required=True, metavar="ANSWERS", help="file of answers")
    parser.add_argument("--annotations", required=True, nargs="+", metavar="FILE", help="official annotation files")
    parser.add_argument("--against", metavar="ANSWERS", help="other answers, such as dense ones: paired differences")
    parser.add_argument(
        "--submission", metavar="PATH", help="write the answers as official scripts or servers read them"
    )
    parser.add_argument("--out", metavar="JSON", help="write the scores with all their digits")
    given = parser.read(args)
    if given is None:
        return 0
    scorer = benchmark(given.benchmark)
    check_files(given.benchmark, given.annotations, "--annotations")

    from cropl.benchmarks.answers import read_answers
    from cropl.benchmarks.base import judged, read_truths
    from cropl.benchmarks.scoring import compare, tally
    from cropl.evaluation.files import write_json

    truths = read_truths(scorer, [Path(file) for file in given.annotations])
    answers = read_answers(Path(given.predictions), scorer, truths)
    ours = judged(scorer, truths, answers)
    others = None if given.against is None else read_answers(Path(given.against), scorer, truths)
    if given.submission is not None:
        scorer.write_submission(Path(given.submission), truths, answers)
        if not any(truth.counted for truth in truths):
            print(f"{given.submission}: {len(answers):,} answers to {len(truths):,} questions; a server scores them")
            return 0
    found = tally(scorer, truths, ours)
    differences = {} if others is None else compare(scorer, truths, ours, judged(scorer, truths, others))
    _print(given.benchmark, scorer.primary, found, differences)
    if given.out is not None:
        write_json(Path(given.out), _record(given, scorer.primary, found, differences))
    return 0


def _record(given: Any, primary: str, found: Score, differences: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": given.benchmark,
        "predictions": str(given.predictions),
        "against": given.against,
        "n": found.n,
        "primary": primary,
        "scores": dict(found.values),
        "ci95": {name: list(interval) for name, interval in found.intervals.items()},
        "differences": {name: {"mean": one[0], "ci95": list(one[1:])} for name, one in differences.items()},
    }


def _print(name: str, primary: str, found: Score, differences: Mapping[str, tuple[float, float, float]]) -> None:
    from rich.table import Table

    table = Table(title=f"{name}, {found.n:,} questions", title_justify="left")
    table.add_column("score")
    for head in ("", "95 %", *(("against", "95 %") if differences else ())):
        table.add_column(head, justify="right")
    for score, value in found.values.items():
        low, high = found.intervals[score]
        cells = [score, f"{value:.2f}", f"{low:.2f}..{high:.2f}"]
        if differences:
            mean, least, most = differences[score]
            cells += [f"{mean:+.2f}", f"{least:+.2f}..{most:+.2f}"]
        table.add_row(*cells, style="bold" if score == primary else "")
    table_console().print(table)
