"""Where the shipped checkpoints of the testbed lie. All were trained by the recipes in ``recipes/testbed``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cropl.data.aside import written_aside

NAMES = {
    "llava": "tiny LLaVA: answers the testbed's questions over 24 x 24 visual tokens",
    "llava_next": "tiny LLaVA-NeXT: the tiny LLaVA's parts on up to five crops, 576 tokens each, briefly tuned",
    "qwen2_vl": "tiny Qwen2-VL: answers them over about 64 merged tokens",
    "localizer": "the localizer, fine-tuned from the tiny Qwen2-VL",
    "visionzip_tuned": "the tiny LLaVA with a projector tuned to the 64 tokens that VisionZip leaves (VisionZip‡)",
    "plc": "PLC: compressor and language model, trained together from the tiny LLaVA; 68 visual tokens",
    "plc_no_anchor": 'PLC without anchor tokens, the ablation "w/o X^r"',
}


def path(name: str) -> Path:
    """The folder of a shipped checkpoint (``llava``, ``qwen2_vl`` or ``localizer``), in ``transformers`` format."""
    if name not in NAMES:
        raise ValueError(f"the testbed ships no checkpoint {name!r}: choose one of {', '.join(NAMES)}")
    return Path(__file__).parent / "checkpoints" / name


def resolve(name_or_path: str) -> str:
    """``testbed:NAME`` as the folder of that shipped checkpoint, ``untrained:NAME`` as that of a new, untrained one
    (``llava``, ``qwen2_vl``, or ``llava_next`` of the shipped LLaVA's parts, made under ``runs/untrained`` with seed
    0); anything else as it is."""
    prefix, _, name = name_or_path.partition(":")
    if prefix == "testbed" and name:
        return str(path(name))
    if prefix == "untrained" and name:
        from cropl.testbed import build

        make: Callable[[Path], object] | None = getattr(build, f"build_{name}", None)
        if make is None:
            raise ValueError(f"no untrained model {name!r}: choose llava, llava_next or qwen2_vl")
        folder = Path("runs/untrained") / name
        if not (folder / "config.json").exists():
            with written_aside(folder) as aside:
                make(aside)
        return str(folder)
    return name_or_path
