"""The two sides of a measured pair, eager or compiled: what a prefill and an answer take of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from cropl.bench.prune.inputs import Arm
from cropl.bench.prune.runs import Subject
from cropl.bench.prune.time import Clock
from cropl.pruning import Dense, StaticRunner
from cropl.pruning.static_layers import Compile


class Side(Protocol):
    """A way to run a batch of questions."""

    def prefill(self) -> float:
        """Seconds of one prefill."""

    def answer(self, tokens: int) -> list[float]:
        """Seconds from the start to each of this many new tokens, and to the end."""

    @property
    def towers(self) -> Sequence[float]:
        """Seconds of the vision tower, each time that it had to run where a method sees it."""


class Eager:
    """The model as it is, inside `pruned`.

    Args:
        subject: what runs.
        clock: that measures it.
        arm: dense where None.

    The vision tower counts in no prefill or answer, wherever it runs.
    """

    def __init__(self, subject: Subject, clock: Clock, arm: Arm | None = None) -> None:
        self.subject, self.clock, self.arm = subject, clock, arm
        self._towers: list[float] = []

    @property
    def towers(self) -> Sequence[float]:
        return self._towers

    def prefill(self) -> float:
        return self._behind_tower(self.clock.stamps(lambda stamp: self.subject.prefill(self.arm, stamp)))[-1]

    def answer(self, tokens: int) -> list[float]:
        return self._behind_tower(self.clock.stamps(lambda stamp: self.subject.answer(self.arm, tokens, stamp)))

    def _behind_tower(self, stamps: Sequence[float]) -> list[float]:
        if self.arm is None or not self.arm.looks:
            return list(stamps)
        began, ended, *others = stamps
        self._towers.append(ended - began)
        return [seconds - (ended - began) for seconds in others]


class Compiled:
    """The model's layers compiled at static shapes, as `StaticRunner` runs them.

    Args:
        subject: what runs.
        clock: that measures it.
        arm: dense where None.
        new_tokens: of an answer at most.
        compile: see `StaticRunner`.

    Attributes:
        first_s: seconds of the first answer, most of which is the compilation's.

    Raises:
        NotSupportedError: this method or model cannot be run like this.
    """

    def __init__(self, subject: Subject, clock: Clock, arm: Arm | None, new_tokens: int, compile: Compile) -> None:
        self.subject, self.clock = subject, clock
        self.request = {} if arm is None else arm.request
        method: Any = Dense() if arm is None else arm.method
        self.runner = StaticRunner(subject.vlm, method, max(1, new_tokens), compile=compile)
        began = time.perf_counter()
        self.answer(new_tokens)
        self.first_s = time.perf_counter() - began
        for _ in range(2):  # CUDA graphs are recorded on the second run
            self.prefill()
            self.answer(new_tokens)

    def prefill(self) -> float:
        return self.clock(lambda: self.runner.generate(self.subject.inputs, **self.request, max_new_tokens=1))

    def answer(self, tokens: int) -> list[float]:
        return self.clock.stamps(
            lambda stamp: self.runner.generate(
                self.subject.inputs, **self.request, max_new_tokens=max(1, tokens), watch=lambda logits_BC: stamp()
            )
        )

    @property
    def towers(self) -> Sequence[float]:
        return ()

    def bucket_L(self) -> list[int]:
        """Length of each decoder layer in tokens, text included, with the padding to its bucket."""
        last = self.runner.last
        assert last is not None  # it ran
        ends = (*last.starts[1:], self.subject.vlm.num_layers)
        return [n for n, start, end in zip(last.buckets, last.starts, ends, strict=True) for _ in range(start, end)]

    def close(self) -> None:
        """Let go of its buffers and compiled code."""
        self.runner.release()
        torch.compiler.reset()
