"""cropl bench train [-c RECIPE] [--key value ...]

Measures training steps of PLC and of the localizer on this machine: as cropl computes them (samples packed into rows,
losses of supervised tokens without logits, no graph of the frozen vision tower), with each of the three left out, and
without all of them. Prints time, useful tokens a second, MFU (on GPUs that are known) and memory. The keys are those
of the recipe bench/train (`cropl show bench/train`).

  cropl bench train                                   # GPU: sizes of LLaVA-1.5-7B and Qwen2-VL-2B; CPU: the testbed's
  cropl bench train --vocabulary 151936               # the testbed's models with a vocabulary of real size
  cropl bench train --tasks [localizer] --batch 32 --out runs/train.json

It is a measurement, not a test: the exit code is 0 however slow it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cropl.commands.measurement import configured, result_file, write
from cropl.commands.printing import table_console
from cropl.errors import UsageError, nearest

DTYPES = ("bfloat16", "float16", "float32")


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    config = configured("train", args, ("batch", "rounds", "vocabulary"), optional="vocabulary")
    peak = config["peak_tflops"]
    if peak is not None and (isinstance(peak, bool) or not isinstance(peak, int | float) or peak <= 0):
        raise UsageError(f"bench train: peak_tflops must be a positive number, got {peak!r}")
    out = result_file("train", config)
    made = bench(config)
    show(made)
    write(made, out)
    return 0


def bench(config: dict[str, Any]) -> dict[str, Any]:
    """Measure as the recipe says: the machine's and the software's facts, and a row for each task and path."""
    import torch

    from cropl.bench.train import PATHS, measure
    from cropl.bench.train_inputs import SIZES, TASKS
    from cropl.evaluation import facts
    from cropl.evaluation.progress import Stages

    device = torch.device(_one_of("device", config["device"] or _best_device(), ("cuda", "cpu")))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("bench train: device cuda, but torch finds no GPU here: leave it out, or give cpu")
    on_gpu = device.type == "cuda"
    dtype = _one_of("dtype", config["dtype"] or ("bfloat16" if on_gpu else "float32"), DTYPES)
    size = _one_of("size", config["size"] or ("published" if on_gpu else "testbed"), tuple(SIZES))
    tasks = config["tasks"] if isinstance(config["tasks"], list) else [config["tasks"]]
    if not tasks:
        raise UsageError(f"bench train: tasks is empty; give {' or '.join(TASKS)}")
    tasks = [_one_of("tasks", task, tuple(TASKS)) for task in tasks]
    rows: list[dict[str, Any]] = []
    with Stages() as stages:
        for task in tasks:
            stages.stage(f"measuring {task}", (config["rounds"] + 1) * len(PATHS))
            rows += measure(
                task, size, config["batch"], config["rounds"], device, getattr(torch, dtype),
                vocabulary=config["vocabulary"], peak_tflops=config["peak_tflops"], advance=stages.advance,
            )  # fmt: skip
    shared = {
        "hardware": facts.hardware(device),
        "seconds": "by the clock" if on_gpu else "CPU time of one thread",
        "dtype": dtype,
        "memory": "allocated on the GPU" if on_gpu else "tensors that torch's operations return",
        "versions": facts.versions(),
        "commit": facts.commit(),
    }
    return {**shared, "rows": rows}


def show(made: dict[str, Any]) -> None:
    """Print a table for each task, and what it says."""
    from rich.table import Column, Table

    console = table_console()
    facts = f"{made['hardware']}, {made['dtype']}; seconds: {made['seconds']}; memory: {made['memory']}"
    console.print(facts, highlight=False, soft_wrap=True)
    for task in dict.fromkeys(row["task"] for row in made["rows"]):
        rows = [row for row in made["rows"] if row["task"] == task]
        one = rows[0]
        title = (
            f"{task}: {one['parameters'] / 1e6:,.1f} M parameters, {one['batch']} samples of {one['tokens']:,} tokens, "
            f"{one['supervised']:,} supervised; weights and AdamW {_size(one['held_bytes'])}"
        )
        known = one["mfu"] is not None
        names = ["s/step", "least .. most", "tokens/s", "x naive", *(["MFU"] if known else []), "memory", "padding"]
        table = Table("path", *(Column(name, justify="right") for name in names))
        for row in rows:
            low, high = row["spread"]
            cells = [f"{row['seconds']:.3f}", f"{low:.3f} .. {high:.3f}", f"{row['tokens_per_s']:,.0f}"]
            cells += [f"{row['speedup']:.2f}", *([f"{100 * row['mfu']:.1f} %"] if known else [])]
            table.add_row(row["path"], *cells, _size(row["step_bytes"]), f"{100 * row['padding']:.0f} %")
        console.print(title, highlight=False, soft_wrap=True)
        console.print(table)
        ours, naive = rows[0], rows[-1]
        console.print(
            f"{task}: {ours['speedup']:.2f} times the naive path's tokens a second, with "
            f"{100 * ours['step_bytes'] / naive['step_bytes']:.0f} % of the memory that it needs in a step",
            highlight=False,
        )


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _one_of(key: str, given: Any, known: tuple[str, ...]) -> str:
    if given not in known:
        raise UsageError(f"bench train: unknown {key} {given!r}{nearest(str(given), list(known), 'choices')}")
    return str(given)


def _size(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
