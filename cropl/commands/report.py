"""cropl report RUN [RUN ...] -o DIR: the tables and plots of stored runs of `cropl evaluate`.

Of a study: its rows (NAME.json), its tables in the shapes of the paper's (NAME.md) and its plots of accuracy
against tokens, FLOPs and seconds, of the language model alone and in total (NAME_tokens.svg, ...).
Of a suite of benchmarks: its tables with the paper's own figures beside ours, as Markdown, LaTeX, CSV and one HTML page
(NAME.html) with plots (also NAME_scores.svg, ...) and a gallery. Nothing is answered again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl.commands.arguments import Parser, check_writable
from cropl.errors import UsageError
from cropl.evaluation.row_check import check_results

EPILOG = """RUN is a folder that `cropl evaluate` wrote, or its results.json. NAME is the name of the folder.
FILE holds {arm: score}, in the benchmark's own unit, as its server gave them; arms are called as in results.json.

  cropl report runs/testbed/study_full -o docs/results/testbed
  cropl report runs/evaluate/llava_1_5_7b/table2 -o report --external vqav2=server.json"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("report", __doc__, EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its results.json")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where tables and plots go")
    parser.add_argument("--external", action="append", default=[], metavar="BENCHMARK=FILE",
                        help="scores of a suite that the benchmark's server gave; may be given again")  # fmt: skip
    given = parser.read(args)
    if given is None:
        return 0
    out = Path(given.out)
    found = {path: _read(path) for path in (_results(run) for run in given.runs)}
    names = [path.parent.name for path in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two runs are called {name!r}: give each its own folder with -o, one at a time")
    if given.external:
        if len(found) > 1:
            raise UsageError("--external: the arms of which run? Give one RUN with it")
        found = {path: _filled(path, results, given.external) for path, results in found.items()}
    check_writable(out)
    for path, results in found.items():
        name = path.parent.name
        print(f"{out / name}.md: {_write(results, path.parent, name, out)}")
    return 0


def _write(results: Mapping[str, Any], folder: Path, name: str, out: Path) -> str:
    """All files of one run; what was made, in a few words."""
    from cropl.evaluation.reporting.suite_check import is_suite

    if is_suite(results):
        from cropl.evaluation.reporting import page as suite_page

        return suite_page.write(results, folder, name, out)

    from cropl.evaluation.files import write_atomically, write_json
    from cropl.evaluation.report import AXES, plot
    from cropl.evaluation.shapes import page

    rows = results["rows"]
    plots = {against: plot(rows, against, frontier=True) for against in AXES}
    drawn = {against: svg for against, svg in plots.items() if svg}
    for against, svg in drawn.items():
        write_atomically(out / f"{name}_{against.replace(' ', '_')}.svg", svg)
    write_json(out / f"{name}.json", results)
    write_atomically(out / f"{name}.md", page(results, name, list(drawn)))
    return f"{len(rows)} rows, {len(drawn)} plots"


def _filled(path: Path, results: Mapping[str, Any], external: Sequence[str]) -> Mapping[str, Any]:
    from cropl.evaluation.reporting.external import read_scores, with_scores
    from cropl.evaluation.reporting.suite_check import is_suite

    if not is_suite(results):
        raise UsageError(f"--external: {path} is a single study; servers' scores are for suites of benchmarks")
    for given in external:
        benchmark, equals, file = given.partition("=")
        if not benchmark or not equals or not file:
            raise UsageError(f"--external {given!r} must be BENCHMARK=FILE, such as vqav2=server.json")
        results = with_scores(results, benchmark, read_scores(Path(file)))
    return results


def _results(run: str) -> Path:
    path = Path(run)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise UsageError(f"{run}: no results.json there; give a folder that `cropl evaluate` wrote")
    return path.resolve()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); run `cropl evaluate` again") from None
    from cropl.evaluation.reporting.suite_check import check_suite, is_suite

    (check_suite if is_suite(results) else check_results)(results, str(path))
    checked: Mapping[str, Any] = results
    return checked
