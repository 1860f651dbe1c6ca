"""The localizer: a small VLM that reads (image, question) and writes the contextual region as four coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cropl.grid import GRID, Region
from cropl.models.coordinates import decode, distribution, prefill
from cropl.models.inputs import VLMInputs
from cropl.models.loading import load_config
from cropl.models.region_distribution import Readout, RegionDistribution
from cropl.models.vlm import VLM, family
from cropl.prompt import RegionCodec, localizer_prompt

FAMILIES = ("qwen2_vl", "qwen2_5_vl")
"""Model types that localizers are fine-tuned from."""

CODEC_KEY = "region_codec"
"""In a checkpoint's config: how its regions are written."""

MAX_NEW_TOKENS = 12
"""Of free decoding, for an answer such as `2 1 5 2.`."""


class Localizer:
    """Locates the region that a question is about (paper, 3.2).

    Args:
        vlm: the fine-tuned model; with the ``tokens`` codec its tokenizer knows the 16 coordinate tokens.
        codec: how a region is written. None takes the checkpoint's own, else ``tokens``.
        readout: how one region is read off what the model holds probable, see
            :class:`~cropl.models.region_distribution.Readout`: ``greedy`` as the paper does, ``most_probable``,
            ``coverage:LEVEL`` or ``expected_recall:LEVEL``. None takes the checkpoint's own, else ``greedy``.

    Raises:
        ValueError: the tokenizer lacks the codec's tokens; there is no such read-out or codec, or the codec ``digits``
            is to be read in another way than greedily.

    ``fallbacks`` counts the answers that were no region (free decoding only); those become the full region.
    """

    def __init__(self, vlm: VLM, codec: RegionCodec | None = None, readout: Readout | str | None = None) -> None:
        self.vlm, self.codec = vlm, codec or stored_codec(vlm.model.config)
        self.readout = choose_readout(readout, vlm.model.config, self.codec)
        self.fallbacks = 0
        tokenizer = vlm.processor.tokenizer
        ids = tokenizer.convert_tokens_to_ids(list(self.codec.added_tokens))
        if any(i is None or i == tokenizer.unk_token_id for i in ids):
            raise ValueError(
                "the model's tokenizer has no coordinate tokens <x_0> ... <y_7>: it is no trained localizer "
                "(train one with `cropl fit -c testbed/localizer`, or use the codec 'digits')"
            )
        self._ids_2G = torch.tensor(ids, dtype=torch.long).reshape(2, -1)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        codec: RegionCodec | None = None,
        max_pixels: int | None = None,
        readout: Readout | str | None = None,
        **options: Any,
    ) -> Localizer:
        """Load a localizer's checkpoint folder or hub name; options as for `Qwen2VLVLM.from_pretrained`."""
        kind = load_config(name_or_path).model_type
        if kind not in FAMILIES:
            raise ValueError(
                f"{name_or_path}: this is a {kind!r} model, and a 'qwen2_vl' or 'qwen2_5_vl' one is needed"
            )
        return cls(family(kind).from_pretrained(name_or_path, max_pixels=max_pixels, **options), codec, readout)

    @torch.inference_mode()
    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        """One region per (image, question); with coordinate tokens decoding is constrained, so that each is valid."""
        if not images:
            return []
        if not self.codec.added_tokens:
            return self._free(self._inputs(images, questions))
        if not self.readout.stepwise:
            return self.distribution(images, questions).read(self.readout)
        found_BN4, _ = decode(
            prefill(self.vlm, self._inputs(images, questions)), self._ids_2G, self.readout.side_coverage
        )
        return [Region(*row) for row in found_BN4[:, 0].tolist()]

    @torch.inference_mode()
    def distribution(self, images: Sequence[Image.Image], questions: Sequence[str]) -> RegionDistribution:
        """How probable the model holds each of the 1,296 rectangles, for each (image, question).

        Raises:
            ValueError: the codec has no coordinate tokens, or the attention takes no mask of pairs of positions.
        """
        if not self.codec.added_tokens:
            raise ValueError("the codec 'digits' is decoded freely: only coordinate tokens have a distribution")
        kernel = self.vlm.decoder.config._attn_implementation
        if kernel not in ("sdpa", "eager"):
            raise ValueError(f"attn_implementation {kernel!r}: the distribution of regions needs 'sdpa' or 'eager'")
        if not images:
            return RegionDistribution(torch.zeros(0, *[GRID] * 4, dtype=torch.double))
        return distribution(prefill(self.vlm, self._inputs(images, questions)), self._ids_2G)

    def _inputs(self, images: Sequence[Image.Image], questions: Sequence[str]) -> VLMInputs:
        return self.vlm.inputs(images, [localizer_prompt(question) for question in questions])

    def _free(self, inputs: VLMInputs) -> list[Region]:
        start = inputs.tensors["input_ids"].shape[1]
        ids_BS: Tensor = self.vlm.model.generate(**inputs.kwargs(), do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        regions = [self.codec.decode(t) for t in self.vlm.processor.batch_decode(ids_BS[:, start:])]
        self.fallbacks += regions.count(None)
        return [region or Region.full() for region in regions]


def stored_codec(config: Any) -> RegionCodec:
    """The codec that a checkpoint's config asks for; ``tokens`` where it says nothing.

    Raises:
        ValueError: there is no such one.
    """
    style: Any = getattr(config, CODEC_KEY, None)
    try:
        return RegionCodec() if style is None else RegionCodec(style)
    except ValueError as error:
        raise ValueError(f"{CODEC_KEY} in a localizer's config.json: {error}") from None


def choose_readout(readout: Readout | str | None, config: Any, codec: RegionCodec) -> Readout:
    """The read-out that is given, else the checkpoint's own.

    Raises:
        ValueError: there is no such one, or the codec has no coordinate tokens that it could be read from.
    """
    chosen = Readout.stored(config) if readout is None else Readout.parse(readout)
    if chosen.name != "greedy" and not codec.added_tokens:
        raise ValueError(
            f"readout {str(chosen)!r}: only coordinate tokens have it; give greedy with the codec 'digits'"
        )
    return chosen
