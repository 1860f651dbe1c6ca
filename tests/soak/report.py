"""The page of a soak: `python -m tests.soak.report docs/results/soak.json` writes soak.md and its plot beside it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

from tests.soak.fit import WARM_UP, Growth, growth

ROWS = {
    "main_mb": ("memory of the process that trains and answers", "MB"),
    "localizer_mb": ("of the process that localizes", "MB"),
    "server_mb": ("of the server that workers are forked from", "MB"),
    "worker_mb": ("of the largest worker", "MB"),
    "main_fds": ("open files of the first process", ""),
    "children_fds": ("open files of all others", ""),
    "main_threads": ("threads of the first process", ""),
    "children": ("other processes", ""),
    "shared": ("files in shared memory", ""),
}

PAGE = """# A soak: what is held over time

```bash
{command}
python -m tests.soak.report docs/results/soak.json
```

One process, for {minutes} minutes, by turns: an epoch of training the tiny localizer on shards, with two workers that
are new in each epoch ({start_method}), and a checkpoint after every fifth; then 24 questions to the pipeline of
`cropl answer`, whose localizer is a process of its own and is started anew every ten epochs. In all {epochs:,} epochs,
{steps:,} optimizer steps, {questions:,} questions ({without_region_or_answer} without a region or an answer) and
{pipelines} pipelines.

{hardware}, {cores} cores, shared with other work; commit `{at}`; {of}.

| | mean | slope, 95 % | over the run | | slope of the second half | over it | |
|---|---|---|---|---|---|---|---|
{rows}

A sample every {interval:g} seconds; the first fifth is warm-up and left out. Slopes are those of a line through twelve
blocks: through their means for memory, through the most of each for what is counted, as a worker's or a pipeline's
files come and go. *Flat*: within 2 % over the run; *grows* or *falls*: more than that, and the slope's interval leaves
out 0. What is still settling grows over the run and not in its second half; a leak grows in both alike. Memory is
resident memory; shared pages count for each process. A new process holds less than one that has worked for a while, so
the localizer's and the workers' figures scatter. The intervals bound what a leak could be; twenty minutes are not days.

![Memory, open files and threads over the run](soak.svg)
"""


def row(name: str, *found: Growth) -> str:
    """A line of the table: over the run, and in its second half."""
    what, unit = ROWS[name]
    unit = f" {unit}" if unit else ""
    cells = [what, f"{found[0].mean:.1f}{unit}"]
    for each in found:
        sure = abs(each.per_hour) > each.interval
        told = "flat" if each.flat else "not sure" if not sure else "grows" if each.grows else "falls"
        cells += [f"{each.per_hour:+.1f} ± {each.interval:.1f}{unit} an hour", f"{100 * each.change:+.1f} %", told]
    return f"| {' | '.join(cells)} |"


def page(made: dict[str, Any]) -> str:
    """The page of what `tests.soak.run` wrote."""
    found = {}
    for name in ROWS:
        if sum(name in each for each in made["samples"]) >= 16:
            found[name] = [growth(made["samples"], name, each, not ROWS[name][1]) for each in (WARM_UP, 0.5)]
    told = {
        **made,
        "minutes": f"{made['samples'][-1]['seconds'] / 60:.0f}",
        "of": ", ".join(f"{name} {version}" for name, version in made["versions"].items()),
        "at": made["commit"][:12] + made["commit"][40:],  # and whether the tree was edited
        "rows": "\n".join(row(name, *each) for name, each in found.items()),
    }
    return PAGE.format_map(told)


def plot(made: dict[str, Any], path: Path) -> None:
    """Memory above, counts below."""
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "soak"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1, sharex=True, figsize=(7.5, 4.6), constrained_layout=True)
    for name, (what, unit) in ROWS.items():
        kept = [(each["seconds"] / 60, each[name]) for each in made["samples"] if name in each]
        if kept:
            axes[0 if unit else 1].plot(*zip(*kept, strict=True), label=what, linewidth=1)
    for axis, label in zip(axes, ("MB", "number"), strict=True):
        axis.set_ylabel(label)
        axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # room for the legend
        axis.axvspan(0, made["samples"][-1]["seconds"] / 300, color="0.93", zorder=0)
        axis.legend(fontsize=6.5, ncols=2, frameon=False, loc="upper right")
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xlabel("minutes; grey: warm-up")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    """Write the page and the plot beside the samples."""
    path = Path(sys.argv[1])
    made = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(page(made), encoding="utf-8")
    plot(made, path.with_suffix(".svg"))
    print(f"written: {path.with_suffix('.md')}, {path.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
