"""The whole job as one object: a model, a localizer and a method; images and questions in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Asked, Failed, Located
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.models.wrap import wrap
from cropl.pruning import InnerLLM, PreLLM

if TYPE_CHECKING:
    from PIL import Image


HELD = 16
"""Batches whose images are held decoded at a time, and among which questions are sorted by length."""


@dataclass(frozen=True)
class Answer:
    """One answer; as text it is its `text`.

    Attributes:
        text: what the model said.
        region: where it was told to look; None for methods without regions.
        kept: visual tokens that the last decoder layer saw.
        total: visual tokens of the image.
        seconds: its share of the time that its batch took, without localizing.
    """

    text: str
    region: Region | None
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
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: must be an integer, at least 1")
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
        images: Sequence[Image.Image | str | Path | bytes],
        questions: Sequence[str],
        regions: Sequence[Region] | None = None,
    ) -> list[Answer]:
        """One answer per question.

        Args:
            images: one per question: PIL images, files, or their encoded bytes.
            questions: what is asked.
            regions: one per question, in place of the localizer's.

        Raises:
            ValueError: the lists differ in length, an image or question cannot be used (the message names which), or
                there is nothing that tells regions.
        """
        if isinstance(questions, str) or not isinstance(images, Sequence) or isinstance(images, (str, bytes)):
            raise ValueError("one image or one question by itself: give a list of images and a list of questions")
        if len(images) != len(questions) or (regions is not None and len(regions) != len(questions)):
            raise ValueError(f"{len(images)} images, {len(questions)} questions: give one image (and region) for each")
        self._check(regions)
        size = HELD * self._stage.batch_size
        answers: list[Answer] = []
        for start in range(0, len(questions), size):
            some = slice(start, start + size)
            given = None if regions is None else regions[some]
            answers += self._answers(images[some], questions[some], given, start)
        return answers

    def _check(self, regions: Sequence[Region] | None) -> None:
        if not self._stage.takes_regions and regions is not None:
            raise ValueError(f"{self.method.name} takes no regions: leave them out")
        if self._stage.takes_regions and regions is None and self.localizer is None:
            raise ValueError(f"{self.method.name} needs regions: give a localizer, or regions=[Region(...), ...]")
        for place, region in enumerate(regions or ()):
            if not isinstance(region, Region):
                raise ValueError(f"question {place}: {region!r} is no region: give Region(x_min, y_min, x_max, y_max)")

    def _answers(
        self, images: Sequence[Any], questions: Sequence[str], regions: Sequence[Region] | None, start: int
    ) -> list[Answer]:
        """As for a call; `start` is the place of the first question in it."""
        asked = [_opened(*pair, start + place) for place, pair in enumerate(zip(images, questions, strict=True))]
        located = [Located(region) for region in regions or self._regions(asked)]
        answers = []
        for place, (found, where) in enumerate(zip(self._stage(asked, located), located, strict=True)):
            if isinstance(found, Failed):
                raise ValueError(f"question {start + place}: {found.reason}")
            answers.append(Answer(found.text, where.region, found.kept, found.total, found.seconds))
        return answers

    def _regions(self, asked: Sequence[Asked]) -> Sequence[Region | None]:
        """The localizer's; None for each question of a method without regions."""
        if not self._stage.takes_regions:
            return [None] * len(asked)
        regions: list[Region | None] = []
        for start in range(0, len(asked), self._stage.batch_size):
            batch = asked[start : start + self._stage.batch_size]
            found = self.localizer.locate([one.image for one in batch], [one.question for one in batch])
            if len(found) != len(batch):
                raise ValueError(f"the localizer gave {len(found)} regions for {len(batch)} questions")
            regions += found
        return regions


def _opened(image: Any, question: str, place: int) -> Asked:
    """A question whose image is decoded, once for both models; ValueError names its place."""
    asked = Asked.of((image, question))
    picture = asked.picture()
    if isinstance(picture, Failed):
        raise ValueError(f"question {place}: {picture.reason}")
    return replace(asked, image=picture)
