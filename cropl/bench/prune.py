"""The speed of pruned prefills and answers against dense ones, beside what their FLOPs allow.

Dense and pruned runs take turns on the same weights and questions, so that other load on the machine meets both; what
is told is the median of the pairs' ratios with its bootstrap interval. The ideal speed-up is the ratio of the FLOPs
that the rows of a batch need, each at its own length: padding, gathering, ranking and Python all count against it.

Three columns: the language model alone, with the vision tower, and with the localizer in front of it (one after the
other), which only methods that want regions need. Answers of many tokens have no ideal: they wait for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

import torch

from cropl.bench.prune_inputs import Arm
from cropl.bench.prune_plan import Plan
from cropl.bench.prune_runs import Localizing, Prefilled, Subject
from cropl.bench.prune_shapes import build, shape_of, sizes
from cropl.bench.prune_time import Clock, pinned, speedup, summary, turns

Advance = Callable[[str], None]


class Bench:
    """One shape, measured on one device.

    Args:
        name: of the shape.
        plan: what is measured.
        device, dtype: where and in what.
        threads: of the CPU.
    """

    def __init__(self, name: str, plan: Plan, device: torch.device, dtype: torch.dtype, threads: int) -> None:
        self.shape, self.plan, self.clock = shape_of(name), plan, Clock(device, threads)
        self.vlm = build(self.shape, device, dtype)
        self.arms = plan.arms(self.shape, self.vlm.num_layers)
        self.found = shape_of(self.shape.localizer) if self.shape.localizer else None
        self.localizer = build(self.found, device, dtype) if self.found else None

    def rows(self, advance: Advance) -> list[dict[str, Any]]:
        """A row for everything in the plan."""
        made = []
        for (series, batch), arms in self.arms.items():
            try:
                setting = _Setting(self, batch)
            except torch.OutOfMemoryError:
                setting = None
            for one in arms:
                row: dict[str, Any] = {
                    "series": series,
                    "shape": self.shape.name,
                    "method": one.name,
                    "budget": one.budget,
                }
                row |= {"batch": batch, "layers": list(one.method.layers), "num_layers": self.vlm.num_layers}
                try:
                    row |= {"failed": "out of memory"} if setting is None else setting.row(one, series == "methods")
                except torch.OutOfMemoryError:
                    row |= {"failed": "out of memory"}
                made.append(row)
                advance(f"{one.name} {one.budget}")
        return made


class _Setting:
    """A batch of one size: what all its arms share."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.plan, self.clock, self.shape = bench.plan, bench.clock, bench.shape
        self.subject = subject = Subject(bench.vlm, bench.shape, batch)
        self.batch = batch
        self.dense = subject.look(None)
        self.parameters = sizes(bench.vlm)
        self.unpatched: dict[int, float] = {}
        config = bench.vlm.model.config
        self.vision = {
            "flops": batch * bench.shape.vision_flops(config),
            "pixels": bench.shape.pixels(config),
            **self._timed(subject.encode),
        }
        self.localizer = None
        if bench.found is not None and bench.localizer is not None:
            locate = Localizing(bench.found, batch, bench.clock.device, bench.vlm.model.dtype, bench.localizer)
            self.localizer = {
                "shape": bench.found.name,
                "flops": batch * locate.flops,
                "pixels": locate.pixels,
                **self._timed(locate),
            }

    def _timed(self, work: Callable[[], object]) -> dict[str, Any]:
        work()
        return summary([self.clock(work) for _ in range(2 + self.plan.pairs // 4)])

    def row(self, one: Arm, answers: bool) -> dict[str, Any]:
        """One arm against dense."""
        subject, clock = self.subject, self.clock
        looked = subject.look(one)
        pairs = turns(
            self.plan.pairs,
            lambda: clock(lambda: subject.prefill(one)),
            lambda: clock(lambda: subject.prefill(None)),
        )
        made = {
            "visual_tokens": self.shape.visual_tokens,
            "text_tokens": self.shape.text_tokens,
            "kept": [row[-1] for row in looked.visual],
            "layer_average": fmean(tokens for row in looked.visual for tokens in row),
            "parameters": self.parameters,
            "prefill": {
                **summary([ours for ours, _ in pairs]),
                "dense": summary([dense for _, dense in pairs]),
                "pairs": [list(pair) for pair in pairs],
                "speedup": self._columns(pairs, looked, one),
                "unpatched": self._unpatched(looked.visual),
            },
            "vision": self.vision,
            "localizer": self.localizer if one.keep is not None else None,
            "flops": _beside("flops", looked, self.dense),
            "linear_flops": _beside("linear", looked, self.dense),
            "counted_linear_flops": _beside("counted", looked, self.dense),
            "kv_bytes": _beside("kv_bytes", looked, self.dense),
            "peak_bytes": _beside("peak_bytes", looked, self.dense),
        }
        if answers and self.plan.answer_pairs and self.plan.new_tokens:
            made["answers"] = self._answers(one)
        return made

    def _columns(self, pairs: Sequence[tuple[float, float]], looked: Prefilled, one: Arm) -> dict[str, Any]:
        vision, first = self.vision, self.localizer if one.keep is not None else None
        ours, dense = looked.flops, self.dense.flops
        columns = {
            "llm": speedup(pairs, dense / ours),
            "vision": speedup(pairs, (dense + vision["flops"]) / (ours + vision["flops"]), both=vision["seconds"]),
        }
        if one.keep is None or first is not None:
            flops, seconds = (first["flops"], first["seconds"]) if first else (0, 0.0)
            ideal = (dense + vision["flops"]) / (ours + vision["flops"] + flops)
            columns["localizer"] = speedup(pairs, ideal, ours=seconds, both=vision["seconds"])
        return columns

    def _unpatched(self, visual: Sequence[Sequence[int]]) -> float | None:
        """Time, of the dense prefill's, if each layer took as long as in unpatched models of its own length.

        What is lacking to 1 / speed-up is the patch's; what this lacks to the FLOPs is the machine's, whose matrix
        products are slower for few rows. None for rows of several lengths.
        """
        if any(list(row) != list(visual[0]) for row in visual):
            return None
        lengths = sorted(set(visual[0]) - {self.shape.visual_tokens, *self.unpatched})
        subjects = [Subject(self.subject.vlm, replace(self.shape, grid=(1, n)), self.batch) for n in lengths]
        found: list[list[float]] = [[] for _ in lengths]
        for number in range(2 + self.plan.pairs // 4 if subjects else 0):
            dense = self.clock(lambda: self.subject.prefill(None))
            for ratios, shorter in zip(found, subjects, strict=True):
                seconds = self.clock(partial(shorter.prefill, None))
                ratios += [seconds / dense] if number else []
        self.unpatched |= {n: median(ratios) for n, ratios in zip(lengths, found, strict=True) if ratios}
        return fmean(self.unpatched.get(n, 1.0) for n in visual[0])

    def _answers(self, one: Arm) -> dict[str, Any]:
        """Seconds and speed-ups of answers, by their length, and seconds of a decoding step."""
        longest = max(self.plan.new_tokens)

        def stamps(which: Arm | None) -> list[float]:
            return self.clock.stamps(lambda stamp: self.subject.answer(which, longest, stamp))

        self.subject.answer(one, 2, lambda: None)  # what is only done once
        pairs = turns(self.plan.answer_pairs, lambda: stamps(one), lambda: stamps(None))
        first = self.localizer["seconds"] if self.localizer and one.keep is not None else 0.0

        def of(length: int) -> dict[str, Any]:
            totals = [(ours[length - 1], dense[length - 1]) for ours, dense in pairs]
            extra = {"vision": (0.0, self.vision["seconds"]), "localizer": (first, self.vision["seconds"])}
            return {
                **summary([ours for ours, _ in totals]),
                "dense": summary([dense for _, dense in totals]),
                "speedup": {
                    name: _measured(speedup(totals, 1.0, ours=more, both=shared))
                    for name, (more, shared) in {"llm": (0.0, 0.0), **extra}.items()
                },
            }

        made: dict[str, Any] = {str(length): of(length) for length in self.plan.new_tokens}
        if longest > 1:
            steps = [[(run[longest - 1] - run[0]) / (longest - 1) for run in pair] for pair in pairs]
            ours, dense = (median(column) for column in zip(*steps))
            made["step"] = {"seconds": ours, "dense": dense, "speedup": median(d / o for o, d in steps)}
        return made


def _measured(found: dict[str, Any]) -> dict[str, Any]:
    return {"measured": found["measured"], "interval": found["interval"]}


def _beside(name: str, ours: Prefilled, dense: Prefilled) -> dict[str, Any]:
    return {"pruned": getattr(ours, name), "dense": getattr(dense, name)}


def measure(
    name: str,
    plan: Plan,
    device: torch.device,
    dtype: torch.dtype,
    threads: int,
    advance: Advance = lambda what: None,
) -> list[dict[str, Any]]:
    """All rows of one shape.

    Raises:
        UsageError: there is no such shape, method or budget.
        NotSupportedError: this family cannot be pruned.
    """
    with pinned(threads):
        return Bench(name, plan, device, dtype, threads).rows(advance)
