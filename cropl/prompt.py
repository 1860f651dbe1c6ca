"""Prompts, conversations, and the codec between text and `Region`: pure strings, no torch.

Model text is never trusted: `RegionCodec.decode` returns None for anything that is not one region, and never raises.
User text is never trusted either: `clean_question` refuses an empty question and takes the meaning out of control
tokens, so that a question can not insert a second image or end its own turn.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cropl.grid import GRID, Region

LOCALIZER_INSTRUCTION = "Please identify the region that can help you answer the question better."
"""Appendix A of the paper."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system sentence of LLaVA-1.5's `vicuna_v1` conversation; Hugging Face's chat template leaves it out."""

_CONTROL = re.compile(r"<(\|[^<>|\s]+\||/?(?:image|video|s|unk|pad|bos|eos|x_[0-9]+|y_[0-9]+))>")
_COORDINATE = r"<\|?[{axis}]_([0-9]+)\|?>"
_ANY_COORDINATE = re.compile(_COORDINATE.format(axis="xy"))
_TOKENS = re.compile(r"[\s,]*".join(_COORDINATE.format(axis=axis) for axis in "xyxy"))
_DIGITS = re.compile(r"[\[(]?\s*" + r"(?:\s*,\s*|\s+)".join([r"([0-9]+)"] * 4) + r"\s*[\])]?\s*\.?")
_END_TOKENS = re.compile(r"<\|[^<>|\s]+\|>|</?s>")


Span = tuple[int, int]
"""Characters `start` to `end` (exclusive) of a text."""


@dataclass(frozen=True)
class Rendered:
    """A conversation in a model's template.

    Attributes:
        text: all of it, with one placeholder where there is an image.
        question: characters of the first question.
        answers: the supervised characters: each answer with what ends its turn.
    """

    text: str
    question: Span
    answers: list[Span]


def clean_text(text: str, special_tokens: Iterable[str] = ()) -> str:
    """Strip a text and take the meaning out of control tokens in it (`<image>` becomes `< image >`).

    Args:
        text: the user's text.
        special_tokens: further strings that the model's tokenizer reads as control tokens.

    Raises:
        ValueError: it is not text.
    """
    if not isinstance(text, str):
        raise ValueError(f"questions and answers must be text, got {type(text).__name__}")
    text = _CONTROL.sub(r"< \1 >", text.strip())
    for token in sorted({token.strip() for token in special_tokens}, key=len, reverse=True):
        while len(token) > 1 and token in text:  # one replacement can leave another: [[ in [[[
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def clean_question(question: str, special_tokens: Iterable[str] = ()) -> str:
    """`clean_text` of a question.

    Raises:
        ValueError: the question is not text, or nothing is left of it.
    """
    text = clean_text(question, special_tokens)
    if not text:
        raise ValueError("the question is empty: ask something about the image")
    return text


def localizer_prompt(question: str) -> str:
    """The localizer's user text: the question, then Appendix A's instruction.

    Raises:
        ValueError: the question is empty.
    """
    return f"{clean_question(question)} {LOCALIZER_INSTRUCTION}"


def llava_prompt(question: str, system: bool = False, special_tokens: Iterable[str] = ()) -> str:
    """LLaVA-1.5's prompt for one question about one image, up to where the answer starts (no trailing space).

    Args:
        question: the user's text.
        system: put the `vicuna_v1` system sentence in front, as LLaVA's own evaluation does.
        special_tokens: as for `clean_text`.

    Raises:
        ValueError: the question is empty.
    """
    rendered = vicuna([(question, "")], True, system, special_tokens)
    return rendered.text[: rendered.answers[0][0]]


def vicuna(
    turns: Sequence[tuple[str, str]],
    image: bool = True,
    system: bool = False,
    special_tokens: Iterable[str] = (),
    end: str = "</s>",
    clean: bool = True,
) -> Rendered:
    """A conversation as LLaVA-1.5 is trained on it (`vicuna_v1`); an answer includes the space in front of it.

    Args:
        turns: questions and answers.
        image: whether it is about an image, which then comes first.
        system: put the system sentence in front.
        special_tokens: as for `clean_text`.
        end: what ends an answer.
        clean: take control tokens out of the answers; questions are always cleaned.

    Raises:
        ValueError: a question is empty.
    """
    special = list(special_tokens)
    text = f"{VICUNA_SYSTEM} " if system else ""
    questions: list[Span] = []
    answers: list[Span] = []
    for question, answer in turns:
        text += "USER: <image>\n" if image and not answers else "USER: "
        asked, told = clean_question(question, special), clean_text(answer, special) if clean else answer
        questions.append((len(text), len(text) + len(asked)))
        text += f"{asked} ASSISTANT:"
        answers.append((len(text), len(text) + len(f" {told}{end}")))
        text += f" {told}{end}"
    return Rendered(text, questions[0], answers)


class RegionCodec:
    """Writes a region as the localizer's answer and reads it back.

    Style `tokens` (the default) is four added tokens in a row and a full stop, `<x_2><y_1><x_5><y_2>.`; style `digits`
    is `2 1 5 2.` and adds no tokens. Reading accepts both styles, whatever `style` is, and VPT's `<|x_2|>` form.

    Example:
        >>> RegionCodec().encode(Region(2, 1, 5, 2))
        '<x_2><y_1><x_5><y_2>.'
        >>> RegionCodec().decode("2 1 5 2.")
        Region(x_min=2, y_min=1, x_max=5, y_max=2)
        >>> RegionCodec().decode("on the left") is None
        True

    Raises:
        ValueError: an unknown style.
    """

    def __init__(self, style: Literal["tokens", "digits"] = "tokens") -> None:
        if style not in ("tokens", "digits"):
            raise ValueError(f"region codec style {style!r}: must be 'tokens' or 'digits'")
        self.style = style

    @property
    def added_tokens(self) -> list[str]:
        """The tokens to add to a tokenizer: `<x_0>..<x_7>`, then `<y_0>..<y_7>`; none for `digits`."""
        if self.style == "digits":
            return []
        return [f"<{axis}_{label}>" for axis in "xy" for label in range(GRID)]

    def encode(self, region: Region) -> str:
        """The answer that names `region`."""
        x_min, y_min, x_max, y_max = region.as_tuple()
        if self.style == "digits":
            return f"{x_min} {y_min} {x_max} {y_max}."
        return f"<x_{x_min}><y_{y_min}><x_{x_max}><y_{y_max}>."

    def decode(self, text: str) -> Region | None:
        """Read a region from model text; labels above 7 count as 7. Never raises.

        Coordinate tokens may stand inside other text, but there must be exactly four, in the order x y x y. Digits
        must be the whole text (apart from brackets, a full stop and end-of-turn tokens), as a sentence may contain
        numbers. Anything else, and a reversed region, is None.
        """
        if not isinstance(text, str):
            return None
        match: re.Match[str] | None
        coordinates = len(_ANY_COORDINATE.findall(text))
        if coordinates:
            match = _TOKENS.search(text) if coordinates == 4 else None
        else:
            match = _DIGITS.fullmatch(_END_TOKENS.sub(" ", text).strip())
        if match is None:
            return None
        x_min, y_min, x_max, y_max = (_label(digits) for digits in match.groups())
        return Region(x_min, y_min, x_max, y_max) if x_min <= x_max and y_min <= y_max else None


def _label(digits: str) -> int:
    # Not int(digits): a model may write thousands of digits, which Python refuses to convert.
    digits = digits.lstrip("0")
    return min(int(digits), GRID - 1) if len(digits) == 1 else (GRID - 1 if digits else 0)
