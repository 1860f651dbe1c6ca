"""Decides, before anything is answered, which tokens every run keeps for every question.

A budget is a promise about the mean over the whole set, so it needs all the regions at once. Answering can then go
through the images in any order and in any batches, in one process or in many, with the same result.

Shapes: V visual tokens of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cropl.budget import InfeasibleBudget, calibrate
from cropl.errors import UsageError
from cropl.evaluation.arm_run import Run, default_of
from cropl.evaluation.arms import ALL, Arm
from cropl.grid import Region
from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, PreLLM
from cropl.pruning.checks import check_method, check_model
from cropl.pruning.compression import Compression
from cropl.pruning.request import region_mask
from cropl.tiling import Tokens


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
                _check_run(Run(arm, seed, _checked_layer(arm, vlm.num_layers), vlm.num_layers), vlm, grids)
        except InfeasibleBudget:
            continue  # the plan tells, in the arm's row
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"study arm {arm.key!r}: {error}") from None


def _check_run(run: Run, vlm: VLM, grids: Sequence[Tokens]) -> None:
    arm, takes_regions = run.arm, run.arm.region_source != "none"
    if not takes_regions and arm.budget is not None and not run.can_meet_budget:
        raise UsageError(
            f"study arm {arm.key!r}: a budget needs a region_source, or a class with the argument `tokens` or the "
            "classmethod `for_budget`"
        )
    run.count([grid.num_tokens for grid in grids])
    method = run.method([""])
    if takes_regions and isinstance(method, InnerLLM) and not method.needs_request:
        raise UsageError(f"study arm {arm.key!r}: {arm.method} ignores regions: leave region_source out")
    check_method(method, run.num_layers, requested=takes_regions)
    if isinstance(method, PreLLM):
        Compression(method, vlm.class_token).watch(vlm).remove()  # not every family shows its tower
        for grid in grids:
            if (made := method.count(grid)) > grid.num_tokens:
                raise ValueError(f"{arm.method} makes {made} tokens of an image that has {grid.num_tokens}")


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
    found: int | None = default_of(arm, "layer")
    return found


def _fill(
    run: Run,
    keys: Sequence[str],
    grids: Sequence[Tokens],
    regions: Mapping[tuple[str, int | None], Sequence[Region]],
) -> None:
    arm = run.arm
    run.count([grid.num_tokens for grid in grids])
    method = run.method([""])  # may find the budget infeasible
    if arm.region_source == "none":
        return
    run.regions = list(regions[arm.region_source, run.seed if arm.region_source == "random" else None])
    if isinstance(method, PreLLM):  # takes the regions themselves
        run.kept = [method.count(grid) for grid in grids]
    elif arm.budget is None or run.meets_budget:
        run.keep = [region_mask(region, grid) for region, grid in zip(run.regions, grids, strict=True)]
    else:
        _calibrate(run, keys, grids, run.regions)
    if run.keep is not None and not run.meets_budget:
        run.kept = [int(mask.sum()) for mask in run.keep]


def _calibrate(run: Run, keys: Sequence[str], grids: Sequence[Tokens], regions: Sequence[Region]) -> None:
    """Scale the regions of the whole set until they meet the budget on average."""
    arm = run.arm
    assert arm.budget is not None
    # At K = L no layer prunes, and a layer average says nothing about the mask.
    meaning = "post_prune" if run.layer == run.num_layers else arm.budget_meaning
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    set_regions, set_grids = [regions[i] for i in order], [grids[i] for i in order]
    met = calibrate(set_regions, set_grids, arm.budget, meaning, run.layer, run.num_layers)  # type: ignore[arg-type]
    keep = dict(zip(order, met.keep, strict=True))
    run.keep, run.factor, run.residual = [keep[i] for i in range(len(keys))], met.factor, met.residual


def needed_sources(arms: Sequence[Arm]) -> list[tuple[str, int | None]]:
    """Every (source, seed) that the arms use, each once."""
    pairs: list[tuple[str, int | None]] = []
    for arm in arms:
        if arm.region_source != "none":
            pairs += [(arm.region_source, seed if arm.region_source == "random" else None) for seed in arm.runs()]
    return list(dict.fromkeys(pairs))
