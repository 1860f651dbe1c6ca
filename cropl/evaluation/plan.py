"""Decides, before anything is answered, which tokens every run keeps for every question.

A budget is a promise about the mean over the whole set, so it needs all the regions at once. Answering can then go
through the images in any order and in any batches, in one process or in many, with the same result.

Shapes: V visual tokens of one image.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from cropl.budget import InfeasibleBudget, calibrate, kept_for_layer_average
from cropl.errors import UsageError
from cropl.evaluation.arms import ALL, Arm
from cropl.grid import Region
from cropl.models.region_sources import RegionSource
from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, PreLLM
from cropl.pruning.checks import check_method, check_model
from cropl.pruning.request import region_mask
from cropl.recipe import instantiate, load_object
from cropl.testbed import weights
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample


@dataclass
class Run:
    """One pass over the questions: an arm, with one seed where it is a random control.

    Attributes:
        arm, seed: what is run.
        layer: K as a number, None for methods without.
        num_layers: L of the model that answers.
        total: visual tokens of an image before pruning, on average.
        regions: one region per question, None for methods without.
        keep: one bool mask (V_i,) per question, None where the method draws or computes its own.
        kept: visual tokens that are to stay after the pruning layer, per question; results hold those that did.
        factor, residual: of the set's budget; None where there is none.
        infeasible: why the budget cannot be met, by any seed of the arm; its runs are then left out, its row says so.
    """

    arm: Arm
    seed: int | None
    layer: int | None
    num_layers: int = 0
    total: float = 0.0
    regions: list[Region] | None = None
    keep: list[torch.Tensor] | None = None
    kept: list[int] = field(default_factory=list)
    factor: float | None = None
    residual: float | None = None
    infeasible: str | None = None

    @property
    def key(self) -> str:
        """The arm's key, with the seed where there is one."""
        return self.arm.key if self.seed is None else f"{self.arm.key}#{self.seed}"

    @property
    def meets_budget(self) -> bool:
        """Whether the method itself keeps what the budget says, and not the mask of its regions."""
        if self.arm.budget is None:
            return False
        return (
            self.arm.region_source == "none"
            or "tokens" in inspect.signature(load_object(self.arm.class_path)).parameters
        )

    def method(self, keys: Sequence[str]) -> Any:
        """The pruning method for a batch of questions with these keys; None for dense."""
        if self.arm.method == "dense":
            return None
        options = {k: _built(v, f"study arm {self.arm.key!r}: {k}") for k, v in self.arm.options.items()}
        if self.layer is not None:
            options["layer"] = self.layer
        if self.arm.positions is not None:
            options["positions"] = self.arm.positions
        cls = load_object(self.arm.class_path)
        accepted = inspect.signature(cls).parameters
        if self.meets_budget and "tokens" in accepted:
            options["tokens"] = self._tokens()
        if self.seed is not None and "seed" in accepted:
            # One draw per question, from its key: neither order nor batch size plays a part.
            options["seed"] = [zlib.crc32(f"{self.seed}-{key}".encode()) for key in keys]
        try:
            if self.meets_budget and "tokens" not in accepted:
                return cls.for_budget(
                    self._mean_tokens(), self.total, self.arm.budget_meaning, self.num_layers, **options
                )
            return cls(**options)
        except InfeasibleBudget:
            raise
        except (TypeError, ValueError) as error:
            raise UsageError(f"study arm {self.arm.key!r}: {error}") from None

    def _mean_tokens(self) -> float:
        budget = self.arm.budget
        assert budget is not None
        return budget * self.total if isinstance(budget, float) else float(budget)

    def _tokens(self) -> int | float:
        budget = self.arm.budget
        assert budget is not None
        if self.arm.budget_meaning != "layer_average":
            return budget
        if isinstance(budget, float) and self.layer is not None and self.layer < self.num_layers:
            return kept_for_layer_average(budget, 1.0, self.layer, self.num_layers)
        if len(set(self.kept)) > 1:  # the method takes one number, and a layer average is another one for every grid
            raise UsageError(
                f"study arm {self.arm.key!r}: a layer_average budget needs images of one token count, and these keep "
                f"{min(self.kept)} to {max(self.kept)}: give the budget as a share, or use budget_meaning post_prune"
            )
        return self.kept[0]


def _built(value: Any, where: str) -> Any:
    """An argument as its class takes it: `testbed:` names resolved, what has a `class_path` made, in lists as well."""
    if isinstance(value, str):
        return weights.resolve(value)
    if isinstance(value, Mapping) and "class_path" in value:
        return instantiate(value, where)
    return [_built(one, where) for one in value] if isinstance(value, list) else value


def check_arms(arms: Sequence[Arm], models: Mapping[str | None, VLM], grids: Sequence[Tokens]) -> None:
    """Build every run's method once, so that what cannot run fails before anything is localized or answered.

    `models` are those that answer, by the name that arms give them; None is the study's.

    Raises:
        UsageError: wrong or missing arguments of a method, a K above L, a budget that a method has no use for, a model
            that cannot be pruned, or one that is not there.
    """
    for arm in arms:
        if arm.model not in models:
            raise UsageError(f"study arm {arm.key!r}: its model {arm.model!r} was not loaded: give it in `models`")
        if arm.method == "dense":
            continue
        vlm = models[arm.model]
        try:
            check_model(vlm)
            for seed in arm.runs():
                _check_run(Run(arm, seed, _checked_layer(arm, vlm.num_layers), vlm.num_layers), grids)
        except InfeasibleBudget:
            continue  # the plan tells, in the arm's row
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"study arm {arm.key!r}: {error}") from None


def _check_run(run: Run, grids: Sequence[Tokens]) -> None:
    arm = run.arm
    if arm.region_source != "none":
        run.keep = []  # masks will be given, whatever they are
        if run.meets_budget:
            run.kept = _own_budget(arm, run.layer, run.num_layers, [grid.num_tokens for grid in grids])
        method = run.method([""])
        if isinstance(method, InnerLLM) and not method.needs_request:
            raise UsageError(f"study arm {arm.key!r}: {arm.method} ignores regions: leave region_source out")
    elif arm.budget is not None:
        cls = load_object(arm.class_path)
        if "tokens" not in inspect.signature(cls).parameters and not hasattr(cls, "for_budget"):
            raise UsageError(
                f"study arm {arm.key!r}: a budget needs a region_source, or a class with the argument `tokens` or the "
                "classmethod `for_budget`"
            )
        _fill(run, [], grids, {})
    check_method(run.method([""]), run.num_layers, requested=run.keep is not None)


def make_plan(
    arms: Sequence[Arm],
    layers: Mapping[str | None, int],
    keys: Sequence[str],
    grids: Sequence[Tokens],
    regions: Mapping[tuple[str, int | None], Sequence[Region]],
) -> list[Run]:
    """One `Run` per arm and seed.

    Args:
        layers: L of every model that answers, by the name that arms give it; None is the study's.
        keys: one unique key per question; ties of a budget are broken in their order, not in that of the data.
        grids: one token grid per question.
        regions: the regions of every (source name, seed) that an arm uses.

    Raises:
        UsageError: an arm's K is above L, or its budget above the tokens of an image.
    """
    runs = []
    for arm in arms:
        num_layers = layers[arm.model]
        layer, infeasible = _checked_layer(arm, num_layers), None
        mine = [Run(arm, seed, layer, num_layers) for seed in arm.runs()]
        for run in mine:
            try:
                _fill(run, keys, grids, regions)
            except InfeasibleBudget as error:
                infeasible = infeasible or str(error)
            except ValueError as error:
                raise UsageError(f"study arm {arm.key!r}: {error}") from None
        for run in mine:  # all seeds or none: a mean over those that happen to fit would be another control
            run.infeasible = infeasible
        runs += mine
    return runs


def _checked_layer(arm: Arm, num_layers: int) -> int | None:
    layer = num_layers if arm.layer == ALL else _layer(arm)
    if layer is not None and layer > num_layers:
        raise UsageError(f"study arm {arm.key!r}: layer {layer} is above {num_layers}, the model's decoder layers")
    return layer


def _layer(arm: Arm) -> int | None:
    """K of the arm: as given, or the default of its class; None for methods that have no such knob."""
    if arm.layer is not None:
        assert isinstance(arm.layer, int)
        return arm.layer
    knob = inspect.signature(load_object(arm.class_path)).parameters.get("layer")
    return None if knob is None or knob.default is inspect.Parameter.empty else knob.default


def _fill(
    run: Run,
    keys: Sequence[str],
    grids: Sequence[Tokens],
    regions: Mapping[tuple[str, int | None], Sequence[Region]],
) -> None:
    arm, totals, num_layers = run.arm, [grid.num_tokens for grid in grids], run.num_layers
    run.total = sum(totals) / len(totals)
    if arm.region_source == "none":
        run.kept = totals if arm.budget is None else _own_budget(arm, run.layer, num_layers, totals)
        run.method([""])  # may find the budget infeasible
        return
    if run.meets_budget:
        run.kept = _own_budget(arm, run.layer, num_layers, totals)
    run.regions = list(regions[arm.region_source, run.seed if arm.region_source == "random" else None])
    if isinstance(method := run.method([""]), PreLLM):  # takes the regions themselves
        run.kept = [method.count(grid) for grid in grids]
        return
    if arm.budget is None or run.meets_budget:
        run.keep = [region_mask(region, grid) for region, grid in zip(run.regions, grids, strict=True)]
    else:
        # At K = L no layer prunes, and a layer average says nothing about the mask.
        meaning = "post_prune" if run.layer == num_layers else arm.budget_meaning
        order = sorted(range(len(keys)), key=lambda index: keys[index])
        set_regions, set_grids = [run.regions[i] for i in order], [grids[i] for i in order]
        met = calibrate(set_regions, set_grids, arm.budget, meaning, run.layer, num_layers)  # type: ignore[arg-type]
        keep = dict(zip(order, met.keep, strict=True))
        run.keep, run.factor, run.residual = [keep[i] for i in range(len(keys))], met.factor, met.residual
    if not run.meets_budget:
        run.kept = [int(mask.sum()) for mask in run.keep]


def _own_budget(arm: Arm, layer: int | None, num_layers: int, totals: Sequence[int]) -> list[int]:
    """Tokens that a method without regions keeps of each image."""
    assert arm.budget is not None
    kept = []
    for total in totals:
        tokens = arm.budget * total if isinstance(arm.budget, float) else float(arm.budget)
        if tokens > total:
            raise ValueError(f"budget {arm.budget} is above {total}, the visual tokens of an image")
        if arm.budget_meaning == "layer_average" and layer is not None and layer < num_layers:
            tokens = kept_for_layer_average(tokens, total, layer, num_layers)
        kept.append(max(1, round(tokens)))
    return kept


def needed_sources(arms: Sequence[Arm]) -> list[tuple[str, int | None]]:
    """Every (source, seed) that the arms use, each once."""
    pairs: list[tuple[str, int | None]] = []
    for arm in arms:
        if arm.region_source != "none":
            pairs += [(arm.region_source, seed if arm.region_source == "random" else None) for seed in arm.runs()]
    return list(dict.fromkeys(pairs))


def collect_regions(
    sources: Mapping[tuple[str, int | None], RegionSource],
    samples: Sequence[Sample],
    images: Sequence[Image.Image],
) -> dict[tuple[str, int | None], list[Region]]:
    """The regions of `samples` (whose displayed images are given) from every source."""
    questions = [sample.question for sample in samples]
    return {pair: source(images, questions, samples) for pair, source in sources.items()}
