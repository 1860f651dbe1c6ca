"""cropl bench pipeline [-c RECIPE] [--key value ...]

Measures what localizing ahead (`cropl answer`) is worth on this machine: questions a second of the localizer alone, of
the model alone with the regions known, of both at once without anything that couples them (what the machine allows),
and of the pipeline. The keys are those of the recipe bench/pipeline (`cropl show bench/pipeline`).

  cropl bench pipeline                            # the testbed's models, one thread each
  cropl bench pipeline --budget 64 --rounds 15
  cropl bench pipeline --device cuda:0 --localizer_device cuda:1 --model ./llava-1.5-7b-hf --localizer ./localizer

It is a measurement, not a test: the exit code is 0 however slow it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cropl.commands.measurement import configured, result_file, write
from cropl.commands.printing import table_console
from cropl.evaluation.arms import check_budget

COUNTS = ("batch", "batches", "rounds", "ahead", "max_new_tokens", "threads")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    config = configured("pipeline", args, COUNTS, optional="")
    if config["budget"] is not None:
        check_budget(config["budget"], "bench pipeline: budget")
    out = result_file("pipeline", config)
    made = bench(config)
    write(made, out)  # before anything that may fail: a pipe that is closed
    show(made)
    return 0


def bench(config: dict[str, Any]) -> dict[str, Any]:
    """Measure as the recipe says: the machine's and the software's facts, and the figures."""
    from cropl.bench.pipeline import PHASES, check_batches, measure
    from cropl.commands.models import open_vlm
    from cropl.evaluation import facts
    from cropl.evaluation.pipeline.locate import Load
    from cropl.evaluation.progress import Stages

    check_batches(config["batches"])
    vlm = open_vlm(config["model"], config["device"], config["dtype"])
    device = config["localizer_device"] or config["device"]
    load = Load(config["localizer"], device, str(vlm.model.dtype).removeprefix("torch."))
    with Stages() as stages:
        stages.stage("measuring", config["rounds"] * len(PHASES))
        made = measure(
            vlm, load, config["batch"], config["batches"], config["rounds"], config["ahead"], config["budget"],
            config["max_new_tokens"], config["threads"], stages.advance,
        )  # fmt: skip
    shared = {name: config[name] for name in ("model", "localizer", "localizer_device")}
    return {**shared, **facts.circumstances(vlm), **made}


def show(made: dict[str, Any]) -> None:
    """Print the table, and what it says."""
    from rich.table import Column, Table

    console = table_console()
    console.print(
        f"{made['hardware']}, {made['dtype']}, torch threads {made['threads']} in each process; batches of "
        f"{made['batch']}; load of the machine {min(made['load_average']):.1f} .. {max(made['load_average']):.1f}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("phase", *(Column(name, justify="right") for name in ("questions/s", "least .. most")))
    for phase, rates in made["questions_per_s"].items():
        table.add_row(phase, f"{median(rates):.1f}", f"{min(rates):.1f} .. {max(rates):.1f}")
    console.print(table)
    slower = made["slower_stage"]
    for name, what in (
        ("of_slower", f"pipeline / {slower} alone, which is the slower stage"),
        ("machine", f"{slower} beside the other stage / alone: what the machine allows"),
        ("of_machine", "pipeline / what the machine allows"),
        ("of_serial", "pipeline / one stage after the other"),
    ):
        low, high = made[name]["spread"]
        console.print(f"{what}: {made[name]['median']:.3f} ({low:.3f} .. {high:.3f})", highlight=False, soft_wrap=True)
    if (own := made["of_slower_by_cpu"]) is not None:
        low, high = own["spread"]
        told = f"pipeline / {slower} alone by CPU time and waiting, which other load of the machine hardly changes"
        console.print(f"{told}: {own['median']:.3f} ({low:.3f} .. {high:.3f})", highlight=False, soft_wrap=True)
    alone, coupled = (1000 * median(each) for each in made["model_cpu_seconds"].values())
    console.print(
        f"the model waits {100 * median(made['waiting']):.1f} % of the time; its process takes {alone:.1f} ms of CPU "
        f"time a question alone, {coupled:.1f} ms in the pipeline",
        highlight=False,
        soft_wrap=True,
    )
