"""The model card: what an exported checkpoint is, what it was made of, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

from cropl import __version__

_FAMILIES = {
    "llava": ("LlavaForConditionalGeneration", ["AutoProcessor"]),
    "llava_next": ("LlavaNextForConditionalGeneration", ["AutoProcessor"]),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", ["AutoTokenizer", "AutoImageProcessor"]),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", ["AutoTokenizer", "AutoImageProcessor"]),
}

_WITH_PLC = """from cropl import PLC, Localizer, load_vlm, pruned

vlm, plc = load_vlm("PATH"), PLC.from_pretrained("PATH")
region, = Localizer.from_pretrained("LOCALIZER").locate([image], [question])
inputs = vlm.inputs([image], [question])
with pruned(vlm, plc, regions=[region], grids=inputs.grids):
    answer, = vlm.generate(inputs)"""


@dataclass(frozen=True)
class Card:
    """What a model card says of a training.

    Attributes:
        what: one sentence; what the model is.
        base: folder or hub name of the model that it was trained from; empty for the one that its config names.
        recipe: the training recipe, as YAML.
        data: what it was trained on.
        metrics: validation metrics by name.
        steps: optimizer steps; None if not known.
        compressed: whether it answers from visual tokens that PLC has compressed, with the compressor beside it.
    """

    what: str = ""
    base: str = ""
    recipe: str = ""
    data: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    compressed: bool = False

    def text(self, config: Any) -> str:
        """The card as Markdown with the front matter of model hubs.

        Args:
            config: of the exported model.
        """
        base = self.base or str(getattr(config, "_name_or_path", "") or "")
        parts = [self._front(base), f"# {self.what or f'A {config.model_type} model trained with cropl'}", ""]
        parts += [self._origin(base), ""]
        if self.metrics:
            rows = [f"| {name} | {value:.4g} |" for name, value in sorted(self.metrics.items())]
            parts += ["## Validation", "", "| metric | value |", "|---|---|", *rows, ""]
        parts += ["## Use", "", "With cropl, which prepares pictures and prompts as in training:", ""]
        parts += ["```python", _WITH_PLC if self.compressed else _with_cropl(config), "```", ""]
        if self.compressed:
            parts += ["`transformers` alone loads the language model too, but feeds it all visual tokens:", ""]
        else:
            parts += ["With `transformers` alone:", ""]
        parts += ["```python", _with_transformers(config), "```", ""]
        if config.model_type == "llava":
            parts += ["The checkpoint's own processor crops pictures to a square; in training they were padded.", ""]
        parts += ["## Licence", "", _licence(base), ""]
        if self.recipe:
            parts += ["## Recipe", "", "```yaml", self.recipe.strip(), "```", ""]
        return "\n".join(parts)

    def _front(self, base: str) -> str:
        lines = ["---", "library_name: transformers", "pipeline_tag: image-text-to-text", "tags: [cropl]"]
        if base.count("/") == 1 and not base.startswith((".", "/", "~")):  # a name on the hub
            lines.append(f"base_model: {json.dumps(base)}")
        return "\n".join([*lines, "---", ""])

    def _origin(self, base: str) -> str:
        rows = [
            ("base model", f"`{base}`" if base else ""),
            ("data", self.data),
            ("optimizer steps", "" if self.steps is None else str(self.steps)),
            ("written by", f"cropl {__version__}, transformers {transformers.__version__}"),
        ]
        return "\n".join(f"- {name}: {said}" for name, said in rows if said)


def is_localizer(config: Any) -> bool:
    """Whether a checkpoint's config is that of a trained localizer."""
    return hasattr(config, "region_readout") or hasattr(config, "region_coverage")


def _with_cropl(config: Any) -> str:
    if is_localizer(config):
        return (
            "from cropl.models.localizer import Localizer\n\n"
            'localizer = Localizer.from_pretrained("PATH")\n'
            "region, = localizer.locate([image], [question])  # blocks of the 8 x 8 grid, inclusive"
        )
    return (
        "from cropl.models.vlm import load_vlm\n\n"
        'vlm = load_vlm("PATH")\n'
        "answer, = vlm.generate(vlm.inputs([image], [question]))"
    )


def _with_transformers(config: Any) -> str:
    name, processors = _FAMILIES.get(config.model_type, ("AutoModelForImageTextToText", ["AutoProcessor"]))
    loads = [f'{one.removeprefix("Auto").lower()} = {one}.from_pretrained("PATH")' for one in processors]
    imported = ", ".join(sorted([*processors, name]))
    return "\n".join([f"from transformers import {imported}", "", f'model = {name}.from_pretrained("PATH")', *loads])


def _licence(base: str) -> str:
    origin = f"`{base}`" if base else "its base model"
    return (
        f"These weights derive from {origin}: its licence and terms of use hold for them too, and so may those of the "
        "data. Read them before you pass the weights on."
    )
