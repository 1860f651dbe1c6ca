"""Area-based recall of predicted regions (paper, Appendix D.3 and Table 9), exact at any size and precision.

Recall of one question is |GT and Pred| / |GT| in blocks of the 8x8 grid; the scores are its mean over questions and the
shares of questions strictly above 0.5, 0.7 and 0.9. Precision is |GT and Pred| / |Pred|, and IoU has the union below.
The state is not a sum of ratios but three tables that count questions by (|GT|, |GT and Pred|), (|Pred|, ...) and
(|GT or Pred|, ...): integers, which neither rounding nor a `bf16-true` run can touch, and which add up over ranks.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from cropl.grid import GRID, Region

BLOCKS = GRID * GRID
THRESHOLDS = ((1, 2), (7, 10), (9, 10))
"""The strict thresholds 0.5, 0.7 and 0.9 as fractions, so that they are compared in integers."""


def area_tables(pred: Sequence[Region], truth: Sequence[Region]) -> Tensor:
    """Count questions by areas: int64 (3, 65, 65), entries [|GT|, shared], [|Pred|, shared] and [union, shared]."""
    facts = [(t.area, p.area, p.intersection(t)) for p, t in zip(pred, truth, strict=True)]
    truth_N, pred_N, shared_N = torch.tensor(facts, dtype=torch.int64).reshape(-1, 3).T
    width = BLOCKS + 1
    cells = [whole_N * width + shared_N for whole_N in (truth_N, pred_N, truth_N + pred_N - shared_N)]
    return torch.stack([torch.bincount(cell_N, minlength=width**2).reshape(width, width) for cell_N in cells])


def area_scores(tables: Tensor, malformed: int = 0) -> dict[str, Tensor]:
    """Scores of tables (3, 65, 65) of counts.

    `mean_recall`, `recall_gt_0.5`, `recall_gt_0.7` and `recall_gt_0.9` are the paper's columns; then `mean_precision`,
    `mean_iou`, `region_share` (mean share of the image that the predictions take), `malformed_share`, and `n`, the
    number of questions. Float64 scalars, NaN where there is no question, but for `n`.
    """
    tables = tables.cpu().to(torch.int64)
    by_truth, by_pred, by_union = tables
    whole, shared = torch.arange(BLOCKS + 1)[:, None], torch.arange(BLOCKS + 1)[None, :]
    n = by_truth.sum()
    ratio = shared / whole.clamp(min=1).to(torch.float64)
    scores = {"mean_recall": (by_truth * ratio).sum() / n}
    for above, below in THRESHOLDS:
        scores[f"recall_gt_{above / below:g}"] = by_truth[below * shared > above * whole].sum().to(torch.float64) / n
    scores["mean_precision"] = (by_pred * ratio).sum() / n
    scores["mean_iou"] = (by_union * ratio).sum() / n
    scores["region_share"] = (by_pred * whole).sum().to(torch.float64) / (BLOCKS * n)
    scores["malformed_share"] = torch.tensor(malformed, dtype=torch.float64) / n
    return scores | {"n": n}


class AreaRecall(Metric):
    """Area recall over questions, for any number of ranks; `compute()` returns `area_scores`.

    Example:
        >>> metric = AreaRecall()
        >>> metric.update([Region(0, 0, 1, 1)], [Region(0, 0, 3, 1)])
        >>> float(metric.compute()["mean_recall"])
        0.5
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    tables: Tensor
    malformed: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tables", torch.zeros(3, BLOCKS + 1, BLOCKS + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("malformed", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        pred: Sequence[Region],
        truth: Sequence[Region],
        valid: Sequence[bool] | None = None,
        malformed: Sequence[bool] | None = None,
    ) -> None:
        """Count questions.

        Args:
            pred: predicted regions.
            truth: true regions, one per prediction.
            valid: False leaves a question out (padding of an uneven evaluation).
            malformed: True where a model's answer was no region, and `pred` stands in for it.

        Raises:
            ValueError: the sequences differ in length.
        """
        valid = [True] * len(pred) if valid is None else valid
        malformed = [False] * len(pred) if malformed is None else malformed
        if not len(pred) == len(truth) == len(valid) == len(malformed):
            raise ValueError(
                f"area recall: {len(pred)} predictions, {len(truth)} truths, {len(valid)} valid flags, "
                f"{len(malformed)} malformed flags"
            )
        counted = [each for each in zip(pred, truth, malformed, valid, strict=True) if each[3]]
        # Not in place: a state that was reset in inference mode (validate before fit) may not be changed outside of it.
        added = area_tables([p for p, *_ in counted], [t for _, t, *_ in counted])
        self.tables = self.tables + added.to(self.tables.device)
        self.malformed = self.malformed + sum(bool(wrong) for _, _, wrong, _ in counted)

    def compute(self) -> dict[str, Tensor]:
        """The scores of everything counted so far, see the class."""
        scores = area_scores(self.tables, int(self.malformed))
        # Lightning reduces what is logged on the metric's device; MPS has no float64.
        low = torch.float32 if self.tables.device.type == "mps" else torch.float64
        return {
            name: value.to(self.tables.device, low if value.is_floating_point() else value.dtype)
            for name, value in scores.items()
        }

    def set_dtype(self, dst_type: str | torch.dtype) -> "AreaRecall":
        """Nothing: the counts stay int64."""
        return self


class AreaRecallBySource(nn.Module):
    """Area recall over all questions, and over those of each source.

    A rank need not know all sources, nor have any question: `compute()`, which all ranks call, agrees on them first, so
    that every rank has the same scores under the same names. They are those of `AreaRecall`, then `NAME/SOURCE`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.every = AreaRecall()
        self.sources: list[str] = []
        self.each = nn.ModuleList()  # one per source; names of modules could not hold every name of a source

    def update(
        self,
        pred: Sequence[Region],
        truth: Sequence[Region],
        sources: Sequence[str],
        valid: Sequence[bool] | None = None,
        malformed: Sequence[bool] | None = None,
    ) -> None:
        """Count questions, as `AreaRecall.update`; `sources` names each one's, "" for none."""
        valid = [True] * len(pred) if valid is None else valid
        malformed = [False] * len(pred) if malformed is None else malformed
        if len(sources) != len(pred):
            raise ValueError(f"area recall: {len(pred)} predictions and {len(sources)} sources")
        self.every.update(pred, truth, valid, malformed)
        rows = list(zip(pred, truth, valid, malformed, sources, strict=True))
        for source in sorted({name for name in sources if name}):
            mine = [row for row in rows if row[4] == source]
            self._of(source).update([p for p, *_ in mine], [t for _, t, *_ in mine], *zip(*(row[2:4] for row in mine)))

    def compute(self) -> dict[str, Tensor]:
        """The scores of everything counted so far on all ranks, see the class."""
        scores = dict(self.every.compute())
        for source in _of_all_ranks(self.sources):
            scores |= {f"{name}/{source}": value for name, value in self._of(source).compute().items()}
        return scores

    def reset(self) -> None:
        """Forget all counts, and the sources."""
        self.every.reset()
        self.sources, self.each = [], nn.ModuleList()

    def _of(self, source: str) -> AreaRecall:
        if source not in self.sources:
            self.sources.append(source)
            self.each.append(AreaRecall().to(self.every.tables.device))
            self.each[-1].update([], [])  # type: ignore[operator]  # a rank without its questions has nothing to warn of
        found = self.each[self.sources.index(source)]
        assert isinstance(found, AreaRecall)
        return found


def _of_all_ranks(names: Sequence[str]) -> list[str]:
    """The names that any rank has, sorted."""
    if not (dist.is_available() and dist.is_initialized()):
        return sorted(names)
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(names))
    return sorted({name for each in gathered for name in each})
