"""What training steps are measured on: random models of known shapes, and batches whose lengths are those of training.

No checkpoint, picture or text is needed: weights, pixels and token ids are random, and cost what real ones do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from cropl.data.packing import IGNORE, Document, Turn
from cropl.grid import Region, TokenGrid
from cropl.metrics.cost import decoder_flops, vision_flops
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.models.llava import LlavaVLM
from cropl.models.qwen2_vl import Qwen2VLVLM
from cropl.models.vlm import VLM
from cropl.testbed import weights

# V visual tokens, D width


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sample, each drawn between two bounds: in front of the picture, question, short and long answers.

    Two samples of three are localization with a short answer, as in the paper's mix; the others are conversations.
    """

    before: int
    question: tuple[int, int]
    short: tuple[int, int]
    long: tuple[int, int]


@dataclass
class Task:
    """A batch for a model.

    Attributes:
        vlm: the model; its vision tower is frozen.
        compressor: of PLC, or None.
        pixels, patches: of each sample's picture, as `VLM.encode_prepared` takes them.
        grids, regions: of each picture, for the compressor.
        documents: each sample's tokens.
        flops: floating-point operations of a step on these samples by the model's shapes: forward and backward, forward
            alone for the tower; padding and unsupervised logits are not counted.
    """

    vlm: VLM
    compressor: Compressor | None
    pixels: list[Tensor]
    patches: list[tuple[int, int]]
    grids: list[TokenGrid]
    regions: list[Region]
    documents: list[Document]
    flops: float

    @property
    def tokens(self) -> int:
        """Of all samples, without padding."""
        return sum(map(len, self.documents))

    @property
    def supervised(self) -> int:
        """How many of them are trained on."""
        return sum(_supervised(document) for document in self.documents)

    def visual_tokens(self) -> list[Tensor]:
        """Of each sample, as the decoder gets them."""
        features = self.vlm.encode_prepared(self.pixels, self.patches)
        return features if self.compressor is None else self.compressor(features, self.grids, self.regions)

    def trained(self) -> list[torch.nn.Parameter]:
        """What an optimizer gets."""
        own = [parameter for parameter in self.vlm.model.parameters() if parameter.requires_grad]
        return own + ([] if self.compressor is None else list(self.compressor.parameters()))


def llava_7b() -> LlavaConfig:
    """LLaVA-1.5-7B: CLIP ViT-L/14 at 336 px and Vicuna-7B."""
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=4096, rms_norm_eps=1e-5,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=576, vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip


def qwen2_vl_2b() -> Qwen2VLConfig:
    """Qwen2-VL-2B."""
    text = {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "embed_dim": 1280, "hidden_size": 1536, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
    }  # fmt: skip
    return Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=151655, video_token_id=151656,
        vision_start_token_id=151652, vision_end_token_id=151653, tie_word_embeddings=True,
    )  # fmt: skip


SIZES: dict[str, tuple[Callable[[], Any], Callable[[], Any], Lengths]] = {
    "testbed": (
        lambda: LlavaConfig.from_pretrained(weights.path("llava")),
        lambda: Qwen2VLConfig.from_pretrained(weights.path("qwen2_vl")),
        Lengths(before=3, question=(8, 30), short=(2, 4), long=(8, 40)),
    ),
    "published": (llava_7b, qwen2_vl_2b, Lengths(before=35, question=(12, 70), short=(3, 8), long=(40, 250))),
}
"""PLC's model, the localizer's, and the lengths of texts."""


def plc_task(size: str, batch: int, device: torch.device, dtype: torch.dtype, vocabulary: int | None = None) -> Task:
    """PLC: pictures of all shapes padded to squares, 68 visual tokens for each sample."""
    config, _, lengths = SIZES[size]
    vlm = LlavaVLM(_random_model(LlavaForConditionalGeneration, _with(config(), vocabulary), device, dtype))
    width, side = vlm.model.config.text_config.hidden_size, vlm.side
    compressor = Compressor(CompressorConfig(width, side=side)).to(device, dtype)
    rng = random.Random(0)
    grids = [TokenGrid.padded_square(side, rng.randint(320, 640), rng.randint(320, 640)) for _ in range(batch)]
    pixels = [torch.randn(3, vlm.image_size, vlm.image_size).to(device, dtype) for _ in grids]
    grid = (1, compressor.count(grids[0]))
    documents = [_document(vlm, grid, lengths, rng, located=i % 3 < 2) for i in range(batch)]
    attended = side * side * grid[1] + 64 * 64  # pairs of queries and tokens in Eq. 2-4
    flops = _flops(vlm, documents, [(side, side)] * batch) + batch * 3 * 4 * width * attended
    return Task(vlm, compressor, pixels, [(side, side)] * batch, grids, [_region(rng) for _ in grids], documents, flops)


def localizer_task(
    size: str, batch: int, device: torch.device, dtype: torch.dtype, vocabulary: int | None = None
) -> Task:
    """The localizer: pictures of about 16 x 16 visual tokens (testbed: 8 x 8), whose grids follow their shapes."""
    _, config, lengths = SIZES[size]
    vlm = Qwen2VLVLM(_random_model(Qwen2VLForConditionalGeneration, _with(config(), vocabulary), device, dtype))
    rng, side, vision = random.Random(0), 16 if size == "published" else 8, vlm.model.config.vision_config
    rows = [rng.randint(round(0.7 * side), round(1.3 * side)) for _ in range(batch)]
    tokens = [(count, side * side // count) for count in rows]
    patches = [(vlm.merge * count, vlm.merge * across) for count, across in tokens]
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = [torch.randn(count * across, values).to(device, dtype) for count, across in patches]
    grids = [TokenGrid.stretched(*grid, 28 * grid[1], 28 * grid[0]) for grid in tokens]
    documents = [_document(vlm, grid, lengths, rng, located=i % 3 < 2) for i, grid in enumerate(tokens)]
    return Task(vlm, None, pixels, patches, grids, [], documents, _flops(vlm, documents, patches))


TASKS = {"plc": plc_task, "localizer": localizer_task}


def _random_model(kind: Any, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, the same in every run on one device."""
    with torch.random.fork_rng(devices=[]), device:
        torch.default_generator.manual_seed(0)
        return kind._from_config(config, dtype=dtype, attn_implementation="sdpa").train()


def _with(config: Any, vocabulary: int | None) -> Any:
    """The config with a vocabulary of this size.

    Raises:
        ValueError: it has no room for the image token.
    """
    least = config.image_token_id + 1
    if vocabulary is not None and vocabulary < least:
        raise ValueError(f"vocabulary {vocabulary}: must be at least {least}, for the image token")
    config.text_config.vocab_size = config.text_config.vocab_size if vocabulary is None else vocabulary
    return config


def _document(vlm: VLM, grid: tuple[int, int], lengths: Lengths, rng: random.Random, located: bool) -> Document:
    """A sample's tokens: text, visual tokens, question and answer."""
    size = min(1000, vlm.model.get_input_embeddings().weight.shape[0])
    plain = [token for token in range(size) if token != vlm.image_token_id]

    def text(count: int) -> list[int]:
        return rng.choices(plain, k=count)

    cell_V = torch.arange(grid[0] * grid[1])
    visual_RV = vlm.visual_positions(lengths.before, grid, cell_V)
    before_RS = torch.arange(lengths.before).expand(len(visual_RV), -1)
    question = text(rng.randint(*lengths.question))
    answer = text(rng.randint(*(lengths.short if located else lengths.long)))
    return Document(
        text(lengths.before) + [vlm.image_token_id] * len(cell_V),
        torch.cat([before_RS, visual_RV], dim=1),
        [Turn(question + answer, [IGNORE] * len(question) + answer)],
    )


def _supervised(document: Document) -> int:
    return sum(label != IGNORE for turn in document.turns for label in turn.labels)


def _flops(vlm: VLM, documents: list[Document], patches: list[tuple[int, int]]) -> float:
    """Of a step: thrice the forward pass of what trains, once that of the tower."""
    text, vision = vlm.decoder.config, vlm.model.config
    forward = sum(
        decoder_flops(text, [len(document)] * text.num_hidden_layers, _supervised(document)) for document in documents
    )
    matrices = sum(parameter.numel() for parameter in vlm.projector.parameters() if parameter.ndim == 2)
    tokens = sum(rows * columns for rows, columns in patches) // vlm.merge**2
    whole = sum(vision_flops(vision, rows * columns) for rows, columns in patches)
    return float(3 * forward + whole + 2 * 2 * matrices * tokens)  # the projector is in `whole` once


def _region(rng: random.Random) -> Region:
    x, y = rng.randint(0, 5), rng.randint(0, 5)
    return Region(x, y, rng.randint(x, 7), rng.randint(y, 7))
