"""cropl report RUN [RUN ...] -o DIR: the tables and plots of stored runs of `cropl evaluate`.

Writes, for each run, its rows (NAME.json), its tables in the shapes of the paper's (NAME.md) and its plots of accuracy
against tokens, FLOPs and seconds, of the language model alone and in total (NAME_tokens.svg, ...).
Nothing is answered again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl.commands.arguments import Parser, check_writable
from cropl.errors import UsageError
from cropl.evaluation.row_check import check_results

EPILOG = """RUN is a folder that `cropl evaluate` wrote, or its results.json. NAME is the name of the folder.

  cropl report runs/testbed/study_full -o docs/results/testbed"""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("report", __doc__, EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or its results.json")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="where tables and plots go")
    given = parser.read(args)
    if given is None:
        return 0
    out = Path(given.out)
    check_writable(out)
    found = {path: _read(path) for path in (_results(run) for run in given.runs)}
    names = [path.parent.name for path in found]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two runs are called {name!r}: give each its own folder with -o, one at a time")

    from cropl.evaluation.files import write_atomically, write_json
    from cropl.evaluation.report import AXES, plot
    from cropl.evaluation.shapes import page

    for path, results in found.items():
        name, rows = path.parent.name, results["rows"]
        plots = {against: plot(rows, against, frontier=True) for against in AXES}
        drawn = {against: svg for against, svg in plots.items() if svg}
        for against, svg in drawn.items():
            write_atomically(out / f"{name}_{against.replace(' ', '_')}.svg", svg)
        write_json(out / f"{name}.json", results)
        write_atomically(out / f"{name}.md", page(results, name, list(drawn)))
        print(f"{out / name}.md: {len(rows)} rows, {len(drawn)} plots")
    return 0


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
    check_results(results, str(path))
    checked: Mapping[str, Any] = results
    return checked
