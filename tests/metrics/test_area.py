"""Area recall: hand-computed values, an independent computation, precisions, and two ranks."""

import math
import random
from fractions import Fraction

import pytest
import torch

from cropl.grid import Region
from cropl.metrics.area import AreaRecall, area_scores


def random_region(rng: random.Random) -> Region:
    (x0, x1), (y0, y1) = (sorted(rng.choices(range(8), k=2)) for _ in "xy")
    return Region(x0, y0, x1, y1)


def floats(metric: AreaRecall) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def test_by_hand() -> None:
    metric = AreaRecall()
    truth = Region(0, 0, 4, 1)  # 10 blocks
    preds = [Region(0, 0, 4, 1), Region(0, 0, 4, 0), Region(6, 6, 7, 7), Region(0, 0, 7, 7)]  # 1, 0.5, 0, 1
    metric.update(preds, [truth] * 4)
    scores = floats(metric)
    assert scores == {
        "mean_recall": 0.625,
        "recall_gt_0.5": 0.5,  # strict: the recall of exactly 0.5 does not count
        "recall_gt_0.7": 0.5,
        "recall_gt_0.9": 0.5,
        "n": 4,
        "region_share": (10 + 5 + 4 + 64) / 256,
    }


@pytest.mark.parametrize(("shared", "key"), [(5, "recall_gt_0.5"), (7, "recall_gt_0.7"), (9, "recall_gt_0.9")])
def test_thresholds_are_strict(shared: int, key: str) -> None:
    table = torch.zeros(65, 65, dtype=torch.int64)
    table[10, shared] = 1
    assert float(area_scores(table)[key]) == 0
    assert float(area_scores(table.roll(1, 1))[key]) == 1


def test_against_sets_of_cells() -> None:
    rng = random.Random(0)
    pairs = [(random_region(rng), random_region(rng)) for _ in range(500)]
    metric = AreaRecall()
    for start in range(0, 500, 7):
        batch = pairs[start : start + 7]
        metric.update([p for p, _ in batch], [t for _, t in batch])
    recalls = [Fraction(len(set(p.cells()) & set(t.cells())), len(t.cells())) for p, t in pairs]
    scores = floats(metric)
    assert scores["mean_recall"] == pytest.approx(float(sum(recalls) / 500), abs=1e-12)
    for above in (5, 7, 9):
        assert scores[f"recall_gt_0.{above}"] == sum(r > Fraction(above, 10) for r in recalls) / 500
    assert scores["n"] == 500


@pytest.mark.parametrize("cast", ["to_bf16", "half", "bfloat16", "set_dtype"])
def test_counts_survive_low_precision(cast: str) -> None:
    casts = {
        "to_bf16": lambda m: m.to(torch.bfloat16),
        "half": lambda m: m.half(),
        "bfloat16": lambda m: m.bfloat16(),
        "set_dtype": lambda m: m.set_dtype(torch.bfloat16),
    }
    metric = casts[cast](AreaRecall())
    for _ in range(3):
        metric.update([Region.full()] * 1000 + [Region(0, 0, 0, 0)], [Region.full()] * 1001)
        metric = casts[cast](metric)
    assert metric.table.dtype == torch.int64
    scores = floats(metric)
    assert scores["n"] == 3003 and scores["mean_recall"] == pytest.approx((3000 + 3 / 64) / 3003, abs=1e-12)


def test_padding_is_left_out() -> None:
    metric = AreaRecall()
    metric.update([Region.full(), Region(0, 0, 0, 0)], [Region.full()] * 2, valid=[True, False])
    assert floats(metric)["n"] == 1 and floats(metric)["mean_recall"] == 1


def test_two_ranks_add_up() -> None:
    rng = random.Random(1)
    pairs = [(random_region(rng), random_region(rng)) for _ in range(21)]
    whole, first, second = AreaRecall(), AreaRecall(), AreaRecall()
    for metric, part in ((whole, pairs), (first, pairs[:20]), (second, pairs[20:])):
        metric.update([p for p, _ in part], [t for _, t in part])
    first.merge_state(second)
    assert torch.equal(first.table, whole.table) and floats(first) == floats(whole)
    first.merge_state(AreaRecall())  # a rank without questions
    assert floats(first) == floats(whole)


def test_no_questions_is_nan_and_bad_lengths_are_refused() -> None:
    metric = AreaRecall()
    metric.update([], [])
    scores = floats(metric)
    assert scores["n"] == 0 and math.isnan(scores["mean_recall"]) and math.isnan(scores["region_share"])
    with pytest.raises(ValueError, match="1 predictions"):
        metric.update([Region.full()], [])


def test_it_can_be_reset_in_inference_mode_and_go_on_outside():
    metric = AreaRecall()
    with torch.inference_mode():
        metric.update([Region(0, 0, 1, 1)], [Region(0, 0, 1, 1)])
        metric.reset()
        metric.update([Region(0, 0, 1, 1)], [Region(0, 0, 1, 1)])
    metric.update([Region(0, 0, 0, 1)], [Region(0, 0, 1, 1)])
    assert float(metric.compute()["mean_recall"]) == 0.75
