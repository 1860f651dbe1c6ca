"""The testbed's questions as samples, in the form that evaluation, training and the shard writer take."""

from __future__ import annotations

from itertools import count as counting

from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.testbed.questions import Question, questions
from cropl.testbed.scenes import Scene, scene


def samples(split: str = "test", count: int = 600, start: int = 0) -> list[Sample]:
    """``count`` samples of the scenes from ``start`` on, at most one question of each kind per scene.

    The samples of a scene share one picture object and follow one another.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    made: list[Sample] = []
    for index in counting(start):
        one = scene(split, index)
        picture = one.render()
        kinds: set[str] = set()
        for question in questions(one):
            if question.kind not in kinds and len(made) < count:
                kinds.add(question.kind)
                made.append(_sample(one, question, picture))
        if len(made) >= count:
            return made
    raise AssertionError("unreachable")


def _sample(one: Scene, question: Question, picture: object) -> Sample:
    return Sample(
        key=f"{one.split}-{one.index:06d}-{question.kind}",
        question=question.text,
        answers=[question.answer],
        boxes=list(question.boxes),
        width=one.width,
        height=one.height,
        region=Region.from_boxes(list(question.boxes), one.width, one.height),
        kind=question.kind,
        source="testbed",
        split=one.split,
        image=picture,  # type: ignore[arg-type]
    )
