"""Accuracy of short answers by exact match after a light normalisation, overall and per kind of question.

This is the testbed's own scorer. A benchmark with an official scorer uses that one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

QUESTION_KINDS = ("text", "attribute", "relation", "count", "existence", "choice")
"""What the paper's benchmarks ask for: text to read, an attribute, a relation, a count, yes or no, a letter."""


def normalise(answer: str) -> str:
    """Lower case, no space around, no full stop at the end (the start of VQA's normalisation)."""
    return answer.strip().lower().rstrip(".").rstrip()


def exact_match(pred: str, answers: Sequence[str]) -> bool:
    """Whether the prediction equals one of the accepted answers after `normalise`.

    Raises:
        ValueError: `answers` is empty, or is one string instead of a list of them.
    """
    if isinstance(answers, str) or not answers:
        raise ValueError(f"answers must be a list of at least one accepted answer, got {answers!r}")
    return normalise(pred) in {normalise(answer) for answer in answers}


class AnswerAccuracy(Metric):
    """Share of right answers, overall and per kind, from int64 counts that add up over ranks.

    `compute()` returns `accuracy`, and `accuracy_<kind>` for each kind that was seen, as float64 scalars; without any
    question `accuracy` is NaN.

    Args:
        kinds: the kinds that may occur. They are fixed beforehand so that every rank has the same table.

    Example:
        >>> metric = AnswerAccuracy()
        >>> metric.update([exact_match("Red.", ["red"]), exact_match("3", ["2"])], ["attribute", "count"])
        >>> {name: float(value) for name, value in metric.compute().items()}
        {'accuracy': 0.5, 'accuracy_attribute': 1.0, 'accuracy_count': 0.0}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(self, kinds: Sequence[str] = QUESTION_KINDS) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        # One row per kind and one for questions without a kind; columns: right, all.
        self.add_state("counts", torch.zeros(len(self.kinds) + 1, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, correct: Sequence[bool], kinds: Sequence[str] | None = None, valid: Sequence[bool] | None = None
    ) -> None:
        """Count questions.

        Args:
            correct: whether each answer is right (`exact_match`, or any other scorer).
            kinds: the kind of each question; None or "" counts it overall only.
            valid: False leaves a question out (padding of an uneven evaluation).

        Raises:
            ValueError: an unknown kind, or sequences that differ in length.
        """
        kinds = [""] * len(correct) if kinds is None else kinds
        valid = [True] * len(correct) if valid is None else valid
        if not len(correct) == len(kinds) == len(valid):
            raise ValueError(f"answer accuracy: {len(correct)} answers, {len(kinds)} kinds, {len(valid)} valid flags")
        if unknown := sorted(set(kinds) - {*self.kinds, ""}):
            raise ValueError(f"question kind {unknown[0]!r}: give AnswerAccuracy(kinds=...); it has {list(self.kinds)}")
        counts = torch.zeros_like(self.counts, device="cpu")
        for right, kind, counted in zip(correct, kinds, valid, strict=True):
            if counted:
                row = self.kinds.index(kind) if kind else len(self.kinds)
                counts[row] += torch.tensor([int(right), 1])
        # Not in place: a state that was reset in inference mode (validate before fit) may not be changed outside of it.
        self.counts = self.counts + counts.to(self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """The shares of everything counted so far, see the class."""
        counts = self.counts.cpu()
        right, total = counts.sum(0)
        scores = {"accuracy": right.to(torch.float64) / total}
        for kind, (right, total) in zip(self.kinds, counts, strict=False):
            if total:
                scores[f"accuracy_{kind}"] = right.to(torch.float64) / total
        low = torch.float32 if self.counts.device.type == "mps" else torch.float64
        return {name: value.to(self.counts.device, low) for name, value in scores.items()}

    def set_dtype(self, dst_type: str | torch.dtype) -> "AnswerAccuracy":
        """Nothing: the counts stay int64."""
        return self
