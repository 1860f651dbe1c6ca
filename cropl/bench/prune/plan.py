"""What the pruning bench measures of each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cropl.bench.prune.inputs import REGIONS, Arm, Budget, arm, count_of
from cropl.bench.prune.methods import METHODS
from cropl.bench.prune.shapes import Shape

ANSWERED: dict[str, Callable[[list[int]], list[int]]] = {
    "all": lambda counts: counts,
    "ends": lambda counts: [min(counts), max(counts)],
    "least": lambda counts: [min(counts)],
}
"""Which of a method's budgets have answers, of those that it can meet."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each shape.

    Attributes:
        methods: names, see `methods.METHODS`.
        budgets: visual tokens kept; None is the shape's own. Methods with a number of tokens of their own run once.
        batches: questions at once.
        new_tokens: lengths of the answers that are timed.
        pairs: of prefills, for every figure.
        answer_pairs: of answers of the greatest length; 0 times none.
        ragged: batches whose rows keep what their regions hold.
        growth: counts or shares that ILP alone is measured at, to see how time grows with them.
        compiled: names of methods that are compiled, at the same budgets.
        answer_budgets: of which of each method's budgets answers are timed, one of `ANSWERED`.
    """

    methods: Sequence[str]
    budgets: Sequence[Budget] | None
    batches: Sequence[int]
    new_tokens: Sequence[int]
    pairs: int
    answer_pairs: int
    ragged: Sequence[int] = ()
    growth: Sequence[Budget] = ()
    compiled: Sequence[str] = ()
    answer_budgets: str = "all"

    @property
    def answers(self) -> bool:
        """Whether answers are timed."""
        return bool(self.answer_pairs and self.new_tokens)

    def answered(self, series: str, arms: Sequence[Arm]) -> list[bool]:
        """Of which arms of a series answers are timed. What regions hold is no count, and always among them."""
        if not self.answers or series not in ("methods", "compiled"):
            return [False] * len(arms)
        counts: dict[str, list[int]] = {}
        for one in arms:
            if one.method is not None and one.tokens is not None:
                counts.setdefault(one.name, []).append(one.tokens)
        picked = {name: ANSWERED[self.answer_budgets](found) for name, found in counts.items()}
        return [one.tokens is None or one.tokens in picked.get(one.name, ()) for one in arms]

    def arms(self, shape: Shape, num_layers: int) -> dict[tuple[str, int], list[Arm]]:
        """What is run, by (series, batch): `methods`, `growth`, `ragged` or `compiled`.

        Raises:
            UsageError: a method is unknown, or cannot have a budget.
        """
        budgets = shape.budgets if self.budgets is None else self.budgets

        def make(name: str, budget: Budget, batch: int) -> Arm:
            return arm(name, budget, shape, num_layers, batch)

        def each(names: Sequence[str], batch: int) -> list[Arm]:
            return [make(name, budget, batch) for name in names for budget in budgets[: 1 if _own(name) else None]]

        found = {("methods", batch): each(self.methods, batch) for batch in self.batches}
        if self.growth:
            counts = [count_of(budget, shape, "growth") for budget in self.growth]
            found["growth", self.batches[0]] = [make("ilp", count, self.batches[0]) for count in counts]
        found |= {("ragged", batch): [make("ilp", REGIONS, batch)] for batch in self.ragged}
        return found | {("compiled", batch): each(self.compiled, batch) for batch in self.batches if self.compiled}

    def steps(self, shape: Shape) -> int:
        """How often `advance` is called for a shape."""
        layers = shape.model_config().get_text_config().num_hidden_layers
        return sum(len(arms) for arms in self.arms(shape, layers).values())


def _own(name: str) -> bool:
    return name in METHODS and METHODS[name].meaning == "own"
