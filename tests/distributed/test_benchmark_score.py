"""Official scores on two ranks are those of one process, exactly; what is answered twice or never is told on both."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cropl.benchmarks.base import AnswersError, Benchmark, Truth, judged
from cropl.benchmarks.metric import BenchmarkScore
from cropl.benchmarks.mme import Mme
from cropl.benchmarks.pope import Pope
from cropl.benchmarks.scoring import tally
from cropl.benchmarks.vqav2 import VqaV2

YES_NO = [
    Truth(f"{task}/{i}{end}", (says,), task, f"{task}/{i}")
    for task in ("count", "OCR") for i in range(5) for end, says in (("", "yes"), ("-2", "no"))
]  # fmt: skip
SOFT = [Truth(str(i), ("red",) * (i % 11) + ("blue",) * (10 - i % 11), unit=str(i // 2)) for i in range(23)]
CASES: dict[str, tuple[Benchmark, list[Truth]]] = {
    "mme": (Mme(), YES_NO), "pope": (Pope(), YES_NO), "vqav2": (VqaV2(), SOFT)
}  # fmt: skip
Share = tuple[list[str], list[bool]]
"""What a rank answers, and which of it counts."""


def answers(truths: list[Truth]) -> dict[str, str]:
    return {truth.id: ("Yes", "No", "red", "blue")[place * 7 % 4] for place, truth in enumerate(truths)}


def shares(ids: list[str]) -> dict[str, list[Share]]:
    """Of two ranks, by what is uneven about them."""
    first, second = ids[::2], ids[1::2]
    padded = (second + ids[:1], [True] * len(second) + [False])
    return {
        "padded": [
            (first, [True] * len(first)),
            padded if len(second) < len(first) else (second, [True] * len(second)),
        ],
        "seven and the rest": [(ids[:7], [True] * 7), (ids[7:], [True] * len(ids[7:]))],
        "padding alone": [(ids, [True] * len(ids)), (ids[:3], [False] * 3)],
        "nothing": [(ids, [True] * len(ids)), ([], [])],
        "twice": [(ids, [True] * len(ids)), (ids[3:4], [True])],
        "never": [(ids[:5], [True] * 5), (ids[6:], [True] * len(ids[6:]))],
    }


def rank(number: int, folder: Path) -> None:
    """One of the two: its scores, or its error, of every case."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    found: dict[tuple[str, str], Any] = {}
    for name, (benchmark, truths) in CASES.items():
        said = answers(truths)
        for share, ranks in shares(list(said)).items():
            metric = BenchmarkScore(benchmark, truths)
            ids, valid = ranks[number]
            for start in range(0, len(ids), 4):  # a batch at a time
                batch = ids[start : start + 4]
                metric.update(batch, [said[id] for id in batch], valid[start : start + 4])
            try:
                values = {score: float(value) for score, value in metric.compute().items()}
                with metric.sync_context():
                    found[name, share] = (values, metric.score().intervals)
                found[name, share] += (int(metric.seen.sum()),)
            except AnswersError as error:
                found[name, share] = str(error)
    (folder / f"{number}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[tuple[str, str], Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=rank, args=(number, folder)) for number in range(2)]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join(120)
        if one.is_alive():
            one.kill()
    assert [one.exitcode for one in ranks] == [0, 0]
    return [pickle.loads((folder / f"{number}.pickle").read_bytes()) for number in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", ["padded", "seven and the rest", "padding alone", "nothing"])
def test_two_ranks_score_as_one_does(two, name, share) -> None:
    benchmark, truths = CASES[name]
    said = answers(truths)
    expected = tally(benchmark, truths, judged(benchmark, truths, {id: benchmark.submitted(said[id]) for id in said}))
    for number, found in enumerate(two):
        values, intervals, mine = found[name, share]
        assert values == expected.values and intervals == expected.intervals
        ids, valid = shares(list(said))[share][number]
        assert mine == sum(valid) and len(ids) == len(valid), "a rank keeps its own share after a reduction"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_what_is_answered_twice_or_never_is_told_on_all_ranks(two, name) -> None:
    ids = [truth.id for truth in CASES[name][1]]
    for found in two:
        assert f"1 answered twice ({ids[3]})" in found[name, "twice"]
        assert f"1 without an answer ({ids[5]})" in found[name, "never"]


@pytest.mark.parametrize("name", CASES)
def test_every_share_is_of_all_questions(name) -> None:
    """The cases are what they say, without starting any process."""
    ids = [truth.id for truth in CASES[name][1]]
    for share, ranks in shares(ids).items():
        counted = [id for mine, valid in ranks for id, counts in zip(mine, valid, strict=True) if counts]
        assert (sorted(counted) == sorted(ids)) == (share not in ("twice", "never")), share
