"""The whole job as one object: a model, a localizer and a method; images and questions in, answers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Asked, Failed, Located, check_pair
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.models.wrap import wrap
from cropl.pruning import InnerLLM, PreLLM
from cropl.tiling import Regions

if TYPE_CHECKING:
    from PIL import Image


Where: TypeAlias = Regions | None
"""What an image keeps: a region, a union of several, or everything."""

HELD = 16
"""Batches whose images are held decoded at a time, and among which questions are sorted by length."""


@dataclass(frozen=True)
class Answer:
    """One answer; as text it is its `text`.

    Attributes:
        text: what the model said.
        region: where it was told to look, in several places perhaps; None for methods without regions.
        kept: visual tokens that the last decoder layer saw.
        total: visual tokens of the image.
        seconds: its share of the time that its batch took, without localizing.
    """

    text: str
    region: Regions | None
    kept: int
    total: int
    seconds: float

    def __str__(self) -> str:
        return self.text


class Answerer:
    """Answers questions about images with a pruned model.

    Example (models and a picture that ship with the package):
        >>> from cropl import Answerer
        >>> from cropl.testbed.samples import samples
        >>> (sample,) = samples("test", 1, start=4)
        >>> answerer = Answerer("testbed:llava", localizer="testbed:localizer", budget=64)
        >>> (answer,) = answerer([sample.picture()], ["What word is on the red sign?"])
        >>> print(answer, answer.region, answer.kept, answer.total)
        park Region(x_min=3, y_min=5, x_max=7, y_max=7) 64 576

    Example (a stock model of `transformers`, a localizer of one's own)::

        answerer = Answerer(model, processor, Localizer.from_pretrained("./localizer"), ILP(layer=2), budget=64)
        answer, = answerer([image], ["What does the sign say?"])
        print(answer, answer.region, answer.kept)

    Args:
        model: a `transformers` model of a supported family, one of `load_vlm`, or the folder or hub name of one.
        processor: the model's, where it is one of `transformers`.
        localizer: tells the regions: a `Localizer`, anything else with `locate(images, questions)`, a folder, or a hub
            name. None where every call gives `regions`, or the method takes none.
        method: an `InnerLLM` or `PreLLM`; None is ILP from near the paper's layer on, 2 of 32.
        budget: tokens that each image keeps exactly (int), or its share of them (float); None keeps the regions.
        factor: instead of a budget, what regions are scaled by: one that `calibrate` found on another set.
        batch_size: questions of a forward, of the localizer's too.
        max_new_tokens: of an answer.

    Raises:
        ValueError: the model cannot be pruned, or the arguments do not fit it or each other.
    """

    def __init__(
        self,
        model: Any,
        processor: Any = None,
        localizer: Any = None,
        method: InnerLLM | PreLLM | None = None,
        *,
        budget: int | float | None = None,
        factor: float | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 32,
    ) -> None:
        if isinstance(model, (str, Path)):
            if processor is not None:
                raise ValueError(f"{model} is loaded with its own processor: leave `processor` out")
            self.vlm = load_vlm(str(model))
        else:
            self.vlm = wrap(model, processor)
        for name, value in (("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: must be an integer, at least 1")
        if method is not None and not isinstance(method, (InnerLLM, PreLLM)):
            raise ValueError(
                f"method must be an InnerLLM such as ILP(layer=2), or a PreLLM such as PLC, not {method!r}"
            )
        self._stage = AnswerStage(self.vlm, method, budget, factor, batch_size, max_new_tokens)
        if localizer is not None and not self._stage.takes_regions:
            raise ValueError(f"{self.method.name} takes no regions: leave the localizer out")
        if isinstance(localizer, (str, Path)):
            localizer = Localizer.from_pretrained(str(localizer), device=self.vlm.device)
        if localizer is not None and not hasattr(localizer, "locate"):
            raise ValueError(f"a {type(localizer).__name__} is no localizer: it has no `locate(images, questions)`")
        if isinstance(localizer, Localizer) and localizer.vlm.model is self.vlm.model:
            raise ValueError("localizer and model are one model: load it twice")
        self.localizer = localizer

    @property
    def method(self) -> InnerLLM | PreLLM:
        """What prunes."""
        return self._stage.method

    @torch.inference_mode()
    def __call__(
        self,
        images: Iterable[Image.Image | str | Path | bytes],
        questions: Iterable[str],
        regions: Iterable[Regions | None] | None = None,
    ) -> list[Answer]:
        """One answer per question.

        Args:
            images: one per question: PIL images, files, or their encoded bytes.
            questions: what is asked.
            regions: one per question, or several for their union, in place of the localizer's; None keeps all.

        Raises:
            ValueError: the lists differ in length, an image or question cannot be used (the message names which), or
                there is nothing that tells regions.
        """
        pictures, asked = _listed(images, "images"), _listed(questions, "questions")
        given = (
            None if regions is None else [_region(one, place) for place, one in enumerate(_listed(regions, "regions"))]
        )
        if len(pictures) != len(asked) or (given is not None and len(given) != len(asked)):
            raise ValueError(f"{len(pictures)} images, {len(asked)} questions: give one image (and region) for each")
        self._check(given)
        for place, pair in enumerate(zip(pictures, asked, strict=True)):
            try:
                check_pair(*pair)
            except ValueError as error:
                raise ValueError(f"question {place}: {error}") from None
        size = HELD * self._stage.batch_size
        answers: list[Answer] = []
        for start in range(0, len(asked), size):
            some = slice(start, start + size)
            answers += self._answers(pictures[some], asked[some], None if given is None else given[some], start)
        return answers

    def _check(self, regions: list[Where] | None) -> None:
        if not self._stage.takes_regions and regions is not None:
            raise ValueError(f"{self.method.name} takes no regions: leave them out")
        if self._stage.takes_regions and regions is None and self.localizer is None:
            raise ValueError(f"{self.method.name} needs regions: give a localizer, or regions=[Region(...), ...]")

    def _answers(
        self, images: list[Any], questions: list[str], regions: list[Where] | None, start: int
    ) -> list[Answer]:
        """As for a call; `start` is the place of the first question in it."""
        asked = [_opened(*pair, start + place) for place, pair in enumerate(zip(images, questions, strict=True))]
        wanted = self._regions(asked, start) if regions is None else regions
        located = [Located(cast(Any, region)) for region in wanted]  # localizers tell no unions, users do
        answers = []
        for place, (found, where) in enumerate(zip(self._stage(asked, located), located, strict=True)):
            if isinstance(found, Failed):
                raise ValueError(f"question {start + place}: {found.reason}")
            answers.append(Answer(found.text, where.region, found.kept, found.total, found.seconds))
        return answers

    def _regions(self, asked: list[Asked], start: int) -> list[Where]:
        """The localizer's; None for each question of a method without regions."""
        if not self._stage.takes_regions:
            return [None] * len(asked)
        regions: list[Where] = []
        for first in range(0, len(asked), self._stage.batch_size):
            batch = asked[first : first + self._stage.batch_size]
            found = _listed(
                self.localizer.locate([one.image for one in batch], [one.question for one in batch]),
                "the localizer's regions",
            )
            if len(found) != len(batch):
                raise ValueError(f"the localizer gave {len(found)} regions for {len(batch)} questions")
            regions += [_region(one, start + first + place) for place, one in enumerate(found)]
        return regions


def _listed(given: Any, what: str) -> list[Any]:
    if isinstance(given, (str, bytes, Mapping, Set)) or not isinstance(given, Iterable):
        raise ValueError(f"{what}: one {type(given).__name__} by itself, give a list, with one for each question")
    return list(given)


def _region(given: Any, place: int) -> Where:
    """A region, a union of several, or None, which keeps every token."""
    union = isinstance(given, list | tuple) and given and all(isinstance(one, Region) for one in given)
    if given is not None and not isinstance(given, Region) and not union:
        raise ValueError(f"question {place}: {given!r} is no region: give Region(x_min, y_min, x_max, y_max)")
    return given


def _opened(image: Any, question: str, place: int) -> Asked:
    """A question whose image is decoded, once for both models; ValueError names its place."""
    asked = Asked.of((image, question))
    picture = asked.picture()
    if isinstance(picture, Failed):
        raise ValueError(f"question {place}: {picture.reason}")
    return replace(asked, image=picture)
