"""What answers and regions depend on, in values that can be compared: under other ones no run is continued."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

import cropl
from cropl.evaluation.arm_run import Run
from cropl.evaluation.facts import hardware, versions
from cropl.evaluation.pictures import image_key
from cropl.evaluation.study import Study
from cropl.models.vlm import VLM
from cropl.recipe import load_object
from cropl.testbed import weights

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer


SAMPLES, SAMPLE = 32, 1 << 16
"""Pieces of a file of weights that are looked at, and the bytes of each."""


def of_questions(samples: Sequence[Sample]) -> str:
    """Of everything that is asked, in its order, and of what it is asked about."""
    images: dict[str, str] = {}
    for sample in samples:
        images.setdefault(image_key(sample), _image(sample.image))
    return digest(
        [s.key, s.question, s.asked, s.width, s.height, s.boxes, s.answers, images[image_key(s)]] for s in samples
    )


def _image(image: Image.Image | bytes | Path | None) -> str:
    """Of a file its name, size and time: reading thousands of them would take longer than answering."""
    if image is None:
        return ""
    if isinstance(image, Image.Image):
        return _hash(image.tobytes())
    if isinstance(image, bytes):
        return _hash(image)
    stat = Path(image).stat()
    return f"{Path(image).name} {stat.st_size} {stat.st_mtime_ns}"


def of_regions(
    study: Study, samples: Sequence[Sample], localizer: Localizer | None, grounding: VLM | None
) -> dict[str, Any]:
    """What the regions that models tell depend on."""
    told: dict[str, Any] = {"questions": of_questions(samples), "code": code(), "versions": versions()}
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
        "versions": versions(),
        "hardware": hardware(next(iter(models.values())).device),
        **{f"model {name or study.model}": _model(name or study.model, vlm) for name, vlm in models.items()},
    }


def of_run(run: Run) -> str:
    """Of a method, its arguments, its source where it is not cropl's, and what it keeps of every question."""
    return digest([
        asdict(run.arm), run.seed, run.layer, run.kept, _sources(run.arm.class_path), _parts(run.arm.options),
        [region.as_tuple() for region in run.regions or []],
        [_hash(mask.numpy().tobytes()) for mask in run.keep or []],
    ])[:12]  # fmt: skip


def _parts(value: Any) -> list[Any]:
    """Of all classes and checkpoints that an arm's arguments name, at any depth."""
    if isinstance(value, Mapping):
        own = [_sources(value["class_path"])] if isinstance(value.get("class_path"), str) else []
        return own + [part for one in value.values() for part in _parts(one)]
    if isinstance(value, (list, tuple)):
        return [part for one in value for part in _parts(one)]
    return [_checkpoint(value)] if isinstance(value, str) else []


def _sources(class_path: str) -> str | None:
    """`_source_of` what a dotted path names."""
    return _source_of(load_object(class_path))


def _source_of(kind: Any) -> str | None:
    """The text of the file that a class is in, unless it is one of cropl's: `code` has those."""
    module = kind.__module__
    file = getattr(sys.modules[module], "__file__", None)
    return None if file is None or module.partition(".")[0] == "cropl" else Path(file).read_text(encoding="utf-8")


@cache
def code() -> str:
    """Of cropl's own sources."""
    root = Path(cropl.__file__).parent
    return digest([file.relative_to(root).as_posix(), _hash(file.read_bytes())] for file in sorted(root.rglob("*.py")))


def digest(values: Iterable[Any]) -> str:
    """Equal for equal values."""
    made = hashlib.sha1(usedforsecurity=False)
    for value in values:
        made.update(json.dumps(value, default=str).encode())
        made.update(b"\n")
    return made.hexdigest()


def _hash(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _model(name: str, vlm: VLM) -> dict[str, Any]:
    """A checkpoint, or the revision on the hub, and how it is run."""
    return {
        "name": name,
        "family": [type(vlm).__qualname__, _source_of(type(vlm))],
        "files": _checkpoint(name) or getattr(vlm.model.config, "_commit_hash", None),
        "dtype": str(vlm.model.dtype),
        "device": vlm.device.type,
        "attention": vlm.decoder.config._attn_implementation,
        "protocol": vlm.protocol,
        "system": getattr(vlm, "system", None),
    }


def _checkpoint(name: str) -> str | None:
    """Of a folder's settings, and of sizes and samples of its weights; None for anything but a folder with some."""
    folder = Path(weights.resolve(name))
    weighty = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not weighty:
        return None
    settings = [[file.name, _hash(file.read_bytes())] for file in sorted(folder.glob("*.json"))]
    return digest([*settings, *([file.name, file.stat().st_size, _sampled(file)] for file in weighty)])


def _sampled(file: Path) -> str:
    """Of some of the bytes from the whole length of a file: other weights differ everywhere."""
    size = file.stat().st_size
    with open(file, "rb") as opened:
        return _hash(b"".join(_at(opened, size * place // SAMPLES) for place in range(SAMPLES)))


def _at(file: BinaryIO, offset: int) -> bytes:
    file.seek(offset)
    return file.read(SAMPLE)
