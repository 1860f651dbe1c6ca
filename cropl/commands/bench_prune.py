"""cropl bench prune [-c RECIPE] [--key value ...]

Measures pruned prefills and answers against dense ones, taking turns, on models of published shapes with random
weights: speed-up, its share of what FLOPs allow, KV bytes and peak memory, for the language model alone, with the
vision tower, and with the localizer in front. The keys are those of the recipe bench/prune (`cropl show bench/prune`).
`--compiled [ilp,dense]` also measures methods compiled at static shapes, against dense compiled alike and eager dense.

  cropl bench prune                                   # LLaVA-1.5 scaled to a CPU; about 45 minutes
  cropl bench prune --methods [ilp] --budgets [64] --pairs 5 --new-tokens [] --ragged [] --growth [] --overhead 0
  cropl bench prune -c bench/prune_gpu --out runs/prune.json

`--out FILE.json` also writes the tables (FILE.md) and a plot of each shape. It is a measurement, not a test: the exit
code is 0 however slow it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropl.commands.measurement import configured, result_file, write
from cropl.commands.printing import counted, table_console
from cropl.errors import UsageError, nearest

DTYPES = ("bfloat16", "float16", "float32")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    config = configured("prune", args, ("pairs", "threads"), optional="threads")
    for key in ("answer_pairs", "overhead"):
        if type(config[key]) is not int or config[key] < 0:
            raise UsageError(f"bench prune: {key} must be an integer of at least 0, got {config[key]!r}")
    out = result_file("prune", config)
    if out is not None and out.suffix != ".json":
        raise UsageError(f"bench prune: out {out} must end with .json; tables and plots are written beside it")
    made = bench(config)
    write(made, out)  # before anything that may fail: a pipe that is closed, a plot
    show(made)
    if out is not None:
        for path in report(made, out):
            print(f"written: {path}")
    return 0


def bench(config: dict[str, Any]) -> dict[str, Any]:
    """Measure as the recipe says: the machine's and the software's facts, and a row for each arm of each shape."""
    import torch

    from cropl.bench.prune.overhead import overhead
    from cropl.bench.prune.plan import ANSWERED, Plan
    from cropl.bench.prune.run import measure
    from cropl.bench.prune.shapes import shape_of
    from cropl.bench.prune.time import Clock
    from cropl.data.recipe import cores
    from cropl.evaluation import facts
    from cropl.evaluation.progress import Stages
    from cropl.models.vlm import family

    device = torch.device(_one_of("device", config["device"] or _best_device(), ("cuda", "cpu")))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("bench prune: device cuda, but torch finds no GPU here: leave it out, or give cpu")
    on_gpu = device.type == "cuda"
    dtype = _one_of("dtype", config["dtype"] or ("bfloat16" if on_gpu else "float32"), DTYPES)
    threads = config["threads"] or (cores() if on_gpu else 1)
    plan = Plan(
        methods=_names(config, "methods", some=True),
        budgets=None if config["budgets"] is None else _some(config, "budgets"),
        batches=_counts(config, "batch", some=True),
        new_tokens=_counts(config, "new_tokens"),
        pairs=config["pairs"],
        answer_pairs=config["answer_pairs"],
        ragged=_counts(config, "ragged"),
        growth=_listed(config, "growth"),
        compiled=_names(config, "compiled"),
        answer_budgets=_one_of("answer_budgets", config["answer_budgets"], tuple(ANSWERED)),
    )
    shapes = [shape_of(str(name)) for name in _some(config, "shapes")]
    for shape in shapes:  # every slip is found before the first measurement
        if not family(shape.model_config().model_type).prunable:
            raise UsageError(f"bench prune: {shape.name} cannot be pruned; leave it out of shapes")
    steps = [plan.steps(shape) for shape in shapes]
    rows: list[dict[str, Any]] = []
    load = [os.getloadavg()[0]]
    with Stages() as stages:
        for shape, count in zip(shapes, steps, strict=True):
            stages.stage(f"measuring {shape.name}", count)
            rows += measure(shape.name, plan, device, getattr(torch, dtype), threads, stages.advance)
    return {
        "hardware": facts.hardware(device),
        "threads": threads,
        "dtype": dtype,
        "attention": "sdpa",
        "seconds": Clock(device, threads).name,
        "memory": "allocated on the GPU" if on_gpu else "tensors that torch's operations return",
        "load": [*load, os.getloadavg()[0]],
        "versions": facts.versions(),
        "commit": facts.commit(),
        "pairs": plan.pairs,
        "answer_pairs": plan.answer_pairs,
        "answer_budgets": plan.answer_budgets,
        "shapes": {shape.name: shape.about for shape in shapes},
        "overhead": overhead(config["overhead"]) if config["overhead"] else [],
        "rows": rows,
    }


def show(made: dict[str, Any]) -> None:
    """Print the tables of each shape, and what they say."""
    from rich.table import Column, Table

    from cropl.bench.prune.words import sentences

    console = table_console(170)
    console.print(_facts(made), highlight=False, soft_wrap=True)
    for title, (head, cells), rows in _tables(made):
        table = Table(head[0], *(Column(name, justify="right") for name in head[1:]), title=title, title_justify="left")
        for line in cells:
            table.add_row(*line)
        console.print(table)
        for sentence in sentences(rows):
            console.print(sentence, highlight=False, soft_wrap=True)


def report(made: dict[str, Any], out: Path) -> list[Path]:
    """Write the tables as Markdown and the plots beside the rows; returns the files."""
    from cropl.bench.prune.plot import draw
    from cropl.bench.prune.table import markdown
    from cropl.bench.prune.words import sentences
    from cropl.evaluation.plot import COLORS

    plots = {}
    for name in made["shapes"]:
        rows = [row for row in made["rows"] if row["shape"] == name]
        if any("failed" not in row for row in rows):
            path = out.with_name(f"{out.stem}.png" if len(made["shapes"]) == 1 else f"{out.stem}_{name}.png")
            title = f"{made['shapes'][name].partition(':')[0]}, {made['dtype']}, {made['hardware']}"
            plots[name] = draw(rows, path, COLORS, title)
    parts = [f"# Pruned against dense: `cropl bench prune`\n\n{_facts(made)}"]
    for title, table, rows in _tables(made):
        said = "".join(f"\n- {sentence}" for sentence in sentences(rows))
        parts.append(f"## {title[0].upper()}{title[1:]}\n\n{markdown(table)}" + (f"\n{said}" if said else ""))
        if rows and rows[0]["shape"] in plots:
            parts.append(f"![measured and ideal speed-up]({plots[rows[0]['shape']].name})")
    text = out.with_suffix(".md")
    text.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [text, *plots.values()]


def _tables(made: dict[str, Any]) -> list[tuple[str, tuple[list[str], list[list[str]]], list[dict[str, Any]]]]:
    """Titles, tables, and the rows whose sentences go below them."""
    from cropl.bench.prune.table import (
        answer_table,
        compiled_table,
        memory_table,
        overhead_table,
        prefill_table,
        step_table,
    )

    found = []
    for name, about in made["shapes"].items():
        rows = [row for row in made["rows"] if row["shape"] == name]
        found.append((f"{name}, prefill ({about})", prefill_table(rows), rows))
        found.append((f"{name}, memory", memory_table(rows), []))
        if any("answers" in row for row in rows):
            found.append((f"{name}, answers", answer_table(rows), []))
            found.append((f"{name}, decoding", step_table(rows), []))
        if any(row["compiled"] and "failed" not in row for row in rows):
            found.append((f"{name}, compiled", compiled_table(rows), []))
    if made["overhead"]:
        found.append(("Python of a patch, by layer of a model that computes next to nothing",
                      overhead_table(made["overhead"]), []))  # fmt: skip
    return found


def _facts(made: dict[str, Any]) -> str:
    some = next((row for row in made["rows"] if row.get("localizer")), None)
    seen = f"; localizer {some['localizer']['shape']} at {some['localizer']['pixels']:,} pixels" if some else ""
    return (
        f"{made['hardware']}, {counted(made['threads'], 'thread')}, {made['dtype']}, {made['attention']}; seconds: "
        f"{made['seconds']}, medians of {made['pairs']} pairs ({made['answer_pairs']} of answers); memory: "
        f"{made['memory']}; load {made['load'][0]:.1f} to {made['load'][1]:.1f}{seen}"
    )


def _listed(config: dict[str, Any], key: str) -> list[Any]:
    given = config[key]
    return [] if given is None else given if isinstance(given, list) else [given]


def _some(config: dict[str, Any], key: str) -> list[Any]:
    given = _listed(config, key)
    if not given:
        raise UsageError(f"bench prune: {key} is empty: nothing would be measured, give at least one")
    return given


def _counts(config: dict[str, Any], key: str, some: bool = False) -> list[int]:
    given = _some(config, key) if some else _listed(config, key)
    if any(type(number) is not int or number < 1 for number in given):
        raise UsageError(f"bench prune: {key} must be integers of at least 1, got {given!r}")
    return given


def _names(config: dict[str, Any], key: str, some: bool = False) -> list[str]:
    given = _some(config, key) if some else _listed(config, key)
    if not all(isinstance(name, str) for name in given):
        raise UsageError(f"bench prune: {key} must be names of methods, got {given!r}")
    return given


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _one_of(key: str, given: Any, known: tuple[str, ...]) -> str:
    if given not in known:
        raise UsageError(f"bench prune: unknown {key} {given!r}{nearest(str(given), list(known), 'choices')}")
    return str(given)
