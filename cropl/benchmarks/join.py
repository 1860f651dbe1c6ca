"""Which question of the annotations a sample or an answer is to, whichever published file it comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cropl.benchmarks.base import AnswersError, Benchmark, Truth, repeated, some
from cropl.data.sample import Sample

_AGAIN = re.compile(r"-[0-9]+$")
"""What tells repeated ids apart, see `cropl.data.readers.base.unique_ids`."""


class Names:
    """The questions of a benchmark by every id that they are published with.

    Args:
        benchmark: whose questions.
        truths: the questions.
    """

    def __init__(self, benchmark: Benchmark, truths: Sequence[Truth]) -> None:
        self._benchmark = benchmark
        self._known = {alias: truth.id for truth in truths for alias in truth.aliases}
        self._known |= {truth.id: truth.id for truth in truths}

    def find(self, id: str, prompt: str = "", source: str = "") -> str | None:
        """The id that scores go by; None if there is no such question.

        Args:
            id: in the file that asks or answers it.
            prompt: that it is asked with.
            source: of its sample, see `cropl.data.sample.Sample`.
        """
        for one in (id, _AGAIN.sub("", id)):
            for name in (self._benchmark.known_as(one, prompt, source), one):
                if name in self._known:
                    return self._known[name]
        return None


def join(benchmark: Benchmark, truths: Sequence[Truth], samples: Sequence[Sample], whole: bool = True) -> list[str]:
    """The id of the question that each sample asks, in the order of the samples.

    Args:
        benchmark: whose questions.
        truths: the questions, as its annotations have them.
        samples: what is asked, from the benchmark's own files or from LLaVA's.
        whole: False lets questions be left out.

    Raises:
        AnswersError: a sample asks no question of the annotations, two ask the same, or one is not asked.
    """
    names = Names(benchmark, truths)
    found = [names.find(sample.id, sample.asked, sample.source) for sample in samples]
    ids = [id for id in found if id is not None]
    asked = set(ids)
    left_out = [truth.id for truth in truths if truth.counted and truth.id not in asked]
    faults = {
        "twice in the annotations": repeated([truth.id for truth in truths]),
        "asked twice": repeated(ids),
        "not in the annotations": [sample.id for sample, id in zip(samples, found, strict=True) if id is None],
        "in the annotations and not asked": left_out if whole else [],
    }
    told = [f"{len(ids)} {what} ({some(ids)})" for what, ids in faults.items() if ids]
    if told:
        raise AnswersError(
            f"{benchmark.name}: the {len(samples)} questions asked are not the {len(truths)} of the annotations: "
            f"{'; '.join(told)}"
        )
    return ids
