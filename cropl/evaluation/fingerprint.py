"""What answers and regions depend on, in values that can be compared: under other ones no run is continued."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cropl
from cropl.evaluation.arm_run import Run
from cropl.evaluation.facts import commit
from cropl.evaluation.study import Study
from cropl.models.vlm import VLM
from cropl.recipe import load_object
from cropl.testbed import weights

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer


def of_questions(samples: Sequence[Sample]) -> str:
    """Of everything that is asked, in its order."""
    return digest([s.key, s.question, s.asked, s.width, s.height, s.boxes, s.answers] for s in samples)


def of_regions(
    study: Study, samples: Sequence[Sample], localizer: Localizer | None, grounding: VLM | None
) -> dict[str, Any]:
    """What the regions that models tell depend on."""
    told: dict[str, Any] = {"questions": of_questions(samples), "code": code()}
    for name, model, vlm in (
        ("localizer", study.localizer, localizer.vlm if localizer else None),
        ("grounding", study.grounding, grounding),
    ):
        if vlm is not None:
            told[name] = _model(str(model), vlm) | {"max_pixels": vlm.max_pixels}
    if localizer is not None:
        told["readout"] = [str(localizer.readout), localizer.codec.style]
    return told


def of_answers(study: Study, samples: Sequence[Sample], models: Mapping[str | None, VLM]) -> dict[str, Any]:
    """What answers depend on beside what a run keeps (`of_run`)."""
    return {
        "questions": of_questions(samples),
        "max_new_tokens": study.max_new_tokens,
        "code": code(),
        **{f"model {name or study.model}": _model(name or study.model, vlm) for name, vlm in models.items()},
    }


def of_run(run: Run) -> str:
    """Of a method, its arguments, its source where it is not cropl's, and what it keeps of every question."""
    cls = load_object(run.arm.class_path)
    source = getattr(sys.modules[cls.__module__], "__file__", None)
    own = cls.__module__.partition(".")[0] == "cropl" or source is None
    return digest([
        asdict(run.arm), run.seed, run.layer, run.kept, None if own else Path(str(source)).read_text(encoding="utf-8"),
        [region.as_tuple() for region in run.regions or []],
        [hashlib.sha1(mask.numpy().tobytes(), usedforsecurity=False).hexdigest() for mask in run.keep or []],
    ])[:12]  # fmt: skip


def code() -> str:
    """The commit that runs; of an installed package its version; of edited sources the time of the last change."""
    found = commit()
    if found is not None and not found.endswith("-dirty"):
        return found
    files = Path(cropl.__file__).parent.rglob("*.py")
    return f"{cropl.__version__}, changed {max(file.stat().st_mtime_ns for file in files)}"


def digest(values: Iterable[Any]) -> str:
    """Equal for equal values."""
    made = hashlib.sha1(usedforsecurity=False)
    for value in values:
        made.update(json.dumps(value, default=str).encode())
        made.update(b"\n")
    return made.hexdigest()


def _model(name: str, vlm: VLM) -> dict[str, Any]:
    """A checkpoint: the revision on the hub, or names, sizes and times of a folder's files; and how it is run."""
    folder = Path(weights.resolve(name))
    files = sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")) if folder.is_dir() else []
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {
        "name": name,
        "files": digest(stats) if stats else getattr(vlm.model.config, "_commit_hash", None),
        "dtype": str(vlm.model.dtype),
        "device": vlm.device.type,
        "attention": vlm.decoder.config._attn_implementation,
        "protocol": vlm.protocol,
        "system": getattr(vlm, "system", None),
    }
