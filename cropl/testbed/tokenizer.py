"""The word-level tokenizer of the tiny models: every word that the testbed can ask or answer is one token."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cropl.prompt import LOCALIZER_INSTRUCTION
from cropl.testbed.world import COLORS, COUNTS, LETTERS, SHAPES, SIDES, WORDS

_PHRASES = (
    "what word is on the sign? what color is the what shape is on which side of the is the"
    " how many shapes are there? is there a yes no user: assistant: a b c d you are a helpful assistant system."
    " image picture look at and answer with one word, please"
)


def vocabulary() -> list[str]:
    """All lower-case words and marks, in a fixed order."""
    words = f"{_PHRASES} {LOCALIZER_INSTRUCTION.lower()}"
    marks = ["?", ".", ",", ":"]
    listed = [w.strip("?.,:") for w in words.split()] + marks
    listed += [*SHAPES, *COLORS, *WORDS, *SIDES, *COUNTS, "0", "5", "6", "7", *(letter.lower() for letter in LETTERS)]
    return sorted(set(listed) - {""})


def build_tokenizer(special: dict[str, str], extra: list[str] | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer over :func:`vocabulary`.

    Args:
        special: roles such as ``pad_token`` and their strings; they take the lowest ids.
        extra: further special tokens, such as ``<image>``.
    """
    names = [*dict.fromkeys([*special.values(), *(extra or [])])]
    core = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate([*names, *vocabulary()])}, unk_token=special["unk_token"])
    )
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="left", additional_special_tokens=list(extra or []), **special
    )
