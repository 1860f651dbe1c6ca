"""Every arm's answers in the official form of the benchmark, beside the results."""

from __future__ import annotations

import shutil
from pathlib import Path

from cropl.benchmarks.base import Benchmark
from cropl.evaluation.official import Official
from cropl.evaluation.outcome import Outcome


def write_submissions(outcome: Outcome, official: Official | None, folder: Path) -> None:
    """Write one file, or folder, for each run: `folder/RUN/NAME`, as official scripts and servers read it.

    What lies there is removed. Nothing is written where there is no official form, or not all questions were asked.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if official is None or not official.complete:
        return
    if type(official.benchmark).write_submission is Benchmark.write_submission:
        return
    benchmark, lines = official.benchmark, outcome.predictions
    for run in lines[0]["arms"]:
        answers = {
            id: benchmark.submitted(line["arms"][run]["prediction"])
            for id, line in zip(official.ids, lines, strict=True)
        }
        benchmark.write_submission(folder / run.replace("/", "_") / benchmark.submission, official.truths, answers)
