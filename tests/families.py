"""Every supported model family as a tiny random model with its real processor, for tests that run on all of them.

A builder draws everything from its seed. Weights are large enough that tokens matter to each other, and no token ends
an answer, so that every run generates to its full length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cropl.models.anyres import Protocol
from cropl.models.internvl import InternVLVLM
from cropl.models.llava import LlavaVLM
from cropl.models.llava_next import LlavaNextVLM
from cropl.models.vlm import VLM, load_vlm
from cropl.testbed.build import build_qwen2_vl
from tests.reference.checkpoints import tiny_processor
from tests.reference.qwen2_5_vl import build_qwen2_5_vl
from tests.reference.tiny import tiny_llava
from tests.reference.tiny_intern import intern_processor, tiny_internvl
from tests.reference.tiny_next import next_processor, tiny_llava_next

LAYERS = 4
"""Decoder layers of each of them."""
QUESTIONS = ["What colour is the sign ?", "Read it .", "How many ?"]


def llava(seed: int = 0, dtype: torch.dtype = torch.float64, attention: str = "sdpa", text: str = "llama") -> VLM:
    """LLaVA-1.5: 8 x 8 visual tokens."""
    return LlavaVLM(tiny_llava(LAYERS, 2, dtype, seed, attention, text), tiny_processor())


def llava_next(
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    attention: str = "sdpa",
    text: str = "llama",
    layers: int = LAYERS,
) -> LlavaNextVLM:
    """LLaVA-NeXT under `anyres`: 8 x 8 tokens of the whole view, two to four tiles of 8 x 8, newlines."""
    return LlavaNextVLM(tiny_llava_next(layers, 2, dtype, seed, attention, text), next_processor())


def under(protocol: Protocol, vlm: LlavaNextVLM) -> LlavaNextVLM:
    """The same LLaVA-NeXT under this protocol: `fixed` has 2 x 2 tiles of every picture, and no newlines."""
    return LlavaNextVLM(vlm.model, vlm.processor, protocol=protocol)


def internvl(seed: int = 0, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> VLM:
    """InternVL: up to six tiles of 4 x 4 tokens and a thumbnail, a Qwen2 decoder."""
    return InternVLVLM(tiny_internvl(LAYERS, 2, dtype, seed, attention), intern_processor())


def qwen2_vl(seed: int = 0, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> VLM:
    """Qwen2-VL: about 64 merged visual tokens, as many as fit the picture's shape."""
    return _from_folder(partial(build_qwen2_vl, seed=seed), dtype, attention)


def qwen2_5_vl(seed: int = 0, dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> VLM:
    """Qwen2.5-VL, likewise. Its weights are the same for every seed."""
    return _from_folder(build_qwen2_5_vl, dtype, attention)


FAMILIES: dict[str, Callable[..., VLM]] = {
    "llava": llava,
    "llava_next": llava_next,
    "internvl": internvl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
}
"""Model type -> builder of (seed, dtype, attention)."""


def pictures(count: int = 3, seed: int = 0) -> list[Image.Image]:
    """Random pictures of different shapes."""
    rng = np.random.default_rng(seed)
    sizes = [(64, 40), (40, 90), (50, 50)]
    shapes = [sizes[number % len(sizes)] for number in range(count)]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in shapes]


def _from_folder(build: Callable[..., Path], dtype: torch.dtype, attention: str) -> VLM:
    with tempfile.TemporaryDirectory() as folder:
        build(folder, layers=LAYERS, width=64)
        vlm = load_vlm(folder, dtype=dtype, device="cpu", attn_implementation=attention)
    vlm.model.generation_config.eos_token_id = None
    vlm.model.generation_config.pad_token_id = vlm.tokenizer.pad_token_id
    return vlm
