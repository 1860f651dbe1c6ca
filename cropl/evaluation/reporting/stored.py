"""The answers that a suite stored, read line by line: those of a test set under twenty arms fill gigabytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cropl.data.images import ImageError, load_image
from cropl.errors import UsageError
from cropl.evaluation.gallery import GROUPS, Prediction, check, group_of, is_judged
from cropl.grid import Region

CANDIDATES = 60
"""Questions of each group among which a gallery chooses: enough for different kinds and different pictures."""


WRONG = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError, RecursionError, OSError)
"""What comes of a line that nobody but a person or another program wrote."""


@dataclass
class Stored:
    """What a report shows of one benchmark's answers.

    Attributes:
        candidates: the first questions of each group whose picture is there, for the gallery, in the file's order.
        recalls: area recall of each question that has boxes and a predicted region.
        without_picture: questions whose picture is not there.
        unjudged: questions whose answers were not scored here.
        n: questions.
    """

    candidates: list[Prediction] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    without_picture: int = 0
    unjudged: int = 0
    n: int = 0


def read(path: Path, arm: str | None, dense: str) -> Stored:
    """Read one `predictions.jsonl`.

    Args:
        path: the file.
        arm: the pruned run that the gallery shows; None for no gallery.
        dense: the dense run.

    Raises:
        UsageError: a line is no record of answers, or has not what the gallery shows; the message has its number.
    """
    found, counts = Stored(), dict.fromkeys((group for group, _ in GROUPS), 0)
    pictures: dict[str, bool] = {}
    with path.open("rb") as file:
        for number, text in enumerate(file, start=1):
            try:
                _take(json.loads(text), arm, dense, found, counts, pictures)
            except WRONG as error:
                told = f"{type(error).__name__}: {error}"
                raise UsageError(f"{path}: line {number} is no record of answers ({told})") from None
    return found


def _take(
    line: Prediction,
    arm: str | None,
    dense: str,
    found: Stored,
    counts: dict[str, int],
    pictures: dict[str, bool],
) -> None:
    arms: Mapping[str, Any] = line["arms"]
    if not isinstance(arms, dict):
        raise TypeError("arms is no mapping")
    found.n += 1
    if line.get("region") and line.get("predicted_region"):
        found.recalls.append(Region(*line["predicted_region"]).recall_against(Region(*line["region"])))
    image = line.get("image")
    if image is not None and image not in pictures:
        pictures[image] = Path(image).is_file()
    if image is None or not pictures[image] or line.get("grid") is None:
        found.without_picture += 1
        return
    if arm is None or arm not in arms or dense not in arms:
        return
    if not is_judged(arms[arm]) or not is_judged(arms[dense]):
        found.unjudged += 1
        return
    group = group_of(line, arm, dense)
    if counts[group] < CANDIDATES:
        check(line, arm, dense)
        counts[group] += 1
        found.candidates.append({**line, "arms": {arm: arms[arm], dense: arms[dense]}})


def picture(line: Prediction) -> Image.Image:
    """The displayed image of a question.

    Raises:
        UsageError: it can not be read, or is not the one that was asked about.
    """
    grid = line["grid"]
    try:
        image = load_image(line["image"])
    except ImageError as error:
        raise UsageError(str(error)) from None
    ratio = image.width / image.height / (grid["image_width"] / grid["image_height"])
    if abs(ratio - 1) > 0.02:
        raise UsageError(
            f"{line['image']}: has another shape than the {grid['image_width']}x{grid['image_height']} picture of "
            f"question {line['key']!r}; regions would fall on the wrong place"
        )
    return image
