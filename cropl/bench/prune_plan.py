"""What the pruning bench measures of each shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cropl.bench.prune_inputs import REGIONS, Arm, Budget, arm
from cropl.bench.prune_shapes import Shape


@dataclass(frozen=True)
class Plan:
    """What is measured of each shape.

    Attributes:
        methods: names, see `prune_inputs.METHODS`.
        budgets: visual tokens kept; None is the shape's own.
        batches: questions at once.
        new_tokens: lengths of the answers that are timed.
        pairs: of prefills, for every figure.
        answer_pairs: of answers of the greatest length; 0 times none.
        ragged: batches whose rows keep what their regions hold.
        growth: counts that ILP alone is measured at, to see how time grows with them.
    """

    methods: Sequence[str]
    budgets: Sequence[Budget] | None
    batches: Sequence[int]
    new_tokens: Sequence[int]
    pairs: int
    answer_pairs: int
    ragged: Sequence[int] = ()
    growth: Sequence[Budget] = ()

    def arms(self, shape: Shape, num_layers: int) -> dict[tuple[str, int], list[Arm]]:
        """What is run, by (series, batch): `methods`, `growth` or `ragged`.

        Raises:
            UsageError: a method is unknown, or cannot have a budget.
        """
        budgets = shape.budgets if self.budgets is None else self.budgets

        def make(name: str, budget: Budget, batch: int) -> Arm:
            return arm(name, budget, shape, num_layers, batch)

        found = {("methods", b): [make(m, n, b) for m in self.methods for n in budgets] for b in self.batches}
        if self.growth:
            found["growth", self.batches[0]] = [make("ilp", n, self.batches[0]) for n in self.growth]
        return {**found, **{("ragged", b): [make("ilp", REGIONS, b)] for b in self.ragged}}

    def steps(self, shape: Shape) -> int:
        """How often `advance` is called for a shape."""
        layers = shape.model_config().get_text_config().num_hidden_layers
        return sum(len(arms) for arms in self.arms(shape, layers).values())
