"""Area recall: hand-computed values, an independent computation, precisions, and two ranks."""

import json
import math
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from cropl.grid import Region
from cropl.metrics.area import AreaRecall, AreaRecallBySource, area_scores

ROOT = Path(__file__).resolve().parent.parent.parent


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
        "mean_precision": (1 + 1 + 0 + 10 / 64) / 4,
        "mean_iou": (1 + 0.5 + 0 + 10 / 64) / 4,
        "region_share": (10 + 5 + 4 + 64) / 256,
        "malformed_share": 0,
        "n": 4,
    }


@pytest.mark.parametrize(("shared", "key"), [(5, "recall_gt_0.5"), (7, "recall_gt_0.7"), (9, "recall_gt_0.9")])
def test_thresholds_are_strict(shared: int, key: str) -> None:
    tables = torch.zeros(3, 65, 65, dtype=torch.int64)
    tables[:, 10, shared] = 1
    assert float(area_scores(tables)[key]) == 0
    assert float(area_scores(tables.roll(1, 2))[key]) == 1


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
    shared = [len(set(p.cells()) & set(t.cells())) for p, t in pairs]
    precisions = [Fraction(both, p.area) for both, (p, _) in zip(shared, pairs)]
    ious = [Fraction(both, len(set(p.cells()) | set(t.cells()))) for both, (p, t) in zip(shared, pairs)]
    assert scores["mean_precision"] == pytest.approx(float(sum(precisions) / 500), abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(float(sum(ious) / 500), abs=1e-12)
    assert scores["region_share"] == sum(p.area for p, _ in pairs) / (64 * 500)


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
    assert metric.tables.dtype == metric.malformed.dtype == torch.int64
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
    assert torch.equal(first.tables, whole.tables) and floats(first) == floats(whole)
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


def test_malformed_answers_are_counted_among_the_valid() -> None:
    metric = AreaRecall()
    metric.update([Region.full()] * 4, [Region.full()] * 4, [True, True, True, False], [True, False, False, True])
    assert floats(metric)["malformed_share"] == pytest.approx(1 / 3)


def rows(count: int, seed: int = 2) -> list[tuple[Region, Region, str, bool, bool]]:
    """(prediction, truth, source, valid, malformed); sources with names that no attribute could have."""
    rng = random.Random(seed)
    names = ["gqa", "text.vqa v1.5", ""]
    return [
        (random_region(rng), random_region(rng), rng.choice(names), rng.random() < 0.8, rng.random() < 0.2)
        for _ in range(count)
    ]


def counted(part: list[tuple[Region, Region, str, bool, bool]]) -> AreaRecallBySource:
    metric = AreaRecallBySource()
    for start in range(0, len(part), 3):
        metric.update(*map(list, zip(*part[start : start + 3])))  # type: ignore[arg-type]
    return metric


def test_each_source_has_the_scores_of_its_own_questions() -> None:
    mixed = rows(60)
    scores = counted(mixed).compute()
    assert {name.partition("/")[2] for name in scores} == {"", "gqa", "text.vqa v1.5"}
    for source in ("", "gqa", "text.vqa v1.5"):
        alone = AreaRecall()
        mine = [row for row in mixed if source in ("", row[2])]
        alone.update([r[0] for r in mine], [r[1] for r in mine], [r[3] for r in mine], [r[4] for r in mine])
        for name, value in alone.compute().items():
            assert float(scores[f"{name}/{source}" if source else name]) == float(value)


def test_sources_survive_low_precision_and_are_forgotten() -> None:
    metric = counted(rows(30)).to(torch.bfloat16)
    metric.update([Region.full()], [Region.full()], ["new"])
    metric = metric.to(torch.bfloat16)
    assert all(one.tables.dtype == torch.int64 for one in (metric.every, *metric.each))
    assert float(metric.compute()["mean_recall/new"]) == 1
    metric.reset()
    assert set(metric.compute()) == set(AreaRecall().compute()) and int(metric.compute()["n"]) == 0
    with pytest.raises(ValueError, match="1 predictions and 0 sources"):
        metric.update([Region.full()], [Region.full()], [])


@pytest.mark.slow
def test_two_processes_have_the_scores_of_one(tmp_path: Path) -> None:
    """Uneven parts: the first has 7 of 20 questions, all or none, and some sources only one of the two knows."""
    command = [sys.executable, "-m", "tests.metrics.test_area", str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for rank in ranks:
        _, error = rank.communicate(timeout=240)
        assert rank.returncode == 0, error[-2000:]
    alone = {name: float(value) for name, value in counted(world_rows()).compute().items()}
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [alone] * 3


def world_rows() -> list[tuple[Region, Region, str, bool, bool]]:
    return [*rows(19), (Region.full(), Region.full(), "rare", True, False)]


def one_of_two(folder: Path, rank: int) -> None:
    """What a process logs of its part, in bfloat16, with a reset between one split and the next."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    found = []
    metric = AreaRecallBySource().to(torch.bfloat16)
    for split in (7, 20, 0):
        part = world_rows()[:split] if rank == 0 else world_rows()[split:]
        for start in range(0, len(part), 3):
            metric.update(*map(list, zip(*part[start : start + 3])))  # type: ignore[arg-type]
        found.append({name: float(value) for name, value in metric.compute().items()})
        metric.reset()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]), int(sys.argv[2]))
