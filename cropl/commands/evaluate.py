"""cropl evaluate -c RECIPE [-c OVERLAY ...] [--key value ...]

Runs a study: one model, a list of methods, region sources and budgets, on one set of questions or, as a suite, on
several benchmarks. Writes results.json, predictions.jsonl and report.html (of a suite: in a folder for each benchmark,
and results.json of them all) into --out (default runs/<recipe name>/), and prints the table.

  --processes N    share the questions among N processes on this machine, one per GPU where there are several
  --part I/N       be one of N processes that somebody else starts, on any machine that sees --out; when all are done,
                   run once more without it to get the results
  --fresh          throw away what an interrupted run has found; without it, that is not answered again

  cropl evaluate -c testbed/study
  cropl evaluate -c testbed/study --vars.budgets "[64]" --limit 200 --out runs/small
  cropl evaluate -c my_study.yaml --model ./llava-1.5-7b-hf --device cuda
  cropl evaluate -c evaluate/llava_1_5_7b/table2 --vars.data /datasets --processes 8
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.commands.arguments import check_writable, integer
from cropl.errors import INTERRUPTED, UsageError
from cropl.evaluation.part import Part

if TYPE_CHECKING:
    from cropl.evaluation.outcome import Outcome
    from cropl.evaluation.suite import Suite

WHOLE = Part()


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if not args or "-h" in args or "--help" in args:
        print(__doc__)
        return 0 if args else 2
    recipes, overrides = recipe.parse_flags(args)
    if not recipes:
        raise UsageError("no recipe given: cropl evaluate -c testbed/study")
    processes = integer("processes", str(overrides.pop("processes", 1)), least=1)
    part = Part.parse(overrides.pop("part")) if "part" in overrides else WHOLE
    fresh = overrides.pop("fresh", False)
    if fresh not in (True, False):
        raise UsageError(f"--fresh {fresh}: takes no value")
    if not part.whole and (processes > 1 or fresh):
        raise UsageError("--part goes with neither --processes nor --fresh: a part is one process, and not the first")
    if not part.whole:
        from cropl.commands.evaluate_processes import end_with_parent

        end_with_parent()
    try:
        evaluate(recipes, overrides, part=part, processes=processes, fresh=fresh)
    except KeyboardInterrupt:
        print("cropl: interrupted; the same command continues, and answers nothing again", file=sys.stderr)
        return INTERRUPTED
    return 0


def evaluate(
    recipes: Sequence[str],
    overrides: dict[str, Any] | None = None,
    quiet: bool = False,
    part: Part = WHOLE,
    processes: int = 1,
    fresh: bool = False,
) -> dict[str, Outcome]:
    """Load, run and save a study or a suite, and print its tables.

    Args:
        recipes: names or paths, merged from left to right.
        overrides: dotted keys and values, merged last.
        quiet: print nothing but progress.
        part: which share of the questions to answer; of a part nothing is saved but its answers.
        processes: how many processes share the questions.
        fresh: begin anew where an interrupted run could be continued.

    Returns:
        The outcome of every benchmark by its name; of a part none.
    """
    from cropl.evaluation.study import Study
    from cropl.evaluation.suite import Suite

    for name in recipes:
        recipe.expect("arms", name)
    config = recipe.load(recipes, overrides)
    label = recipe.label(recipes)
    is_suite = "benchmarks" in config
    if is_suite:
        suite = Suite.from_config(config)
    else:
        study = Study.from_config(config)
        suite = Suite((study,), (None,), out=study.out)
    out = Path(suite.out or f"runs/{label.removesuffix('.yaml').replace('+', '-')}")
    check_writable(out)

    from cropl.commands.evaluate_run import Task, load_tasks, run_tasks
    from cropl.evaluation.alone import working_in
    from cropl.evaluation.journal import forget

    tasks: list[Task] = load_tasks(suite, out, apart=is_suite)
    if fresh:
        with working_in(out, shared=False):
            forget([task.out for task in tasks])
    if processes > 1:
        from cropl.commands.evaluate_processes import run_parts

        run_parts(recipes, {**(overrides or {}), "out": str(out)}, processes, suite.studies[0].device)
    with working_in(out, shared=not part.whole):
        outcomes = run_tasks(tasks, label, part)
        if not part.whole:
            print(f"part {part.index} of {part.of} is done; run without --part when all are")
            return {}
        if is_suite:
            _save_suite(suite, label, outcomes, out)
        forget([task.out for task in tasks])
    if not quiet:
        _show(outcomes, out, is_suite)
    return outcomes


def _save_suite(suite: Suite, label: str, outcomes: Mapping[str, Outcome], out: Path) -> None:
    from cropl.evaluation.files import write_json
    from cropl.evaluation.suite import together

    found = {name: outcome.results for name, outcome in outcomes.items()}
    write_json(out / "results.json", together(suite, label, found))


def _show(outcomes: Mapping[str, Outcome], out: Path, is_suite: bool) -> None:
    from cropl.commands.evaluate_show import show

    for name, outcome in outcomes.items():
        show(outcome, (out / name if is_suite else out) / "report.html")
    if is_suite:
        print(f"\ntables over all benchmarks: cropl report {out} -o DIR")
