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
        self._known = {alias: truth for truth in truths for alias in truth.aliases}
        self._known |= {truth.id: truth for truth in truths}

    def find(self, id: str, prompt: str = "", source: str = "", question: str = "") -> str | None:
        """The id that scores go by; None if there is no such question, or it asks something else than the prompt.

        Args:
            id: in the file that asks or answers it.
            prompt: that it is asked with; "" where that is not known.
            source: of its sample, see `cropl.data.sample.Sample`.
            question: in the prompt, where that may say it in other words.
        """
        said = [text for text in (prompt, question) if text]
        for name in (self._benchmark.known_as(id, prompt, source), id):
            truth = self._known.get(name)
            # Numbers of one file are also numbers of another, and of another version of it.
            if truth and (not said or not truth.question or any(self._benchmark.asks(truth, text) for text in said)):
                return truth.id
        return None

    def of_sample(self, sample: Sample) -> str | None:
        """The same of what a reader made, which tells repeated ids apart."""
        ids = (sample.id, _AGAIN.sub("", sample.id))
        found = (self.find(id, sample.asked, sample.source, sample.question) for id in ids)
        return next((id for id in found if id is not None), None)


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
    found = [names.of_sample(sample) for sample in samples]
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
