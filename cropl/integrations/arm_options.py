"""One arm of a study, from flat arguments: what prunes, how much stays of each image, and where regions come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from cropl.errors import UsageError, check_keys
from cropl.evaluation import schema
from cropl.evaluation.arms import METHODS, Arm, read_arms
from cropl.models import region_sources as sources
from cropl.models.loading import load_config
from cropl.models.localizer import Localizer
from cropl.models.vlm import VLM, load_vlm

MEANINGS = {"per_image": "post_prune", "layer_average": "layer_average"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
SOURCES = ("predicted", "center", "random", "none", "file", "zero_shot")


@dataclass(frozen=True)
class ArmOptions:
    """Checked arguments.

    Attributes:
        pretrained: folder or hub name of the model that answers, or `testbed:NAME`.
        method: short name or class path, as in a study.
        region_source: one of `SOURCES`; None is whatever is given to tell regions, else none.
        layer, positions: the method's knobs; None is its own default.
        keep: tokens (int) or share (float) that each image keeps; None keeps what its region covers.
        meaning: "per_image", or "layer_average" where `keep` is what an image's layers see on average.
        factor: instead of `keep`, what regions are scaled by: the `budget_factor` of a study's row meets its mean.
        seed: of random tokens and regions.
        localizer, grounding, regions: a trained localizer, an untrained Qwen2-VL, or a `regions.jsonl`.
        init_args: further arguments of the method's class, a mapping or JSON.
        device, dtype, attn, protocol, system: how the model is loaded, see a study (`attn` is its `attention`).
    """

    pretrained: str
    method: str = "ilp"
    region_source: str | None = None
    layer: int | str | None = None
    keep: int | float | None = None
    meaning: str = "per_image"
    factor: int | float | None = None
    positions: str | None = None
    seed: int = 0
    localizer: str | None = None
    grounding: str | None = None
    regions: str | None = None
    init_args: Mapping[str, Any] | str | None = None
    device: str | None = None
    dtype: str | None = None
    attn: str | None = None
    protocol: str | None = None
    system: bool | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> ArmOptions:
        """UsageError for a key that is none of the attributes, or a value that cannot be."""
        names = [f.name for f in fields(cls)]
        given = {name: value for name, value in given.items() if value is not None}
        check_keys(given, names, "model_args")
        texts = ("pretrained", "method", "region_source", "positions", "localizer", "grounding", "regions")
        for name in (*texts, "meaning", "device", "dtype", "attn", "protocol"):
            if name in given and not (isinstance(given[name], str) and given[name]):
                raise UsageError(f"model_args {name} {given[name]!r}: must be text")
        if "pretrained" not in given:
            raise UsageError("model_args: pretrained is missing: the folder or hub name of the model that answers")
        options = cls(**given)
        schema.integers(options.seed, "model_args seed")
        if options.system not in (None, True, False):
            raise UsageError(f"model_args system {options.system!r}: must be true or false")
        schema.one_of(options.meaning, tuple(MEANINGS), "model_args meaning")
        if options.dtype is not None:
            schema.one_of(options.dtype, tuple(DTYPES), "model_args dtype")
        if options.region_source is not None:
            schema.one_of(options.region_source, SOURCES, "model_args region_source")
        if options.factor is not None:
            if isinstance(options.factor, bool) or not isinstance(options.factor, int | float) or options.factor <= 0:
                raise UsageError(f"model_args factor {options.factor!r}: must be a number above 0")
            if options.keep is not None:
                raise UsageError("model_args: factor scales regions, instead of keep: give one of the two")
        options.check_sources()
        return options

    @property
    def source(self) -> str:
        """Where regions come from."""
        told = {"localizer": "predicted", "regions": "file", "grounding": "zero_shot"}
        return self.region_source or next((told[name] for name in told if getattr(self, name)), "none")

    def check_sources(self) -> None:
        """UsageError unless what tells regions and what asks for them go together."""
        told = [name for name in ("localizer", "regions", "grounding") if getattr(self, name)]
        if len(told) > 1:
            raise UsageError(f"model_args: {' and '.join(told)} both tell regions: give one")
        if self.source == "none" and (told or self.factor is not None):
            raise UsageError(f"model_args: {(told or ['factor'])[0]} has no effect without regions: leave it out")
        needed = {"predicted": "localizer", "file": "regions", "zero_shot": "grounding"}.get(self.source)
        if needed is not None and told != [needed]:
            raise UsageError(f"model_args: region_source {self.source} needs {needed}, and nothing else")
        if self.source in ("center", "random") and not told:
            raise UsageError(f"model_args: region_source {self.source} takes the size of others: set localizer")

    @property
    def arm(self) -> Arm:
        """As a study has it; UsageError names what is wrong."""
        options = json_mapping(self.init_args)
        if METHODS.get(self.method) == METHODS["plc"]:
            options = {"compressor": self.pretrained, **options}
        entry: dict[str, Any] = {
            "method": self.method, "region_source": self.source, "layer": self.layer, "budget": self.keep,
            "budget_meaning": MEANINGS[self.meaning], "positions": self.positions, "init_args": options or None,
        }  # fmt: skip
        (arm,) = read_arms([entry], (self.seed,))
        return arm

    def open_vlm(self) -> VLM:
        """Load the model that answers."""
        options: dict[str, Any] = {"dtype": self._dtype, "device": self.device}
        if self.attn is not None:
            options["attn_implementation"] = self.attn
        for name, families in (("protocol", ("llava_next",)), ("system", ("llava", "llava_next"))):
            if (value := getattr(self, name)) is not None:
                if (family := load_config(self.pretrained).model_type) not in families:
                    raise UsageError(
                        f"model_args {name} {value!r}: {self.pretrained} is a {family} model, which has none"
                    )
                options[name] = value
        return load_vlm(self.pretrained, **options)

    def open_source(self, batch_size: int) -> sources.RegionSource | None:
        """Load what tells regions; None where nothing asks for them."""
        if self.source == "none":
            return None
        told: sources.RegionSource
        if self.localizer is not None:
            localizer = Localizer.from_pretrained(self.localizer, dtype=self._dtype, device=self.device)
            told = sources.Predicted(localizer, batch_size)
        elif self.grounding is not None:
            vlm = load_vlm(self.grounding, self._dtype, self.device)
            told = sources.ZeroShotGrounding(vlm, batch_size)
        else:
            assert self.regions is not None
            told = sources.FromFile(self.regions)
        if self.source == "center":
            return sources.Center(told)
        return sources.Random(told, self.seed) if self.source == "random" else told

    @property
    def _dtype(self) -> torch.dtype | str | None:
        return None if self.dtype is None else DTYPES[self.dtype]  # type: ignore[return-value]


def json_mapping(given: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """A mapping, or what JSON says; UsageError if that is none."""
    try:
        found = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError as error:
        raise UsageError(f"model_args init_args: no JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise UsageError(f"model_args init_args {given!r}: must be a mapping")
    return dict(found)
