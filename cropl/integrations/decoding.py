"""What a task asks of decoding: how long an answer may be, greedy or sampled, and what ends it.

Shapes: B rows, S sequence, T new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from cropl.errors import UsageError
from cropl.models.inputs import VLMInputs
from cropl.models.vlm import VLM

MAX_NEW_TOKENS = 1024
"""Where a task does not say; what lmms-eval's own models take."""

SAMPLING = ("temperature", "top_p", "top_k")
SEARCH = ("num_beams", "repetition_penalty")
IGNORED = ("image_aspect_ratio",)
"""Says how another model's code prepares pictures; here that is the checkpoint's business."""


@dataclass(frozen=True)
class Decoding:
    """Checked generation settings; equal ones may share a batch.

    Attributes:
        max_new_tokens: of an answer.
        until: texts that end an answer, and are no part of it.
        options: further arguments of `generate`.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    until: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = (("do_sample", False),)

    @classmethod
    def of(cls, asked: Mapping[str, Any], where: str) -> Decoding:
        """From a task's `generation_kwargs`. Sampling is asked for by `do_sample`, or by a temperature without it.

        Raises:
            UsageError: a setting that is not known here, or of the wrong kind; `where` names the task.
        """
        given = {name: value for name, value in asked.items() if value is not None and name not in IGNORED}
        known = ("max_new_tokens", "until", "do_sample", *SAMPLING, *SEARCH)
        for name in given:
            if name not in known:
                raise UsageError(f"{where}: generation_kwargs {name!r} is not known here; known: {', '.join(known)}")
        longest = given.get("max_new_tokens", MAX_NEW_TOKENS)
        if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
            raise UsageError(f"{where}: generation_kwargs max_new_tokens {longest!r}: must be an integer from 1 on")
        ends = given.get("until", ())
        ends = [ends] if isinstance(ends, str) else ends
        if not isinstance(ends, list | tuple) or not all(isinstance(end, str) for end in ends):
            raise UsageError(f"{where}: generation_kwargs until {ends!r}: must be a text or a list of texts")
        warm = given.get("temperature", 1.0 if given.get("do_sample") else 0) > 0
        options: dict[str, Any] = {"do_sample": bool(given.get("do_sample", warm)) and warm}
        names = (*SAMPLING, *SEARCH) if options["do_sample"] else SEARCH
        options |= {name: given[name] for name in names if name in given}
        return cls(longest, tuple(end for end in ends if end), tuple(options.items()))


@torch.inference_mode()
def generate(vlm: VLM, inputs: VLMInputs, decoding: Decoding) -> list[tuple[str, int]]:
    """For every row its answer, stripped and without what ended it, and how many tokens were made."""
    start, options = inputs.tensors["input_ids"].shape[1], dict(decoding.options)
    if decoding.until and options.get("num_beams", 1) == 1:  # an ended beam may still lose: beams are only cut
        options["stopping_criteria"] = StoppingCriteriaList([_Ends(vlm.tokenizer, decoding.until, start)])
    ids_BS = vlm.model.generate(**inputs.kwargs(), max_new_tokens=decoding.max_new_tokens, **options)
    made_BT = ids_BS[:, start:]
    texts = vlm.processor.batch_decode(made_BT, skip_special_tokens=True)
    config = vlm.model.generation_config
    last = config.eos_token_id
    ends = set(last if isinstance(last, list) else [last])
    counts = [_count(row, ends, config.pad_token_id) for row in made_BT.tolist()]
    return [(_cut(text, decoding.until).strip(), count) for text, count in zip(texts, counts, strict=True)]


def _cut(text: str, until: Sequence[str]) -> str:
    return text[: min((text.find(end) for end in until if end in text), default=len(text))]


def _count(ids: Sequence[int], ends: set[int], padding: int | None) -> int:
    """Tokens up to the end of the answer, and that."""
    for place, token in enumerate(ids):
        if token in ends:
            return place + 1
        if token == padding:
            return place
    return len(ids)


class _Ends(StoppingCriteria):
    """Ends the rows whose new tokens, from `start` on, spell one of the texts."""

    def __init__(self, tokenizer: Any, until: Sequence[str], start: int) -> None:
        self._tokenizer, self._until, self._start = tokenizer, until, start
        self._tail = 2 * max(map(len, until)) + 8  # a token may be less than a character

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tail_BT = input_ids[:, max(self._start, input_ids.shape[1] - self._tail) :]
        texts = self._tokenizer.batch_decode(tail_BT, skip_special_tokens=True)
        return torch.tensor([any(end in text for end in self._until) for text in texts], device=input_ids.device)
