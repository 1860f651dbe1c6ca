"""The distribution over rectangles and its read-outs, against their definitions in plain loops."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.grid import Region
from cropl.models.region_distribution import Readout, RegionDistribution, coordinates

REGIONS = [
    Region(x, y, u, v) for x in range(8) for y in range(8) for u in range(x, 8) for v in range(y, 8)
]  # all 1,296


CORNERS = [region.as_tuple() for region in REGIONS]


def made(weights: dict[Region, float]) -> RegionDistribution:
    p = torch.zeros(1, 8, 8, 8, 8, dtype=torch.double)
    for region, weight in weights.items():
        p[0][region.as_tuple()] = weight
    return RegionDistribution(p / p.sum())


regions = st.builds(lambda a, b, c, d: Region(min(a, b), min(c, d), max(a, b), max(c, d)), *[st.integers(0, 7)] * 4)
distributions = st.dictionaries(regions, st.floats(0.01, 1), min_size=1, max_size=6).map(made)


def dense(seed: int = 0, count: int = 1, sharp: float = 3.0) -> RegionDistribution:
    draw = torch.Generator().manual_seed(seed)
    shapes = [(count, *[8] * n) for n in range(1, 5)]
    return RegionDistribution.from_logits(*(sharp * torch.randn(*s, generator=draw) for s in shapes))


def expected_recall(known: RegionDistribution, region: Region) -> float:
    p = known.p_BXYUV[0][tuple(torch.tensor(CORNERS).T)].tolist()
    return sum(each * region.recall_against(truth) for each, truth in zip(p, REGIONS) if each)


def test_logits_become_probabilities_of_regions_alone():
    draw = torch.Generator().manual_seed(1)
    logits = [torch.randn(2, *[8] * n, generator=draw) for n in range(1, 5)]
    known = RegionDistribution.from_logits(*logits)
    assert len(REGIONS) == 1296
    for b in range(2):
        for region in REGIONS[::37]:
            x, y, u, v = region.as_tuple()
            steps = [logits[0][b], logits[1][b, x], logits[2][b, x, y, x:], logits[3][b, x, y, u, y:]]
            chosen = zip(steps, (x, y, u - x, v - y))
            p = torch.stack([step.double().softmax(0)[at] for step, at in chosen]).prod()
            assert known[b : b + 1].probability([region])[0] == pytest.approx(float(p), rel=1e-12)
    inside = sum(known.p_BXYUV[(slice(None), *region.as_tuple())] for region in REGIONS)
    torch.testing.assert_close(inside, torch.ones(2, dtype=torch.double))
    torch.testing.assert_close(known.p_BXYUV.sum((1, 2, 3, 4)), torch.ones(2, dtype=torch.double))


@settings(max_examples=60)
@given(distributions, regions)
def test_expected_recall_is_its_definition(known, region):
    assert float(known.worth_BIJ.sum()) == pytest.approx(1, abs=1e-12)
    assert float(known.expected_recall_BXYUV[0][region.as_tuple()]) == pytest.approx(
        expected_recall(known, region), abs=1e-12
    )


@settings(max_examples=40)
@given(distributions, st.floats(0, 1))
def test_the_smallest_region_that_expects_enough(known, level):
    """No smaller one does; of equally small ones none expects more."""
    (found,) = known.read(Readout("expected_recall", level))
    recall = dict(zip(REGIONS, known.expected_recall_BXYUV[0][tuple(torch.tensor(CORNERS).T)].tolist()))
    if level == 1:
        assert found == Region.full()
        return
    if found != Region.full():
        assert recall[found] >= level
    for other in REGIONS:
        if other.area < found.area:
            assert recall[other] < level or (level > 1 - 1e-12 and found == Region.full())
        elif other.area == found.area:
            assert recall[other] <= recall[found]


@settings(max_examples=40)
@given(distributions, st.floats(0, 1))
def test_the_ladder_holds_every_region_that_can_be_read(known, level):
    (rungs,) = known.ladder()
    assert [r.area for _, r in rungs] == sorted({r.area for _, r in rungs})
    assert [at for at, _ in rungs] == sorted({at for at, _ in rungs})
    assert rungs[-1] == (1.0, Region.full())
    (found,) = known.read(Readout("expected_recall", level))
    assert found == next(region for at, region in rungs if at >= level)


@settings(max_examples=30)
@given(st.integers(0, 50), st.floats(0.05, 0.95))
def test_steps_are_taken_on_the_conditionals(seed, coverage):
    known = dense(seed)
    p = known.p_BXYUV[0]
    greedy: list[int] = []
    for _ in range(4):
        left = p[tuple(greedy)].reshape(8, -1).sum(1)
        greedy.append(int(left.argmax()))
    assert known.read("greedy") == [Region(*greedy)]
    covering: list[int] = []
    for step in range(4):
        left = p[tuple(covering)].reshape(8, -1).sum(1)
        left = (left / left.sum()).tolist()
        allowed = range(8) if step < 2 else range(covering[step - 2], 8)
        if step < 2:
            covering.append(max(i for i in allowed if sum(left[i:]) >= coverage))
        else:
            covering.append(min(i for i in allowed if sum(left[: i + 1]) >= coverage))
    assert known.read(Readout("coverage", coverage)) == [Region(*covering)]


@settings(max_examples=30)
@given(distributions)
def test_the_most_probable_region(known):
    (found,) = known.read("most_probable")
    assert known.probability([found]) == [float(known.p_BXYUV.max())]


def test_read_outs_of_many_are_those_of_each():
    known = dense(3, count=5)
    for readout in ("greedy", "most_probable", "coverage:0.8", "expected_recall:0.9"):
        assert known.read(readout) == [r for i in range(5) for r in known[i : i + 1].read(readout)]
    (alone,) = known[3:4].ladder()
    assert [region for _, region in known.ladder()[3]] == [region for _, region in alone]
    assert [level for level, _ in known.ladder()[3]] == pytest.approx([level for level, _ in alone], abs=1e-12)
    assert RegionDistribution(torch.zeros(0, 8, 8, 8, 8).double()).read("expected_recall:0.9") == []


@given(st.lists(st.floats(-6, 6), min_size=8, max_size=8), st.floats(0.05, 0.98), st.integers(0, 7))
def test_coverage_leaves_out_no_more_than_it_may(scores, coverage, least):
    """Against the definition: the next coordinate further in would leave out too much."""
    p = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    low = int(coordinates(torch.tensor([scores]), 0, coverage)[0])
    assert sum(p[low:]) > coverage - 1e-5 and sum(p[low + 1 :]) < coverage + 1e-5
    masked = torch.tensor([scores]).masked_fill(torch.arange(8) < least, float("-inf"))
    p = masked[0].double().softmax(0).tolist()
    high = int(coordinates(masked, 2, coverage)[0])
    assert high >= least and sum(p[: high + 1]) > coverage - 1e-5 and sum(p[:high]) < coverage + 1e-5
    assert masked[0, coordinates(masked, 2)[0]] == masked.max()


@pytest.mark.parametrize(
    "text", ["greedy", "most_probable", "coverage:0.9", "expected_recall:0.9321", "expected_recall:1.0"]
)
def test_a_readout_is_read_as_it_is_written(text):
    assert str(Readout.parse(text)) == text and Readout.parse(Readout.parse(text)) == Readout.parse(text)
    config = SimpleNamespace(region_coverage=0.9)
    assert Readout.stored(config) == Readout("coverage", 0.9)
    Readout.parse(text).store(config)
    assert vars(config) == {"region_readout": text} and Readout.stored(config) == Readout.parse(text)


def test_older_checkpoints_say_what_they_said():
    assert Readout.stored(SimpleNamespace()) == Readout.stored(SimpleNamespace(region_coverage=0)) == Readout("greedy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gredy", "choose greedy"), ("greedy:0.5", "greedy has no level"), ("coverage", "needs a level"),
        ("coverage:1", "0 < level < 1"), ("coverage:0", "0 < level < 1"), ("expected_recall:1.1", "0 <= level <= 1"),
        ("expected_recall:nan", "0 <= level <= 1"), ("expected_recall:much", "'much' is no number"), (0.9, "give text"),
    ],
)  # fmt: skip
def test_what_is_no_readout_is_told(text, said):
    with pytest.raises(ValueError, match=f"readout.*{said}"):
        Readout.parse(text)
