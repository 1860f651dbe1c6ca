"""One pass over the questions: an arm with one seed, what it keeps, and the method that it builds from the arm.

Shapes: V visual tokens of one image.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cropl.budget import InfeasibleBudget, kept_for_layer_average
from cropl.errors import UsageError
from cropl.evaluation.arms import Arm
from cropl.pruning.select import scaled_layer
from cropl.recipe import instantiate, load_object
from cropl.testbed import weights

if TYPE_CHECKING:
    import torch

    from cropl.grid import Region


@dataclass
class Run:
    """One pass over the questions: an arm, with one seed where it is a random control.

    Attributes:
        arm, seed: what is run.
        layer: K as a number, None for methods without.
        num_layers: L of the model that answers.
        total: visual tokens of an image before pruning, on average.
        regions: one region per question, None for methods without.
        keep: one bool mask (V_i,) per question, None where the method draws or computes its own.
        kept: visual tokens that are to stay after the pruning layer, per question; results hold those that did.
        factor, residual: of the set's budget; None where there is none.
        infeasible: why the budget cannot be met, by any seed of the arm; its runs are then left out, its row says so.
    """

    arm: Arm
    seed: int | None
    layer: int | None
    num_layers: int = 0
    total: float = 0.0
    regions: list[Region] | None = None
    keep: list[torch.Tensor] | None = None
    kept: list[int] = field(default_factory=list)
    factor: float | None = None
    residual: float | None = None
    infeasible: str | None = None

    @property
    def key(self) -> str:
        """The arm's key, with the seed where there is one."""
        return self.arm.key if self.seed is None else f"{self.arm.key}#{self.seed}"

    @cached_property
    def meets_budget(self) -> bool:
        """Whether the method itself keeps what the budget says, and not the mask of its regions."""
        return self.arm.budget is not None and (self.arm.region_source == "none" or "tokens" in self._knobs)

    @property
    def can_meet_budget(self) -> bool:
        """Whether the method's class takes a budget at all."""
        return "tokens" in self._knobs or hasattr(load_object(self.arm.class_path), "for_budget")

    def count(self, totals: Sequence[int]) -> None:
        """Set `total`, and `kept` to what stays of images of so many tokens where regions decide nothing.

        Raises:
            ValueError: the budget is above the tokens of an image, or as an average over the layers infeasible.
        """
        self.total = sum(totals) / len(totals)
        self.kept = [self._kept_of(total) for total in totals] if self.meets_budget else list(totals)

    def method(self, keys: Sequence[str]) -> Any:
        """The pruning method for a batch of questions with these keys; None for dense."""
        if self.arm.method == "dense":
            return None
        options = {k: _built(v, f"study arm {self.arm.key!r}: {k}") for k, v in self.arm.options.items()}
        if self.layer is not None:
            options["layer"] = self.layer
        if self.arm.positions is not None:
            options["positions"] = self.arm.positions
        if self.meets_budget and "tokens" in self._knobs:
            options["tokens"] = self._tokens()
        if self.seed is not None and "seed" in self._knobs:
            # One draw per question, from its key: neither order nor batch size plays a part.
            options["seed"] = [zlib.crc32(f"{self.seed}-{key}".encode()) for key in keys]
        cls = load_object(self.arm.class_path)
        try:
            if self.meets_budget and "tokens" not in self._knobs:
                mean = self._tokens_of(self.total)
                return cls.for_budget(mean, self.total, self.arm.budget_meaning, self.num_layers, **options)
            return cls(**options)
        except InfeasibleBudget:
            raise
        except TypeError as error:  # an argument of the wrong kind, such as a list, which init_args do not spread
            raise UsageError(f"study arm {self.arm.key!r}: {cls.__name__} with {options}: {error}") from None
        except ValueError as error:
            raise UsageError(f"study arm {self.arm.key!r}: {error}") from None

    @cached_property
    def _knobs(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(load_object(self.arm.class_path)).parameters

    def _tokens(self) -> int | float:
        """The budget as the method's argument `tokens`."""
        budget = self.arm.budget
        assert budget is not None
        if self.arm.budget_meaning != "layer_average":
            return budget
        if isinstance(budget, float) and self.layer is not None and self.layer < self.num_layers:
            return kept_for_layer_average(budget, 1.0, self.layer, self.num_layers)
        if len(set(self.kept)) > 1:  # the method takes one number, and a layer average is another one for every grid
            raise UsageError(
                f"study arm {self.arm.key!r}: a layer_average budget needs images of one token count, and these keep "
                f"{min(self.kept)} to {max(self.kept)}: give the budget as a share, or use budget_meaning post_prune"
            )
        return self.kept[0]

    def _kept_of(self, total: int) -> int:
        tokens = self._tokens_of(total)
        if tokens > total:
            raise ValueError(f"budget {self.arm.budget} is above {total}, the visual tokens of an image")
        if self.arm.budget_meaning == "layer_average" and self.layer is not None and self.layer < self.num_layers:
            tokens = kept_for_layer_average(tokens, total, self.layer, self.num_layers)
        return max(1, round(tokens))

    def _tokens_of(self, total: float) -> float:
        budget = self.arm.budget
        assert budget is not None
        return budget * total if isinstance(budget, float) else float(budget)


def default_of(arm: Arm, name: str) -> Any:
    """What an argument of the arm's class is if it is not given; None for classes without this argument or default."""
    knob = inspect.signature(load_object(arm.class_path)).parameters.get(name)
    return None if knob is None or knob.default is inspect.Parameter.empty else knob.default


def usual_layer(arm: Arm, num_layers: int) -> int | None:
    """K where nobody names one: the default of the arm's class, which is for 32 layers, scaled to `num_layers`."""
    own = default_of(arm, "layer")
    return scaled_layer(own, num_layers) if own else own


def _built(value: Any, where: str) -> Any:
    """An argument as its class takes it: `testbed:` names resolved, what has a `class_path` made, in lists as well."""
    if isinstance(value, str):
        return weights.resolve(value)
    if isinstance(value, Mapping) and "class_path" in value:
        return instantiate(value, where)
    return [_built(one, where) for one in value] if isinstance(value, list) else value
