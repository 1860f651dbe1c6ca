"""What a study is: one model, one set of questions, and a list of arms to compare. Pure configuration, no torch.

`Study.from_config` checks every key and value before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cropl.errors import UsageError, check_keys
from cropl.evaluation import schema
from cropl.evaluation.arms import METHODS, Arm, read_arms

CONTROLS = ("blank_image", "evidence_masked", "evidence_only")


@dataclass(frozen=True)
class Study:
    """A checked study. The recipe's keys are these fields (and `vars`, free for interpolation).

    Attributes:
        model: folder or hub name of the model that answers; `testbed:NAME` is a model that ships with cropl.
        family: class path of the `VLM` that wraps every model that answers; None goes by the checkpoint's model type.
        localizer: folder of the localizer, for the sources predicted, center and random; None where none is needed.
        data: `class_path` and `init_args` of something that returns a list of `Sample`s.
        arms: what to compare; a dense arm is put first where there is none.
        benchmark: what rows call the data.
        scorer: whose official rules score the answers, by name or class path; None is exact match.
        annotations: the scorer's official files; none where nobody publishes the answers, and a server scores them.
        prompt: class path of a function from a `Sample` to what the model is asked; None asks the sample's own prompt.
        system: put LLaVA's system sentence into prompts, as its own evaluation does; None is as the model was trained.
        cache: folder where regions stay for other studies of the same questions; None keeps them with this one.
        regions: a `regions.jsonl` for the source `file`; None where none is needed.
        grounding: model of the source `zero_shot`.
        controls: control runs of the dense model, see `CONTROLS`.
        seeds: of the random controls.
        seed: of the bootstrap.
        limit: use only the first so many questions.
        batch_size, max_new_tokens, device, dtype, attention: how it is run. None is the model's own choice.
        protocol: how LLaVA-NeXT turns images into tokens, `anyres` or `fixed`; None is `anyres`.
        chunk_images: images whose features are held at a time.
        bootstrap: resamples of the intervals.
        gallery: pictures per group of the report; 0 leaves the gallery out.
        out: where results go.
    """

    model: str
    data: Mapping[str, Any]
    arms: tuple[Arm, ...]
    family: str | None = None
    localizer: str | None = None
    benchmark: str = "benchmark"
    scorer: str | None = None
    annotations: tuple[str, ...] = ()
    prompt: str | None = None
    system: bool | None = None
    cache: str | None = None
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
    protocol: str | None = None
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
        for key in ("family", "localizer", "grounding", "regions", "out", "device", "dtype", "attention", "protocol",
                    "scorer", "prompt", "cache"):  # fmt: skip
            schema.text(given, key, null=True)
        annotations = tuple(schema.each(given.get("annotations") or []))
        if not all(isinstance(file, str) and file for file in annotations):
            raise UsageError(f"study: annotations {list(annotations)!r} must be a list of files")
        if annotations and not given.get("scorer"):
            raise UsageError("study: annotations are of no use without a scorer")
        if given.get("system") not in (None, True, False):
            raise UsageError(f"study: system {given['system']!r} must be true, false or null")
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
        arms = read_arms(given["arms"], seeds)
        dense = [Arm("dense", METHODS["dense"], control=control) for control in (None, *controls)]
        arms = dense + [arm for arm in arms if arm != dense[0]]
        keys = [arm.key for arm in arms]
        for key in keys:
            if keys.count(key) > 1:
                raise UsageError(f"study: the arm {key!r} is listed twice")
        made = {"arms": tuple(arms), "seeds": seeds, "controls": controls, "annotations": annotations}
        study = cls(**{**given, **made})
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
