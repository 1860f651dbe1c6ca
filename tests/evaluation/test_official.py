"""A row's official scores are the scorer's own, whatever the order of the questions, and however many seeds."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from cropl.benchmarks.base import Truth, judged
from cropl.benchmarks.gqa import Gqa
from cropl.benchmarks.mme import Mme
from cropl.benchmarks.pope import Pope
from cropl.benchmarks.scoring import compare, exact, tally
from cropl.benchmarks.vqav2 import VqaV2
from cropl.errors import UsageError
from cropl.evaluation.official import UNSCORED, Official, spread
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.models.vlm import load_vlm
from cropl.testbed.samples import samples as scenes

SEED, RESAMPLES = 3, 500


def yes_or_no(n: int, groups: tuple[str, ...]) -> list[Truth]:
    """Two questions about each of n images in each group."""
    return [
        Truth(f"{group}/{i}{end}", (says,), group, f"{group}/{i}")
        for group in groups for i in range(n) for end, says in (("", "yes"), ("-2", "no"))
    ]  # fmt: skip


def truths_of(benchmark: Any) -> list[Truth]:
    if isinstance(benchmark, VqaV2):
        said = [("red",) * k + ("blue",) * (10 - k) for k in (10, 9, 3, 1, 0) for _ in range(12)]
        return [Truth(str(i), answers, ("other", "number")[i % 2], str(i // 3)) for i, answers in enumerate(said)]
    if isinstance(benchmark, Gqa):
        counted = [Truth(str(i), (("yes", "red")[i % 2],), ("binary", "open")[i % 2], str(i // 4)) for i in range(60)]
        return [*counted, Truth("60", ("red",), "open", counted=False)]
    return yes_or_no(12, ("count", "OCR") if isinstance(benchmark, Mme) else ("random", "popular"))


def made(benchmark: Any, share: float, seed: int) -> tuple[Official, list[str]]:
    """The official scores of samples in another order than the truths', and answers of which a share is right."""
    truths, rng = truths_of(benchmark), random.Random(seed)
    ids = [truth.id for truth in truths]
    random.Random(99).shuffle(ids)
    by_id = {truth.id: truth for truth in truths}
    wrong = ("yes", "no", "blue")
    return Official(benchmark, truths, ids), [
        by_id[id].answers[0].title() if rng.random() < share else rng.choice(wrong) for id in ids
    ]


BENCHMARKS = [Gqa(), Mme(), Pope(), VqaV2()]


@pytest.fixture(params=BENCHMARKS, ids=lambda one: one.name)
def answered(request) -> tuple[Official, list[list[str]]]:
    """Dense answers, and those of two seeds."""
    benchmark = request.param
    official, dense = made(benchmark, 0.8, 0)
    return official, [dense, made(benchmark, 0.6, 1)[1], made(benchmark, 0.5, 2)[1]]


def scorers_own(official: Official, texts: list[str]) -> Any:
    """What `cropl score` makes of a file with these answers."""
    submitted = {id: official.benchmark.submitted(text) for id, text in zip(official.ids, texts, strict=True)}
    return judged(official.benchmark, official.truths, submitted)


def test_one_seed_scores_as_the_scorer_does(answered) -> None:
    official, (dense, ours, _) = answered
    counts, reference = official.counts(ours), official.counts(dense)
    theirs = scorers_own(official, ours)
    assert np.array_equal(counts, theirs)
    found = official.scores([counts], reference, SEED, RESAMPLES)
    expected = tally(official.benchmark, official.truths, theirs, SEED, RESAMPLES)
    assert found["scores"] == expected.values
    primary = official.benchmark.primary
    assert (found["primary"], found["score"], found["score_source"]) == (primary, expected.values[primary], "local")
    # Which units are drawn follows from the answers in their order: here too, dense ones come first.
    less, low, high = compare(official.benchmark, official.truths, reference, counts, SEED, RESAMPLES)[primary]
    difference = found["score_vs_dense"]
    assert (difference["difference"], *difference["ci95"]) == pytest.approx((-less, -high, -low))
    dense_score = exact(official.benchmark, official.truths, reference)[primary]
    assert found["rel_acc"] == 100 * found["score"] / dense_score and 0 < found["rel_acc"] < 100
    width = np.diff(expected.intervals[primary])[0]  # drawn beside the dense answers: other draws, of the same units
    for end, other in zip(found["score_ci95"], expected.intervals[primary], strict=True):
        assert abs(end - other) < 0.25 * width


def test_dense_is_all_of_itself(answered) -> None:
    official, (dense, *_) = answered
    counts = official.counts(dense)
    found = official.scores([counts], counts, SEED, RESAMPLES)
    assert (found["rel_acc"], found["rel_acc_sd"]) == (100, 0)
    assert found["score_vs_dense"] == {"difference": 0, "ci95": [0, 0]}


def test_several_seeds_are_means_over_them(answered) -> None:
    official, (dense, *seeds) = answered
    counts = [official.counts(one) for one in seeds]
    found = official.scores(counts, official.counts(dense), SEED, RESAMPLES)
    alone = [exact(official.benchmark, official.truths, one) for one in counts]
    for name, value in found["scores"].items():
        assert value == pytest.approx((alone[0][name] + alone[1][name]) / 2)
    both = official.scores([counts[0], counts[0]], official.counts(dense), SEED, RESAMPLES)
    assert both["score"] == alone[0][official.benchmark.primary]
    low, high = found["score_ci95"]
    assert low < found["score"] < high


def test_the_spread_is_that_of_every_resample_by_itself(answered) -> None:
    """Against units drawn one by one, and scored by the scorer itself."""
    official, (dense, ours, _) = answered
    benchmark = official.benchmark
    sets = [official.counts(one) for one in (dense, ours)]
    found = official.scores(sets[1:], sets[0], SEED, 2000)["rel_acc_sd"]
    by_unit: dict[str, list[int]] = {}
    for index, truth in enumerate(official.truths):
        if truth.counted:
            by_unit.setdefault(truth.unit or truth.id, []).append(index)
    by_groups: dict[Any, list[list[int]]] = {}
    for indices in by_unit.values():
        by_groups.setdefault(frozenset(official.truths[i].group for i in indices), []).append(indices)
    rng, ratios = random.Random(0), []
    for _ in range(400):
        drawn = [indices for mine in by_groups.values() for indices in rng.choices(mine, k=len(mine))]
        picks = [(place, index) for place, indices in enumerate(drawn) for index in indices]
        truths = [Truth(str(at), official.truths[i].answers, official.truths[i].group, f"u{place}")
                  for at, (place, i) in enumerate(picks)]  # fmt: skip
        rows = [i for _, i in picks]
        reference, score = (exact(benchmark, truths, counts[rows])[benchmark.primary] for counts in sets)
        ratios.append(100 * score / reference)
    assert found == pytest.approx(np.std(ratios), rel=0.15)


def test_resamples_without_a_dense_score_count_for_none() -> None:
    assert spread(np.array([1.0, 2.0, 5.0]), np.array([2.0, 2.0, 0.0])) == 25
    assert spread(np.array([1.0]), np.array([0.0])) == 0


def test_nothing_is_relative_to_a_dense_score_of_nothing() -> None:
    official, _ = made(Gqa(), 1, 0)
    wrong, right = official.counts(["?"] * 61), official.counts(["red"] * 61)
    found = official.scores([right], wrong, SEED, 20)
    assert found["rel_acc"] is None and found["rel_acc_sd"] is None and found["score"] == 50


def test_credits_are_in_the_order_of_the_samples() -> None:
    truths = [Truth("a", ("red",) * 3 + ("blue",) * 7), Truth("b", ("sign",) * 10), Truth("c", ("x",) * 10)]
    official = Official(VqaV2(), truths, ["c", "a", "b"])
    assert official.credits(official.counts(["y", "red", "sign"])).tolist() == [0, 0.9, 1]
    pope = Official(Pope(), [Truth("random/1", ("yes",), "random"), Truth("random/2", ("no",), "random")],
                    ["random/2", "random/1"])  # fmt: skip
    assert pope.credits(pope.counts(["No.", "no"])).tolist() == [1, 0]
    mme = Official(Mme(), yes_or_no(1, ("count",)), ["count/0-2", "count/0"])
    assert mme.credits(mme.counts(["Yes", "Yes"])).tolist() == [0, 1], "a credit is of a question, not of a pair"


def test_a_limit_leaves_the_others_out_of_the_score() -> None:
    whole, texts = made(Gqa(), 0.7, 0)
    first = Official.joined(whole.benchmark, whole.truths, whole.ids, 20)
    assert list(first.ids) == list(whole.ids[:20]) and not first.complete and len(first.truths) == 20
    counts = first.counts(texts[:20])
    by_id = dict(zip(whole.ids, whole.credits(whole.counts(texts)), strict=True))
    mine = [by_id[truth.id] for truth in whole.truths if truth.id in set(first.ids) and truth.counted]
    assert exact(first.benchmark, first.truths, counts)["accuracy"] == pytest.approx(100 * np.mean(mine))
    for limit in (None, len(whole.ids), 1000):
        assert Official.joined(whole.benchmark, whole.truths, whole.ids, limit).complete


def test_a_limit_that_cuts_a_pair_in_two_is_told_before_anything_is_answered() -> None:
    truths = yes_or_no(4, ("count",))
    ids = [truth.id for truth in truths]
    with pytest.raises(UsageError, match="limit 5: mme: an image with 1 questions; .*take one more or fewer"):
        Official.joined(Mme(), truths, ids, 5)
    assert len(Official.joined(Mme(), truths, ids, 4).truths) == 4
    assert len(Official.joined(Pope(), truths, ids, 5).truths) == 5
    asked = [Truth(str(i), (), counted=False) for i in range(3)]
    assert not Official.joined(VqaV2(), asked, ["0", "1", "2"], 2).scored


@pytest.fixture(scope="module")
def model(tiny_llava) -> Any:
    return load_vlm(tiny_llava)


def rows_of(model: Any, official: Official | None, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    config: dict[str, Any] = {
        "model": "tiny", "data": {"class_path": "x.y"}, "scorer": "gqa", "max_new_tokens": 1, "bootstrap": 20,
        "arms": [{"method": "fastv", "layer": 1, "budget": 16}, {"method": "pyramiddrop", "budget": 1}],
    }  # fmt: skip
    outcome = run_study(Study.from_config({**config, **changes}), scenes("test", 3), model, official=official)
    assert outcome is not None
    return outcome.results["rows"], outcome


def test_what_only_a_server_knows_is_not_scored_here(model) -> None:
    asked = [Truth(str(i), (), counted=False) for i in range(3)]
    official = Official(VqaV2(), asked, ["0", "1", "2"])
    assert not official.scored
    for one in (official, None):  # questions without answers, or no annotations at all
        rows, outcome = rows_of(model, one, scorer="vqav2")
        for row in rows[:2]:
            assert {name: row[name] for name in UNSCORED} == dict(UNSCORED) and row["score_source"] == "server"
            assert row["accuracy"] is None and row["vs_dense"] is None and row["tokens_kept_mean"] > 0
        assert all(
            entry["credit"] is None and entry["correct"] is None
            for line in outcome.predictions for entry in line["arms"].values()
        )  # fmt: skip
        assert outcome.results["comparisons"] == []


def test_without_a_scorer_the_score_is_the_accuracy_in_percent(model) -> None:
    rows, _ = rows_of(model, None, scorer=None)
    for row in rows[:2]:
        assert row["score"] == row["scores"]["accuracy"] == 100 * row["accuracy"]
        assert row["score_ci95"] == [100 * end for end in row["accuracy_ci95"]]
        assert (row["primary"], row["score_source"], row["scorer"]) == ("accuracy", "exact match", None)


def test_an_infeasible_budget_has_no_score_from_anywhere(model) -> None:
    official = Official(Gqa(), [Truth(str(i), ("red",)) for i in range(3)], ["0", "1", "2"])
    rows, _ = rows_of(model, official)
    assert [row["score_source"] for row in rows] == ["local", "local", None]
    assert rows[2]["infeasible"] and rows[2]["score"] is None and rows[2]["scores"] == {}
    assert rows[0]["scorer"] == "gqa" and rows[0]["primary"] == "accuracy"
