"""The speed of pruned prefills and answers against dense ones, beside what their FLOPs allow.

Dense and pruned runs take turns on the same weights and questions, so that other load on the machine meets both; what
is told is the median of the pairs' ratios with its bootstrap interval. The ideal speed-up is the ratio
of the FLOPs that the rows of a batch need, each at its own length: padding, gathering, ranking and Python all count
against it.

Three columns: the language model alone, with the vision tower, and with the localizer in front of it (one after the
other), which only methods that want regions need; tower and localizer are timed in the same turns. Answers of many
tokens have no ideal: they wait for memory. Compiled rows stand against dense compiled alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from cropl.bench.prune.inputs import Arm
from cropl.bench.prune.plan import Plan
from cropl.bench.prune.setting import Setting
from cropl.bench.prune.shapes import build, shape_of
from cropl.bench.prune.time import Clock, pinned
from cropl.errors import one_line
from cropl.pruning import NotSupportedError
from cropl.pruning.static_layers import Compile

Advance = Callable[[str], None]


class Bench:
    """One shape, measured on one device.

    Args:
        name: of the shape.
        plan: what is measured.
        device, dtype: where and in what.
        threads: of the CPU.
        compile: how compiled rows are, see `StaticRunner`; None is as CUDA graphs on a GPU, and inductor's code on a
            CPU.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        device: torch.device,
        dtype: torch.dtype,
        threads: int,
        compile: Compile | None = None,
    ) -> None:
        self.shape, self.plan, self.clock = shape_of(name), plan, Clock(device, threads)
        self.compile = ("reduce-overhead" if device.type == "cuda" else True) if compile is None else compile
        self.vlm = build(self.shape, device, dtype)
        self.arms = plan.arms(self.shape, self.vlm.num_layers)
        found = shape_of(self.shape.localizer) if self.shape.localizer else None
        self.finder = (found, build(found, device, dtype)) if found else None

    def rows(self, advance: Advance) -> list[dict[str, Any]]:
        """A row for everything in the plan."""
        made = []
        for (series, batch), arms in self.arms.items():
            setting = self._setting(batch)
            for one, answered in zip(arms, self.plan.answered(series, arms), strict=True):
                row: dict[str, Any] = {
                    "series": series,
                    "shape": self.shape.name,
                    "method": one.name,
                    "compiled": series == "compiled",
                    "budget": one.budget,
                    "budget_meaning": one.meaning,
                }
                row |= {"batch": batch, "layers": list(one.layers), "num_layers": self.vlm.num_layers}
                made.append(row | self._measured(setting, one, series, answered))
                advance(f"{one.name} {one.budget}")
            if isinstance(setting, Setting):
                setting.close()
            del setting  # before the next one takes its own
        return made

    def _setting(self, batch: int) -> Setting | dict[str, Any]:
        """What the arms of a batch share, or why they have no figures."""
        try:
            return Setting(self.vlm, self.shape, self.plan, self.clock, batch, self.finder)
        except Exception as error:
            return failed(error)

    def _measured(self, setting: Setting | dict[str, Any], one: Arm, series: str, answered: bool) -> dict[str, Any]:
        """The figures of an arm, or why there are none."""
        if one.method is None:
            return {"failed": one.infeasible}
        if not isinstance(setting, Setting):
            return setting
        try:
            if series == "compiled":
                return setting.compiled_row(one, self.compile, answered)
            return setting.row(one, answered)
        except Exception as error:  # a compiler's, say; the other rows took up to an hour
            return failed(error)


def failed(error: Exception) -> dict[str, Any]:
    """What a row has instead of figures: `failed` in short, and `why` in full where that does not say it."""
    if isinstance(error, torch.OutOfMemoryError):
        return {"failed": "out of memory"}
    if isinstance(error, NotSupportedError):
        return {"failed": "not supported", "why": str(error)}
    return {"failed": "error", "why": f"{type(error).__name__}: {one_line(error)}"}


def measure(
    name: str,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    advance: Advance = lambda what: None,
    compile: Compile | None = None,
) -> list[dict[str, Any]]:
    """All rows of one shape; `compile` as for `Bench`.

    Raises:
        UsageError: there is no such shape, method or budget.
    """
    with pinned(threads):
        return Bench(name, plan, device, dtype, threads, compile).rows(advance)
