"""What goes through the pipeline: questions about images, their regions, and how one that fails stays alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image

from cropl.data.images import load_image
from cropl.errors import one_line
from cropl.grid import Region

T = TypeVar("T")
R = TypeVar("R")

LONGEST = 300
"""Characters of a reason; they travel between processes."""


@dataclass(frozen=True)
class Failed:
    """Stands where a result should be."""

    reason: str


@dataclass(frozen=True)
class Asked:
    """One question about one image, in a form that can be sent to another process.

    Attributes:
        image: a file, its encoded bytes, or an RGB image.
        question: what is asked.
        error: why it cannot be asked at all; both stages then leave it out.
    """

    image: str | Path | bytes | Image.Image
    question: str
    error: str | None = None

    @classmethod
    def of(cls, pair: Any) -> Asked:
        """Check what a stream gave; what is wrong with it becomes its `error`."""
        try:
            image, question = pair[0], pair[1]
            if isinstance(image, Exception):
                raise image
            check_pair(image, question)
            if isinstance(image, Image.Image):
                image = image.convert("RGB")  # decodes one that is still a file, and no later change reaches it
                image.info = {}
        except (TypeError, IndexError, KeyError):
            return cls(b"", "", f"a {type(pair).__name__} is no pair: give (image, question)")
        except Exception as error:  # decoders raise whatever they meet in hostile bytes
            return cls(b"", "", reason(error))
        return cls(image, question)

    def picture(self) -> Image.Image | Failed:
        """The image as displayed, RGB, or why it cannot be used."""
        if self.error is not None:
            return Failed(self.error)
        try:
            return self.image if isinstance(self.image, Image.Image) else load_image(self.image)
        except Exception as error:  # mostly ImageError; a file that vanishes meanwhile must not stop the others either
            return Failed(reason(error))


def check_pair(image: Any, question: Any) -> None:
    """ValueError for what is no image or no question, without a look into the image."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError("the question is empty: ask something about the image")
    if not isinstance(image, Image.Image | str | Path | bytes):
        raise ValueError(f"{type(image).__name__} is no image: give a path, encoded bytes or a PIL image")


@dataclass(frozen=True)
class Located:
    """What the localizer found for one question.

    Attributes:
        region: None where it found none: every token is then kept.
        problem: why there is none.
        seconds: the question's share of its batch's time.
    """

    region: Region | None
    problem: str | None = None
    seconds: float = 0.0


def isolated(work: Callable[[list[T]], Sequence[R]], batch: Sequence[T]) -> list[R | Failed]:
    """`work` on a batch; where that fails, on each of it alone, so that only those fail that fail by themselves."""
    if not batch:
        return []
    done = _tried(work, batch)
    if not isinstance(done, Failed):
        return list(done)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # out of memory is the usual reason
    if len(batch) == 1:
        return [done]
    return [isolated(work, [one])[0] for one in batch]


def _tried(work: Callable[[list[T]], Sequence[R]], batch: Sequence[T]) -> Sequence[R] | Failed:
    try:
        done = work(list(batch))
    except Exception as error:  # whatever it is, it is this batch's; its frames, which hold tensors, end here
        return Failed(reason(error))
    if len(done) != len(batch):
        return Failed(f"{len(done)} results for {len(batch)} questions")
    return done


def reason(error: BaseException) -> str:
    """An error in one line; those that Python itself raises begin with their name."""
    name = type(error).__name__
    text = one_line(error)
    told = isinstance(error, ValueError | OSError | MemoryError) or text == name
    return (text if told else f"{name}: {text}")[:LONGEST]
