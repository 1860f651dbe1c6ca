"""A batch of one size and shape, and every arm on it, side by side with dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

from cropl.bench.prune.answers import answers, measured
from cropl.bench.prune.front import EVERY, Front, Fronts
from cropl.bench.prune.inputs import Arm
from cropl.bench.prune.plan import Plan
from cropl.bench.prune.runs import Localizing, Prefilled, Subject
from cropl.bench.prune.shapes import Shape, sizes
from cropl.bench.prune.sides import Compiled, Eager, Side
from cropl.bench.prune.time import Clock, speedup, summary, turns
from cropl.metrics.cost import decoder_flops
from cropl.models.vlm import VLM
from cropl.pruning.static_layers import Compile


class Setting:
    """What all arms of a batch share.

    Args:
        vlm: the model.
        shape: its, and of its questions.
        plan: what is measured.
        clock: that measures.
        batch: questions at once.
        finder: the shape of the localizer and the localizer, if there is one.
    """

    def __init__(
        self, vlm: VLM, shape: Shape, plan: Plan, clock: Clock, batch: int, finder: tuple[Shape, VLM] | None
    ) -> None:
        self.plan, self.clock, self.shape, self.batch = plan, clock, shape, batch
        self.subject = Subject(vlm, shape, batch)
        self.subject.prefill(None)  # what is only done once, such as a GPU's workspaces, is no memory of a prefill
        self.dense = self.subject.look(None)
        self.eager = Eager(self.subject, clock)
        self.unpatched: dict[int, float] = {}
        self.compiled: Compiled | None = None
        config = vlm.model.config
        self.vision = {"flops": batch * shape.vision_flops(config), "pixels": shape.pixels(config)}
        self.subject.encode()
        self.locate: Localizing | None = None
        self.localizer: dict[str, Any] | None = None
        if finder is not None:
            locate = self.locate = Localizing(finder[0], batch, clock.device, vlm.model.dtype, finder[1])
            self.localizer = {"shape": finder[0].name, "flops": batch * locate.flops, "pixels": locate.pixels}
            locate()

    def row(self, one: Arm, with_answers: bool) -> dict[str, Any]:
        """One arm against dense."""
        looked, ours = self.subject.look(one), Eager(self.subject, self.clock, one)
        fronts = self._fronts(one, ours, EVERY)
        pairs = turns(self.plan.pairs, ours.prefill, self.eager.prefill, fronts.sample)
        made = self._facts(one, looked, fronts)
        made["prefill"] = self._prefill(looked, pairs, made, fronts.charged([dense for _, dense in pairs]))
        made["prefill"]["unpatched"] = self._unpatched(looked.visual)
        for name in ("flops", "linear", "counted", "kv_bytes", "peak_bytes"):
            key = {"linear": "linear_flops", "counted": "counted_linear_flops"}.get(name, name)
            made[key] = {"pruned": getattr(looked, name), "dense": getattr(self.dense, name)}
        if with_answers:
            made["answers"] = answers(*self._answered(one, ours, self.eager))
        return made

    def compiled_row(self, one: Arm, compile: Compile, with_answers: bool) -> dict[str, Any]:
        """One arm compiled, against dense compiled; and against eager dense, in turn with both.

        Raises:
            NotSupportedError: this method or model cannot be run at static shapes.
        """
        looked, longest = self.subject.look(one), max(self.plan.new_tokens, default=1) if self.plan.answers else 1
        own = None if one.name == "dense" else Compiled(self.subject, self.clock, one, longest, compile)
        try:
            if self.compiled is None:
                self.compiled = Compiled(self.subject, self.clock, None, longest, compile)
            dense, eager = self.compiled, self.eager
            ours = own or dense
            fronts = self._fronts(one, ours, EVERY)
            both = turns(self.plan.pairs, ours.prefill, lambda: (dense.prefill(), eager.prefill()), fronts.sample)
            made = self._facts(one, looked, fronts)
            made |= {"first_s": ours.first_s, "buckets": sorted(set(ours.bucket_L()), reverse=True)}
            pairs, others = ([(mine, them[i]) for mine, them in both] for i in range(2))
            made["prefill"] = self._prefill(looked, pairs, made, fronts.charged([them for _, them in pairs]))
            made["prefill"] |= {"unpatched": None, "eager": _against(others)}
            config = self.subject.vlm.decoder.config
            lengths = [decoder_flops(config, side.bucket_L()) for side in (ours, dense)]
            made["prefill"]["ideal_of_buckets"] = lengths[1] / lengths[0]
            made["flops"] = {"pruned": looked.flops, "dense": self.dense.flops}
            made["kv_bytes"] = {"pruned": ours.runner.kv_bytes, "dense": dense.runner.kv_bytes}
            if with_answers:
                made["answers"] = answers(*self._answered(one, ours, dense))
                others, *_ = self._answered(one, ours, eager)
                for length in self.plan.new_tokens:
                    totals = [(mine[length - 1], them[length - 1]) for mine, them in others]
                    made["answers"][str(length)]["eager"] = _against(totals)
        finally:
            if own is not None:
                own.runner.release()
        return made

    def close(self) -> None:
        """Let go of what was compiled."""
        if self.compiled is not None:
            self.compiled.close()

    def _fronts(self, one: Arm, ours: Side, every: int) -> Fronts:
        locate = self.locate if one.regional else None
        return Fronts(self.clock, self.subject.encode, locate, ours.towers, one.regional, every)

    def _facts(self, one: Arm, looked: Prefilled, fronts: Fronts) -> dict[str, Any]:
        return {
            "visual_tokens": self.shape.visual_tokens,
            "text_tokens": self.shape.text_tokens,
            "kept": [row[-1] for row in looked.visual],
            "layer_average": fmean(tokens for row in looked.visual for tokens in row),
            "parameters": sizes(self.subject.vlm),
            "vision": {**self.vision, **fronts.vision},
            "localizer": {**self.localizer, **fronts.localizer} if self.localizer and one.regional else None,
        }

    def _prefill(
        self, looked: Prefilled, pairs: Sequence[tuple[float, float]], facts: dict[str, Any], front: Front
    ) -> dict[str, Any]:
        ours, dense, seen = looked.flops, self.dense.flops, facts["vision"]["flops"]
        columns = {
            "llm": speedup(pairs, dense / ours),
            "vision": speedup(pairs, (dense + seen) / (ours + seen), ours=front.tower, both=front.vision),
        }
        if front.ours is not None:
            flops = facts["localizer"]["flops"] if facts["localizer"] else 0
            ideal = (dense + seen) / (ours + seen + flops)
            columns["localizer"] = speedup(pairs, ideal, ours=front.ours, both=front.vision)
        return {
            **summary([mine for mine, _ in pairs]),
            "dense": summary([them for _, them in pairs]),
            "pairs": [list(pair) for pair in pairs],
            "speedup": columns,
            "tower_extra_s": median(front.tower),
        }

    def _unpatched(self, visual: Sequence[Sequence[int]]) -> float | None:
        """Time, of the dense prefill's, if each layer took as long as in unpatched models of its own length.

        What is lacking to 1 / speed-up is the patch's; what this lacks to the FLOPs is the machine's, whose matrix
        products are slower for few rows. None for rows of several lengths.
        """
        if any(list(row) != list(visual[0]) for row in visual):
            return None
        lengths = sorted(set(visual[0]) - {self.shape.visual_tokens, *self.unpatched})
        shorter = [replace(self.shape, grid=(1, n), crops=1) for n in lengths]
        sides = [Eager(Subject(self.subject.vlm, shape, self.batch), self.clock) for shape in shorter]
        found: list[list[float]] = [[] for _ in lengths]
        for number in range(2 + self.plan.pairs // 4 if sides else 0):
            dense = self.eager.prefill()
            for ratios, side in zip(found, sides, strict=True):
                seconds = side.prefill()
                ratios += [seconds / dense] if number else []
        self.unpatched |= {n: median(ratios) for n, ratios in zip(lengths, found, strict=True) if ratios}
        return fmean(self.unpatched.get(n, 1.0) for n in visual[0])

    def _answered(
        self, one: Arm, ours: Side, dense: Side
    ) -> tuple[list[tuple[list[float], list[float]]], Sequence[int], Front]:
        """Answers that take turns, their lengths, and what goes before each pair: what `answers` takes."""
        longest = max(self.plan.new_tokens)
        for side in (ours, dense):
            side.answer(min(2, longest))  # what is only done once
        fronts = self._fronts(one, ours, 1)
        run, other = partial(ours.answer, longest), partial(dense.answer, longest)
        pairs = turns(self.plan.answer_pairs, run, other, fronts.sample)
        return pairs, self.plan.new_tokens, fronts.charged([stamps[-1] for _, stamps in pairs])


def _against(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    return {"dense": summary([them for _, them in pairs]), **measured(speedup(pairs, 1.0))}
