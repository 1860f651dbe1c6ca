"""The turns of the pruning bench: what is timed beside what, what is charged to whom, and what one failure takes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cropl.bench.device import PeakMemory
from cropl.bench.prune.answers import answers
from cropl.bench.prune.front import Front, Fronts
from cropl.bench.prune.plan import Plan
from cropl.bench.prune.run import measure
from cropl.bench.prune.runs import Localizing, Subject
from cropl.bench.prune.shapes import build, shape_of
from cropl.bench.prune.sides import Eager
from cropl.bench.prune.time import median_interval, speedup, turns
from cropl.pruning.static_model import ends
from tests.bench.test_prune import CPU, LAYERS, VOCAB
from tests.bench.test_prune import _published as _published
from tests.bench.test_prune import shapes as shapes


def test_overlapping_costs_the_longer_stage() -> None:
    pairs: list[Any] = [([1.0, 2.0], [3.0, 6.0])] * 3
    made = answers(pairs, [1, 2], front(0.0, 4.0, needed=True))
    assert made["1"]["speedup"]["localizer"]["measured"] == pytest.approx((3 + 1) / (1 + 1 + 4))
    assert made["1"]["speedup"]["overlapped"]["measured"] == pytest.approx((3 + 1) / 4)  # the localizer's seconds
    assert answers(pairs, [2], front(0.0, 1.5, needed=True))["2"]["speedup"]["overlapped"]["measured"] == pytest.approx(
        7 / 3
    )
    assert made["step"] == {"seconds": 1.0, "dense": 3.0, "speedup": 3.0}
    without = answers(pairs, [1], front(0.5, None, needed=False))["1"]["speedup"]
    assert "overlapped" not in without and without["localizer"]["measured"] == pytest.approx(4 / 2.5)
    lacking = answers(pairs, [1], front(0.5, None, needed=True))["1"]["speedup"]
    assert set(lacking) == {"llm", "vision"}  # a localizer that is needed and not there is not free


def front(tower: float, localizer: float | None, needed: bool) -> Front:
    """What three pairs are charged, a second of the vision tower among it."""
    return Front([1.0] * 3, [tower] * 3, None if localizer is None else [localizer] * 3, needed)


def test_tower_and_localizer_are_charged_as_the_machine_was_in_that_turn() -> None:
    """A machine that becomes ten times as slow amid an arm changes no ratio."""
    slow = [1.0, 1.0, 10.0, 10.0]
    taken = iter([0.5, 2.0, 5.0, 20.0])  # tower and localizer behind the first pair and the third one
    watched = [0.75]
    fronts = Fronts(lambda work: next(taken), int, int, watched, True, every=2)  # type: ignore[arg-type]
    for factor in slow:
        watched.append(0.75 * factor)
        fronts.sample()
    found = fronts.charged([4.0 * factor for factor in slow])
    assert found.vision == [0.5, 0.5, 5.0, 5.0] and found.tower == [0.25, 0.25, 2.5, 2.5]
    assert found.localizer == [2.0, 2.0, 20.0, 20.0] and found.ours == [2.25, 2.25, 22.5, 22.5]
    pairs = [(factor, 4.0 * factor) for factor in slow]
    made = speedup(pairs, 1.0, ours=found.ours, both=found.vision)
    assert made["interval"] == pytest.approx([4.5 / 3.75] * 2) and fronts.vision["spread"] == [0.5, 5.0]


def test_tower_and_localizer_are_timed_within_the_turns_of_every_arm(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def noted(name: str, kind: type, method: str) -> None:
        real = getattr(kind, method)

        def call(self: Any) -> Any:
            order.append(name)
            return real(self)

        monkeypatch.setattr(kind, method, call)

    noted("locate", Localizing, "__call__")
    noted("prefill", Eager, "prefill")
    (row,) = measure("small", Plan(["ilp"], [8], [1], [], 5, 0), CPU, torch.float32, 1)
    assert order[:12] == ["locate", *2 * ["prefill"], "locate", *8 * ["prefill"]] and order[12] == "locate"
    assert row["localizer"]["spread"][0] > 0 and row["vision"]["seconds"] > 0


def test_an_unexpected_error_is_one_rows_alone(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Subject.look

    def failing(self: Subject, one: Any) -> Any:
        if self.batch == 2:
            raise ValueError("no batch of 2")
        if one is not None and one.name == "ilp":
            raise RuntimeError("inductor:\n no compiler")
        return real(self, one)

    monkeypatch.setattr(Subject, "look", failing)
    plan = Plan(["ilp", "fastv"], [8], [1, 2], [], 1, 0, compiled=["ilp"])
    rows = measure("small", plan, CPU, torch.float32, 1, compile=False)
    assert [row.get("failed") for row in rows] == ["error", None, *4 * ["error"]]
    assert rows[0]["why"] == "RuntimeError: inductor: no compiler" and rows[-1]["why"] == "ValueError: no batch of 2"
    monkeypatch.setattr(Subject, "look", lambda self, one: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        measure("small", Plan(["ilp"], [8], [1], [], 1, 0), CPU, torch.float32, 1)


def test_answers_look_for_an_end_that_never_comes(shapes: Path) -> None:
    vlm = build(shape_of("small"), CPU, torch.float32)
    (end,), _ = ends(vlm)
    assert end == VOCAB == vlm.model.get_output_embeddings().out_features  # ids end one below


def test_dense_runs_and_answers_are_warm_when_they_count(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[Any, Any]] = []
    answer, run = Subject.answer, Subject.run
    enter = PeakMemory.__enter__

    def ran(self: Subject, call: Any) -> Any:
        runs.append(("run", None))
        return run(self, call)

    def answered(self: Subject, one: Any, tokens: int, stamp: Any) -> None:
        runs.append((one and one.name, tokens))
        answer(self, one, tokens, stamp)

    def entered(self: PeakMemory) -> PeakMemory:
        runs.append(("peak", None))
        return enter(self)

    monkeypatch.setattr(Subject, "run", ran)
    monkeypatch.setattr(Subject, "answer", answered)
    monkeypatch.setattr(PeakMemory, "__enter__", entered)
    measure("small", Plan(["ilp"], [8], [1], [3], 1, 1), CPU, torch.float32, 1)
    assert [name for name, _ in runs[:3]] == ["run", "peak", "run"]
    asked = [one for one in runs if one[0] in ("ilp", None)]
    assert asked == [("ilp", 2), (None, 2), (None, 3), ("ilp", 3)]


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [("all", [4, 8, 12, 16]), ("ends", [4, 12, 16]), ("least", [4, 16])],
)
def test_answers_are_timed_of_some_budgets(budgets: str, expected: list[int], shapes: Path) -> None:
    plan = Plan(["ilp", "dense"], [12, 4, 8], [1], [2], 1, 1, ragged=[1], compiled=["ilp"], answer_budgets=budgets)
    for (series, _), arms in plan.arms(shape_of("small"), LAYERS).items():
        answered = sorted(one.tokens for one, yes in zip(arms, plan.answered(series, arms), strict=True) if yes)  # type: ignore[type-var]
        assert answered == {"methods": expected, "compiled": expected[:-1], "ragged": []}[series]
    met = Plan(["pyramiddrop"], [1, 3, 8], [1], [2], 1, 1, answer_budgets="least")
    (arms,) = met.arms(shape_of("small"), LAYERS).values()
    assert met.answered("methods", arms) == [False, True, False]  # one token a layer cannot be met


def test_turns_alternate_and_ratios_are_of_neighbours() -> None:
    order: list[str] = []

    def told(name: str, seconds: float) -> float:
        order.append(name)
        return seconds

    pairs = turns(3, lambda: told("ours", 1.0), lambda: told("dense", 2.0))
    assert order == ["dense", "ours", "ours", "dense", "dense", "ours"] and pairs == [(1.0, 2.0)] * 3
    found = speedup([(1.0, 3.0), (2.0, 4.0), (1.0, 9.0)], ideal=4.0)
    assert (found["measured"], found["of_ideal"]) == (3.0, 0.75) and found["interval"] == [2.0, 9.0]
    assert speedup([(1.0, 3.0)], 1.0, ours=[1.0], both=[1.0])["measured"] == pytest.approx(4 / 3)


def test_the_interval_of_a_median_narrows_with_more_values() -> None:
    few, many = (torch.randn(n, generator=torch.Generator().manual_seed(0)).tolist() for n in (10, 1000))
    assert median_interval(few) == median_interval(few)
    (a, b), (c, d) = median_interval(few), median_interval(many)
    assert d - c < (b - a) / 3 and c < 0.1 and d > -0.1
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([5.0, 1.0, 2.0, 9.0, 2.0]) == (1.0, 9.0)  # too few for 95 %: the least and the most
