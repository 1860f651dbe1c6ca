"""cropl bench data [-c RECIPE] [--key value ...]

Measures how fast samples flow on this machine: reading, decoding, the image processor, collating, the whole stream in
one process and with workers, and a plain webdataset pipeline that does the same work. Prints CPU time and rates, what
bounds them, and how they compare. The keys are those of the recipe bench/data (`cropl show bench/data`).

  cropl bench data                                    # photographs and the testbed's image processor
  cropl bench data --processor llava-1.5              # or qwen2-vl: as published, no checkpoint is needed
  cropl bench data --dir shards/crop-mix --model ./llava-1.5-7b-hf --out runs/data.json

It is a measurement, not a test: the exit code is 0 however slow it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cropl.commands.measurement import configured, result_file, write
from cropl.commands.printing import counted, table_console

WANTED = 0.95
"""Share of what the stages, or the cores, allow: below it the stream itself is in the way."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    config = configured("data", args, ("samples", "batch", "rounds", "workers", "worker_batches"), optional="workers")
    out = result_file("data", config)
    made = bench(config)
    show(made)
    write(made, out)
    return 0


def bench(config: dict[str, Any]) -> dict[str, Any]:
    """Measure as the recipe says: its keys, the machine's and the software's facts, and the figures."""
    from tempfile import TemporaryDirectory

    import torch

    from cropl.bench.data import TOGETHER, DataBench, measure
    from cropl.bench.inputs import checkpoint_processor, published_processor, write_photographs
    from cropl.data.recipe import cores
    from cropl.evaluation import facts
    from cropl.evaluation.progress import Stages

    workers = cores() if config["workers"] is None else config["workers"]
    name, model = config["processor"], str(config["model"])
    prepare = checkpoint_processor(model) if name is None else published_processor(str(name))
    with ExitStack() as stack:
        stages = stack.enter_context(Stages())
        folder = config["dir"]
        if folder is None:
            stages.stage("making photographs")
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="cropl-bench-")))
            write_photographs(folder, config["samples"], max(1, config["samples"] // max(8, workers)))
        one = DataBench(folder, prepare, config["samples"], config["batch"], workers, config["worker_batches"])
        stages.stage("measuring", config["rounds"] * (1 + len(TOGETHER)))
        measured = measure(one, config["rounds"], stages.advance)
    return {
        "hardware": facts.hardware(torch.device("cpu")),
        "cores": cores(),
        "versions": facts.versions(),
        "commit": facts.commit(),
        "data": "photographs" if config["dir"] is None else str(config["dir"]),
        "processor": model if name is None else name,
        **measured,
    }


def show(made: dict[str, Any]) -> None:
    """Print the table, and what follows from it."""
    from rich.table import Column, Table

    console = table_console()
    alone, together, workers = made["alone"], made["together"], made["workers"]
    names = ("CPU us/sample", "samples/s per core", "share", "samples/s")
    title = f"{made['processor']} on {made['data']}, {made['width']:.0f} x {made['height']:.0f} on average"
    table = Table("stage", *(Column(name, justify="right") for name in names), title=title, title_justify="left")
    labels = {"stream": "whole stream, 1 process", "webdataset stream": "webdataset, 1 process"}
    for name, row in alone.items():
        if name in labels or name == "webdataset read":
            table.add_section()
        share = "" if row["share"] is None else f"{100 * row['share']:.1f} %"
        table.add_row(labels.get(name, name), f"{row['cpu_us']:,.0f}", f"{row['samples_per_s']:,.0f}", share)
    table.add_section()
    labels = {"stream": "whole stream", "unsent": "  batches thrown away", "webdataset stream": "webdataset"}
    for name, row in together.items():
        if row["samples_per_s"] is not None:
            cpu, each, rate = row["cpu_us"], row["samples_per_s_per_worker"], row["samples_per_s"]
            label = f"{labels[name]}, {counted(workers, 'worker')}"
            table.add_row(label, f"{cpu:,.0f}", f"{each:,.0f}", "", f"{rate:,.0f}")
    console.print(table)
    for line in conclusions(made):
        console.print(line, highlight=False, soft_wrap=True)


def conclusions(made: dict[str, Any]) -> list[str]:
    """What bounds the stream, and its ratios, in words."""
    ratios, workers, bound = made["ratios"], counted(made["workers"], "worker"), made["bound"]
    share = 100 * made["alone"][bound]["share"]
    sent = ratios["sent"]
    lines = [
        f"bound by: {bound} ({share:.0f} % of the stages' CPU time)",
        f"one process: {ratios['stream']:.2f} of 1 / (sum of the stages){_verdict(ratios['stream'])}",
        f"{workers}: {sent:.2f} of what they reach when no batch is sent{_verdict(sent)}; {ratios['workers']:.2f} of "
        f"{made['workers']} x one process alone on the machine",
    ]
    for name, what in (("read", "reading"), ("stream", "one process"), ("workers", workers)):
        value = ratios[f"webdataset_{name}"]
        if value is None:
            lines.append(f"webdataset, {what}: not measured, it needs a shard for each worker")
        else:
            lines.append(f"webdataset, {what}: cropl is {value:.2f} times as fast{_verdict(value)}")
    if max(made["load"]) > made["workers"] + 1.5:
        lines.append(
            f"the machine was busy with other work (load {max(made['load']):.1f}): repeat this when it is quiet"
        )
    return lines


def _verdict(ratio: float) -> str:
    return "" if ratio >= WANTED else f" - BELOW {WANTED}"
