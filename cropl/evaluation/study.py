"""What a study is: one model, one set of questions, and a list of arms to compare. Pure configuration, no torch.

An arm is a method with its knobs. In a recipe every knob may be a list, and stands for one arm per value, so a table of
twenty rows is four lines of YAML. `Study.from_config` checks every key and value before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any

from cropl.errors import UsageError, check_keys, nearest
from cropl.evaluation import schema

METHODS = {
    "dense": "cropl.pruning.dense.Dense",
    "divprune": "cropl.pruning.divprune.DivPrune",
    "fastv": "cropl.pruning.fastv.FastV",
    "ilp": "cropl.pruning.ilp.ILP",
    "plc": "cropl.pruning.plc.PLC",
    "prune": "cropl.pruning.ilp.ILP",  # the paper's name for ILP(layer=0, positions="compact")
    "pyramiddrop": "cropl.pruning.pyramiddrop.PyramidDrop",
    "random": "cropl.pruning.random.RandomTokens",
    "sparsevlm": "cropl.pruning.sparsevlm.SparseVLM",
    "uniform": "cropl.pruning.uniform.UniformTokens",
}
"""Short names of methods. Any other method is named by its class path."""

SOURCES = ("gt", "predicted", "center", "random", "none", "file", "zero_shot")
CONTROLS = ("blank_image", "evidence_masked", "evidence_only")
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
        parts += [f"{name}={value}" for name, value in sorted(options.items())]
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


@dataclass(frozen=True)
class Study:
    """A checked study. The recipe's keys are these fields (and `vars`, free for interpolation).

    Attributes:
        model: folder or hub name of the model that answers; `testbed:NAME` is a model that ships with cropl.
        localizer: folder of the localizer, for the sources predicted, center and random; None where none is needed.
        data: `class_path` and `init_args` of something that returns a list of `Sample`s.
        arms: what to compare; a dense arm is put first where there is none.
        benchmark: what rows call the data.
        regions: a `regions.jsonl` for the source `file`; None where none is needed.
        grounding: model of the source `zero_shot`.
        controls: control runs of the dense model, see `CONTROLS`.
        seeds: of the random controls.
        seed: of the bootstrap.
        limit: use only the first so many questions.
        batch_size, max_new_tokens, device, dtype, attention: how it is run. None is the model's own choice.
        chunk_images: images whose features are held at a time.
        bootstrap: resamples of the intervals.
        gallery: pictures per group of the report; 0 leaves the gallery out.
        out: where results go.
    """

    model: str
    data: Mapping[str, Any]
    arms: tuple[Arm, ...]
    localizer: str | None = None
    benchmark: str = "benchmark"
    regions: str | None = None
    grounding: str | None = None
    controls: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    seed: int = 0
    limit: int | None = None
    batch_size: int = 16
    max_new_tokens: int = 16
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    chunk_images: int = 64
    bootstrap: int = 2000
    gallery: int = 6
    out: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Study:
        """Check a merged recipe. UsageError names the key, and the nearest valid one for a typo."""
        known = [f.name for f in fields(cls)]
        given = {key: value for key, value in config.items() if key != "vars"}
        check_keys(given, [*known, "vars"], "study")
        for key in ("model", "data", "arms"):
            if not given.get(key):
                raise UsageError(f"study: key {key!r} is missing")
        for key in ("batch_size", "max_new_tokens", "chunk_images", "bootstrap"):
            schema.integer(given, key, least=1)
        for key in ("seed", "gallery"):
            schema.integer(given, key, least=0)
        schema.integer(given, "limit", least=1, null=True)
        for key in ("model", "benchmark"):
            schema.text(given, key)
        for key in ("localizer", "grounding", "regions", "out", "device", "dtype", "attention"):
            schema.text(given, key, null=True)
        data = given["data"]
        if not isinstance(data, Mapping) or "class_path" not in data:
            raise UsageError("study: data needs a class_path (and init_args), e.g. cropl.testbed.samples.samples")
        check_keys(dict(data), ["class_path", "init_args"], "study data")
        if not isinstance(data["class_path"], str):
            raise UsageError(f"study data: class_path {data['class_path']!r} must be text")
        schema.mapping(data.get("init_args"), "study data: init_args")
        seeds = schema.integers(given.get("seeds", cls.seeds), "study: seeds")
        controls = tuple(schema.each(given.get("controls") or []))
        for control in controls:
            schema.one_of(control, CONTROLS, "study controls")
        arms = [arm for entry in _entries(given["arms"]) for arm in _expand(entry, seeds)]
        dense = Arm("dense", METHODS["dense"])
        names = _model_names([arm.model for arm in arms if arm.model])
        arms = [replace(arm, label=names[arm.model]) if arm.model else arm for arm in arms]
        arms = [dense, *(Arm("dense", METHODS["dense"], control=c) for c in controls)] + [a for a in arms if a != dense]
        keys = [arm.key for arm in arms]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"study: the arm {key!r} is listed twice")
        study = cls(**{**given, "arms": tuple(arms), "seeds": seeds, "controls": controls})
        study._check_sources()
        return study

    def _check_sources(self) -> None:
        used = {arm.region_source for arm in self.arms}
        if used & {"predicted", "center", "random"} and not (self.localizer or self.regions or self.grounding):
            source = sorted(used & {"predicted", "center", "random"})[0]
            raise UsageError(
                f"study: region_source {source!r} needs a localizer (its regions, or their size): set localizer"
            )
        for source, key in (("file", "regions"), ("zero_shot", "grounding")):
            if source in used and not getattr(self, key):
                raise UsageError(f"study: region_source {source!r} needs the key {key!r}")


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


def _entries(arms: Any) -> list[Mapping[str, Any]]:
    if not isinstance(arms, Sequence) or isinstance(arms, str) or not all(isinstance(a, Mapping) for a in arms):
        raise UsageError("study: arms must be a list of mappings, e.g. [{method: ilp, layer: 1, budget: 64}]")
    return list(arms)


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
        layer, positions = 0, "compact"
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
