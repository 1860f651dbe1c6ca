"""Area-based recall of predicted regions (paper, section 4.4 and Table 9), exact at any size and precision.

Recall of one question is |GT and Pred| / |GT| in blocks of the 8x8 grid; the scores are its mean over questions and the
shares of questions strictly above 0.5, 0.7 and 0.9. The state is not a sum of ratios but a table that counts questions
by (|GT|, |GT and Pred|): integers, which neither rounding nor a `bf16-true` run can touch, and which add up over ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from cropl.grid import GRID, Region

BLOCKS = GRID * GRID
THRESHOLDS = ((1, 2), (7, 10), (9, 10))
"""The strict thresholds 0.5, 0.7 and 0.9 as fractions, so that they are compared in integers."""


def area_table(pred: Sequence[Region], truth: Sequence[Region]) -> Tensor:
    """Count questions by areas: int64 (65, 65), entry [|GT|, |GT and Pred|]."""
    cells = [t.area * (BLOCKS + 1) + p.intersection(t) for p, t in zip(pred, truth, strict=True)]
    flat = torch.bincount(torch.tensor(cells, dtype=torch.int64), minlength=(BLOCKS + 1) ** 2)
    return flat.reshape(BLOCKS + 1, BLOCKS + 1)


def area_scores(table: Tensor) -> dict[str, Tensor]:
    """Scores of a table (65, 65) of counts: `mean_recall`, `recall_gt_0.5`, `recall_gt_0.7`, `recall_gt_0.9`, `n`.

    Shares are float64 scalars, NaN where there is no question; `n` is the number of questions.
    """
    table = table.cpu().to(torch.int64)
    truth = torch.arange(BLOCKS + 1)[:, None]
    shared = torch.arange(BLOCKS + 1)[None, :]
    n = table.sum()
    recall = shared / truth.clamp(min=1).to(torch.float64)
    scores = {"mean_recall": (table * recall).sum() / n}
    for above, below in THRESHOLDS:
        scores[f"recall_gt_{above / below:g}"] = table[below * shared > above * truth].sum().to(torch.float64) / n
    return scores | {"n": n}


class AreaRecall(Metric):
    """Area recall over questions, for any number of ranks.

    `compute()` returns `area_scores`, and `region_share`, the mean share of the image that the predictions take.

    Example:
        >>> metric = AreaRecall()
        >>> metric.update([Region(0, 0, 1, 1)], [Region(0, 0, 3, 1)])
        >>> float(metric.compute()["mean_recall"])
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    table: Tensor
    predicted_blocks: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("table", torch.zeros(BLOCKS + 1, BLOCKS + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("predicted_blocks", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Sequence[Region], truth: Sequence[Region], valid: Sequence[bool] | None = None) -> None:
        """Count questions.

        Args:
            pred: predicted regions.
            truth: true regions, one per prediction.
            valid: False leaves a question out (padding of an uneven evaluation).

        Raises:
            ValueError: the sequences differ in length.
        """
        valid = [True] * len(pred) if valid is None else valid
        if not len(pred) == len(truth) == len(valid):
            raise ValueError(f"area recall: {len(pred)} predictions, {len(truth)} truths, {len(valid)} valid flags")
        pairs = [(p, t) for p, t, counted in zip(pred, truth, valid, strict=True) if counted]
        # Not in place: a state that was reset in inference mode (validate before fit) may not be changed outside of it.
        self.table = self.table + area_table([p for p, _ in pairs], [t for _, t in pairs]).to(self.table.device)
        self.predicted_blocks = self.predicted_blocks + sum(p.area for p, _ in pairs)

    def compute(self) -> dict[str, Tensor]:
        """The scores of everything counted so far, see the class."""
        scores = area_scores(self.table)
        scores["region_share"] = self.predicted_blocks.cpu().to(torch.float64) / (BLOCKS * scores["n"])
        # Lightning reduces what is logged on the metric's device; MPS has no float64.
        low = torch.float32 if self.table.device.type == "mps" else torch.float64
        return {
            name: value.to(self.table.device, low if value.is_floating_point() else value.dtype)
            for name, value in scores.items()
        }

    def set_dtype(self, dst_type: str | torch.dtype) -> "AreaRecall":
        """Nothing: the counts stay int64."""
        return self
