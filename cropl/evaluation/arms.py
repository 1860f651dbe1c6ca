"""The arms of a study: a method with all its knobs, one row of the table each. Pure configuration, no torch.

In a recipe every knob may be a list, and stands for one arm per value, so a table of twenty rows is four lines of YAML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from cropl.errors import UsageError, check_keys, nearest
from cropl.evaluation import schema

METHODS = {
    "dense": "cropl.pruning.dense.Dense",
    "divprune": "cropl.pruning.divprune.DivPrune",
    "fastv": "cropl.pruning.fastv.FastV",
    "hybrid": "cropl.pruning.hybrid.Hybrid",
    "ilp": "cropl.pruning.ilp.ILP",
    "plc": "cropl.pruning.plc.PLC",
    "prune": "cropl.pruning.ilp.ILP",
    "pyramiddrop": "cropl.pruning.pyramiddrop.PyramidDrop",
    "random": "cropl.pruning.random.RandomTokens",
    "schedule": "cropl.pruning.schedule.Schedule",
    "sparsevlm": "cropl.pruning.sparsevlm.SparseVLM",
    "sparsevlm+": "cropl.pruning.sparsevlm.SparseVLM",
    "uniform": "cropl.pruning.uniform.UniformTokens",
    "visionzip": "cropl.pruning.visionzip.VisionZip",
    "vispruner": "cropl.pruning.vispruner.VisPruner",
}
"""Short names of methods. Any other method is named by its class path."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "prune": {"layer": 0, "positions": "compact"},  # the paper's name for this ILP
    "sparsevlm+": {"recycle": 0.0},
}
"""What a short name says beside its class."""

SOURCES = ("gt", "predicted", "center", "random", "none", "file", "zero_shot")
MEANINGS = ("post_prune", "layer_average")
POSITIONS = ("original", "compact")
ALL = "all"
"""`layer: all` is K = L: every layer sees every token, so the answers must be the dense ones."""


@dataclass(frozen=True)
class Arm:
    """One row of the table: a method with all its knobs.

    Attributes:
        method: what the row calls it, lower case.
        class_path: the class that does it.
        region_source: where regions come from, "none" for methods without.
        layer: K; None is the method's own default, "all" is L.
        budget: mean tokens (int) or share of each image's own tokens (float); None keeps the regions as they are.
        budget_meaning: "post_prune" or "layer_average".
        positions: "original" or "compact"; None is the method's own default.
        seeds: a random control is run once per seed and averaged; empty otherwise.
        control: what is done to the image beforehand, one of `CONTROLS`, or None.
        model: the model that answers where it is another than the study's, such as one that was trained with PLC.
        options: further arguments of the class.
        label: what tells its model from the others of a study; None is the last part of its name.
    """

    method: str
    class_path: str
    region_source: str = "none"
    layer: int | str | None = None
    budget: int | float | None = None
    budget_meaning: str = "post_prune"
    positions: str | None = None
    seeds: tuple[int, ...] = ()
    control: str | None = None
    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    label: str | None = None

    @property
    def key(self) -> str:
        """A short unique name, as `predictions.jsonl` uses it: "ilp-predicted-k1-64"."""
        source = None if self.region_source == "none" else self.region_source
        parts = [self.method, self.model_name, self.control, source]
        parts += [None if self.layer is None else f"k{self.layer}", None if self.budget is None else str(self.budget)]
        parts += ["layer_average" if self.budget_meaning != "post_prune" else None]
        parts += [self.positions if self.positions and self.method != "prune" else None]
        options = {name: value for name, value in self.options.items() if value != self.model}
        preset = PRESETS.get(self.method, {})
        parts += [f"{name}={short(value)}" for name, value in sorted(options.items()) if preset.get(name) != value]
        return "-".join(part for part in parts if part)

    @property
    def model_name(self) -> str | None:
        """What tells its model from others: as much of its name as that takes, without an `export` at the end."""
        if self.model is None:
            return None
        name = self.label or _model_names([self.model])[self.model]
        return None if name == self.method else name

    def runs(self) -> list[int | None]:
        """One entry per run of this arm: its seeds, or a single None."""
        return list(self.seeds) or [None]


def short(value: Any) -> str:
    """An argument as keys and names tell it: "ILP(layer=1)+FastV(layer=3,tokens=32)" for a list of classes."""
    if isinstance(value, Mapping) and "class_path" in value:
        given = ",".join(f"{name}={short(one)}" for name, one in sorted((value.get("init_args") or {}).items()))
        return f"{str(value['class_path']).rpartition('.')[2]}({given})"
    return "+".join(map(short, value)) if isinstance(value, list) else str(value)


def _model_names(models: Sequence[str]) -> dict[str, str]:
    """A short name for each model: the last part of its own, and as many before it as tell it from all others."""
    parts: dict[str, list[str]] = {}
    for model in models:
        mine = [part for part in model.replace(":", "/").split("/") if part]
        parts[model] = mine[:-1] if mine[-1:] == ["export"] and len(mine) > 1 else mine
    names = {}
    for model, mine in parts.items():
        others = [other for name, other in parts.items() if name != model]
        ends = (mine[-n:] for n in range(1, len(mine) + 2) if all(other[-n:] != mine[-n:] for other in others))
        names[model] = "/".join(next(ends, [model])) or model
    return names


def read_arms(arms: Any, seeds: tuple[int, ...]) -> list[Arm]:
    """The arms of a recipe's list, every knob checked; random ones get these seeds where they name none.

    Raises:
        UsageError: names the arm and the key.
    """
    if not isinstance(arms, Sequence) or isinstance(arms, str) or not all(isinstance(a, Mapping) for a in arms):
        raise UsageError("study: arms must be a list of mappings, e.g. [{method: ilp, layer: 1, budget: 64}]")
    found = [arm for entry in arms for arm in _expand(entry, seeds)]
    names = _model_names([arm.model for arm in found if arm.model])
    return [replace(arm, label=names[arm.model]) if arm.model else arm for arm in found]


def _expand(entry: Mapping[str, Any], seeds: tuple[int, ...]) -> list[Arm]:
    """All arms of one entry: the product of its lists, in the order written."""
    knobs = ("region_source", "layer", "budget", "budget_meaning", "positions")
    check_keys(dict(entry), ["method", "init_args", "model", "seeds", *knobs], "study arms")
    method = str(entry.get("method", ""))
    if "." not in method and method not in METHODS:
        raise UsageError(f"study arms: unknown method {method!r}{nearest(method, tuple(METHODS))} (or a class path)")
    where = f"study arm {method!r}"
    options = schema.mapping(entry.get("init_args"), f"{where}: init_args")
    schema.text(entry, "model", null=True)
    seeds = schema.integers(entry.get("seeds", seeds), f"{where}: seeds")
    lists = [schema.each(entry.get(knob)) for knob in knobs]
    if [] in lists:
        raise UsageError(f"{where}: {knobs[lists.index([])]} is an empty list, which stands for no arm at all")
    model = entry.get("model")
    return [_arm(method, dict(zip(knobs, values)), options, seeds, model) for values in product(*lists)]


def _arm(
    method: str, knobs: dict[str, Any], options: Mapping[str, Any], seeds: tuple[int, ...], model: str | None = None
) -> Arm:
    where = f"study arm {method!r}"
    if METHODS.get(method, method) == METHODS["dense"]:
        given = {**knobs, "init_args": options or None, "model": model}
        for knob in ("region_source", "layer", "budget", "positions", "init_args", "model"):
            if given[knob] is not None and (knob, given[knob]) != ("region_source", "none"):
                raise UsageError(
                    f"{where}: {knob} {given[knob]!r} has no effect, dense is the study's model with every token: "
                    "leave it out"
                )
    source = knobs["region_source"] or "none"
    schema.one_of(source, SOURCES, f"{where} region_source")
    meaning = knobs["budget_meaning"] or "post_prune"
    schema.one_of(meaning, MEANINGS, f"{where} budget_meaning")
    layer, budget, positions = knobs["layer"], knobs["budget"], knobs["positions"]
    if positions is not None:
        schema.one_of(positions, POSITIONS, f"{where} positions")
    if method == "prune":
        if layer not in (None, 0) or positions not in (None, "compact"):
            raise UsageError(f"{where}: is ILP with layer 0 and compact positions; use method ilp for anything else")
        layer, positions = PRESETS[method]["layer"], PRESETS[method]["positions"]
    elif method in PRESETS:
        options = {**PRESETS[method], **options}
    if layer is not None and layer != ALL and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 0):
        raise UsageError(f"{where}: layer {layer!r} must be an integer from 0 to L, or 'all'")
    if budget is not None:
        check_budget(budget, where)
    if method in ("ilp", "plc", "prune") and source == "none":
        raise UsageError(f"{where}: needs a region_source ({', '.join(s for s in SOURCES if s != 'none')})")
    if method == "random" and budget is None:
        raise UsageError(f"{where}: random tokens need a budget")
    if method == "plc":
        if budget is not None or layer is not None or positions is not None:
            raise UsageError(
                f"{where}: keeps as many tokens as it was trained with: leave budget, layer, positions out"
            )
        if "compressor" not in options:
            if model is None:
                raise UsageError(f"{where}: needs the key 'model', the folder of an exported PLC (or testbed:plc)")
            options = {**options, "compressor": model}
    random = method == "random" or source == "random"
    name = method.rpartition(".")[2].lower() if "." in method else method
    return Arm(
        name, METHODS.get(method, method), source, layer, budget, meaning, positions,
        seeds if random else (), None, model, dict(options),
    )  # fmt: skip


def check_budget(budget: Any, where: str) -> None:
    """UsageError unless `budget` is a positive token count, or a share in (0, 1]."""
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise UsageError(f"{where}: budget {budget!r} must be a number of tokens, or a share in (0, 1]")
    if not (0 < budget <= 1 if isinstance(budget, float) else budget >= 1):
        raise UsageError(f"{where}: budget {budget!r} must be at least 1 token (an integer), or a share in (0, 1]")
