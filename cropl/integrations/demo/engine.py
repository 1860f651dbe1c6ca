"""Answers what the page asks, with one model: the pruned answer, the dense one, and what both took.

One question at a time: a model can be pruned in one way at a time. `cropl.integrations.demo.line` sees to that.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cropl.data.sample import Sample
from cropl.errors import UsageError
from cropl.evaluation.arm_run import Run, usual_layer
from cropl.evaluation.arms import METHODS as CLASSES
from cropl.evaluation.arms import Arm, read_arms
from cropl.evaluation.costs import FixedCosts, fixed_costs
from cropl.evaluation.plan import check_arms, make_plan
from cropl.grid import Region
from cropl.integrations.demo.asked import BY_REGION, METHODS, Asked
from cropl.integrations.demo.locating import Located, Locator
from cropl.integrations.demo.measuring import Cancelled, Measured, measure
from cropl.integrations.demo.pictures import Picture, Pictures
from cropl.integrations.demo.telling import tell_located, tell_measured
from cropl.models.compressor import CONFIG, Compressor
from cropl.models.vlm import VLM
from cropl.pruning.request import keep_mask
from cropl.tiling import Tokens

REMEMBERED = 16
"""Questions whose image features and region are kept, so that a region of the user's costs only the answers."""


@dataclass
class _Known:
    """What is known of a picture and a question, whatever the method."""

    feature_VD: Tensor
    fixed: FixedCosts
    located: Located


class Engine:
    """Answers questions.

    Args:
        vlm: the model that answers.
        locator: what tells regions.
        folder: of the model, where a compressor may lie.
        names: what the page calls `model` and `localizer`.
        pictures: what can be asked about.
    """

    def __init__(
        self,
        vlm: VLM,
        locator: Locator,
        folder: str = "",
        names: dict[str, str] | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        self.vlm, self.locator, self.names = vlm, locator, names or {}
        self.pictures = pictures or Pictures()
        compresses = (Path(folder) / CONFIG).is_file()
        self._compressor = Compressor.from_pretrained(folder) if compresses else None
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._missing = self._unavailable()

    def state(self) -> dict[str, Any]:
        """What the page has to know before it asks."""
        methods = [
            {
                "name": method,
                "by_region": method in BY_REGION,
                "budget": method not in ("plc", "dense"),
                "layer": self._layer(method),
                "missing": self._missing.get(method),
            }
            for method in METHODS
        ]
        return {
            **self.names,
            "device": str(self.vlm.device),
            "dtype": str(self.vlm.model.dtype).rpartition(".")[2],
            "layers": self.vlm.num_layers,
            "localizes": self.locator.tells,
            "method": "plc" if self._compressor is not None else "ilp",
            "methods": methods,
        }

    def tokens(self, picture: Picture) -> int:
        """Visual tokens that the model makes of it."""
        return int(self._grid(picture).num_tokens)

    def warm_up(self) -> None:
        """One untimed answer: the first forward pays for start-up."""
        first = Asked(self.pictures.examples[0], "What is this?", "dense", max_new_tokens=2)
        for _ in self.answer(first, lambda: False):
            pass
        self._known.clear()

    def check(self, asked: Asked) -> None:
        """UsageError where the question cannot be answered, told before anything is computed."""
        picture, total = self.pictures[asked.picture], self.vlm.num_layers
        if (missing := self._missing.get(asked.method)) is not None:
            raise UsageError(f"{asked.method}: {missing}")
        if asked.layer is not None and asked.layer > total:
            raise UsageError(f"K = {asked.layer}: the model has {total} decoder layers, give 0 to {total}")
        if asked.layer is not None and self._layer(asked.method) is None:
            raise UsageError(f"K has no effect with {asked.method}, which prunes at layers of its own")
        tokens = self.tokens(picture)
        if isinstance(asked.budget, int) and asked.budget > tokens:
            raise UsageError(f"budget {asked.budget}: this image has {tokens} visual tokens, give at most that")
        if asked.method in BY_REGION:
            if asked.region is None and not self.locator.tells:
                raise UsageError("no localizer is loaded: draw a region on the picture")
        elif asked.budget is None and asked.method != "dense":
            raise UsageError(f"{asked.method} looks at no region: give a budget")
        self._plan(asked, picture, Located(Region.full()))

    def answer(self, asked: Asked, cancelled: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """What happens, step by step, and what comes of it, ready for JSON.

        Raises:
            Cancelled: nobody waits any more.
            UsageError: as for `check`.
        """
        picture = self.pictures[asked.picture]
        grid = self._grid(picture)
        yield {"stage": "localizing" if self.locator.tells else "encoding"}
        known = self._prepare(picture, asked.question)
        if cancelled():
            raise Cancelled
        yield {"located": tell_located(known.located)}
        if asked.method != "dense":
            yield {"stage": "pruned"}
            run = self._plan(asked, picture, known.located)
            measured = self._measure(run, asked, picture, known, cancelled)
            used = run.regions[0] if run.regions is not None else None
            told = asked.method in BY_REGION and asked.region is None and known.located.source != "none"
            localizing = known.located.seconds if told else None
            yield {"pruned": tell_measured(measured, grid, run.layer, used, localizing)}
        yield {"stage": "dense"}  # each time anew, so that both are timed side by side
        run = self._plan(replace(asked, method="dense", region=None, budget=None, layer=None), picture, Located())
        measured = self._measure(run, asked, picture, known, cancelled)
        yield {"dense": tell_measured(measured, grid, self.vlm.num_layers, None)}

    def _measure(
        self, run: Run, asked: Asked, picture: Picture, known: _Known, cancelled: Callable[[], bool]
    ) -> Measured:
        sample = _sample(picture, asked.question)
        return measure(self.vlm, run, sample, known.feature_VD, known.fixed, cancelled, asked.max_new_tokens)

    @torch.inference_mode()
    def _prepare(self, picture: Picture, question: str) -> _Known:
        key = (picture.id, question)
        if key not in self._known:
            features = next((known.feature_VD for (id, _), known in self._known.items() if id == picture.id), None)
            if features is None:
                features = self.vlm.encode_images([picture.image])[0]
            samples, grids = [_sample(picture, question)], [self._grid(picture)]
            located = self.locator(picture.image, question)
            # One that fails might fail at its costs as well, and takes no part in the answer.
            localizer = None if located.source == "none" else self.locator.localizer
            fixed = fixed_costs({None: self.vlm}, samples, grids, localizer)
            while len(self._known) >= REMEMBERED:
                self._known.popitem(last=False)
            if located.message:  # it may have been a fault of the moment: not remembered
                return _Known(features, fixed, located)
            self._known[key] = _Known(features, fixed, located)
        self._known.move_to_end(key)
        return self._known[key]

    def _plan(self, asked: Asked, picture: Picture, located: Located) -> Run:
        """The run that answers: regions decide by themselves, or make room for the budget."""
        grid, region = self._grid(picture), asked.region or located.region
        by_region = asked.method in BY_REGION
        source = "none"
        if by_region:  # a region from the user, and the whole image for want of one, cost nothing, as the truth does
            source = "gt" if asked.region is not None or located.source == "none" else located.source
        arm = self._arm(asked.method, asked.layer, None if by_region else asked.budget, source)
        regions: dict[tuple[str, int | None], list[Region]] = {(arm.region_source, None): [region or Region.full()]}
        try:
            (run,) = make_plan([arm], {None: self.vlm.num_layers}, [picture.id], [grid], regions)
        except UsageError as error:
            raise UsageError(_plain(error)) from None
        if run.infeasible is not None:
            raise UsageError(f"{asked.method}: {run.infeasible}")
        if run.keep is not None and region is not None:  # without a region every token stays, whatever the budget
            run.keep = [keep_mask(region, grid, asked.budget)]
        return run

    def _arm(self, method: str, layer: int | None, budget: int | float | None, source: str) -> Arm:
        entry: dict[str, Any] = {"method": method, "budget": budget, "region_source": source}
        if method != "prune":  # says K itself
            entry["layer"] = self._layer(method) if layer is None else layer
        if method == "plc":
            entry["init_args"] = {"compressor": self._compressor}
        try:
            (arm,) = read_arms([entry], (0,))
        except UsageError as error:
            raise UsageError(_plain(error)) from None
        return arm

    def _layer(self, method: str) -> int | None:
        """K where it can be chosen: near the paper's 2 of 32; None where it cannot."""
        if method in ("prune", "plc", "dense"):
            return None
        return usual_layer(Arm(method, CLASSES[method]), self.vlm.num_layers)

    def _grid(self, picture: Picture) -> Tokens:
        return self.vlm.token_maps([picture.image.size])[0]

    def _unavailable(self) -> dict[str, str]:
        """The methods that do not run on this model, and why."""
        found, grid = {}, self._grid(self.pictures[self.pictures.examples[0]])
        for method in METHODS:
            if method == "plc" and self._compressor is None:
                found[method] = "this model was not trained with a compressor"
                continue
            by_region = method in BY_REGION
            budget = None if by_region or method == "dense" else 0.5
            try:
                check_arms([self._arm(method, None, budget, "gt" if by_region else "none")], {None: self.vlm}, [grid])
            except UsageError as error:
                found[method] = _plain(error)
        return found


def _plain(error: UsageError) -> str:
    return re.sub(r"^(study arm '[^']*': )+", "", str(error))


def _sample(picture: Picture, question: str) -> Sample:
    width, height = picture.image.size
    return Sample(
        key=picture.id, question=question, answers=[], boxes=[], width=width, height=height, region=Region.full(),
        kind="", source="demo", split="", image=picture.image,
    )  # fmt: skip
