"""What answering finds out, question by question, in a form that can be written down and read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from cropl.evaluation.arm_run import Run


@dataclass(frozen=True)
class Answered:
    """One question under one run.

    Attributes:
        run: the run's key.
        index: of the question.
        text: the answer.
        visual: visual tokens that each decoder layer saw in the prefill, as the patch counted.
        text_tokens: tokens of the prompt that are not visual.
        seconds: its share of the time that its batch took to generate.
        positions: that the method gives to survivors; None for dense.
        kv_bytes: of the key-value cache after a prefill of this question alone; None where none was read.
    """

    run: str
    index: int
    text: str
    visual: tuple[int, ...]
    text_tokens: int
    seconds: float
    positions: str | None = None
    kv_bytes: int | None = None

    def record(self, key: str) -> dict[str, Any]:
        """For a file, with the question's key in place of its index; equal layers are counted."""
        layers = [[tokens, len(list(same))] for tokens, same in groupby(self.visual)]
        made = {**asdict(self), "visual": layers, "key": key}
        del made["index"]
        return made

    @classmethod
    def from_record(cls, record: Mapping[str, Any], index: int) -> Answered:
        """What `record` wrote.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        given = {name: value for name, value in record.items() if name != "key"}
        visual = tuple(tokens for tokens, times in given.pop("visual") for _ in range(times))
        return cls(**given, index=index, visual=visual)


@dataclass(frozen=True)
class Encoded:
    """Images that the study's model has encoded for all of its runs, and the seconds that it took."""

    images: int
    seconds: float


@dataclass
class Answers:
    """All answers of a study: for every run key, one entry per question.

    Attributes:
        texts, visual, text_tokens: as in `Answered`.
        positions: for every run key.
        probes: for every run key, (question, bytes) of the caches that were read.
        seconds: for every run key, generation alone.
        encoded: how many images were encoded; the same one again after an interruption, and in every process.
        encode_seconds: that it took.
        restored: whether another process, or an earlier one, found some of it.
    """

    texts: dict[str, list[str | None]] = field(default_factory=dict)
    visual: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    text_tokens: dict[str, list[int]] = field(default_factory=dict)
    positions: dict[str, str | None] = field(default_factory=dict)
    probes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    encoded: int = 0
    encode_seconds: float = 0.0
    restored: bool = False

    @classmethod
    def of(cls, runs: Sequence[Run], questions: int) -> Answers:
        """None yet, of these runs."""
        made = cls()
        for run in runs:
            made.expect(run.key, questions)
        return made

    def expect(self, run: str, questions: int) -> None:
        """So many answers under the key `run`, none of them known yet."""
        self.texts[run], self.visual[run], self.text_tokens[run] = [None] * questions, [()] * questions, [0] * questions
        self.probes[run], self.seconds[run] = [], 0.0

    def take(self, found: Iterable[Answered | Encoded]) -> None:
        """Enter what was found; a second answer to a question leaves the first as it is."""
        for one in found:
            if isinstance(one, Encoded):
                self.encoded += one.images
                self.encode_seconds += one.seconds
            elif self.texts[one.run][one.index] is None:
                self.texts[one.run][one.index] = one.text
                self.visual[one.run][one.index] = one.visual
                self.text_tokens[one.run][one.index] = one.text_tokens
                self.seconds[one.run] += one.seconds
                self.positions[one.run] = one.positions
                if one.kv_bytes is not None:
                    self.probes[one.run].append((one.index, one.kv_bytes))

    def missing(self, run: str) -> set[int]:
        """The questions without an answer."""
        return {index for index, text in enumerate(self.texts[run]) if text is None}
