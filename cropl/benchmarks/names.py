"""Benchmarks by the names that recipes and the command line have for them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from cropl.errors import UsageError, nearest

if TYPE_CHECKING:
    from cropl.benchmarks.base import Benchmark

BENCHMARKS = {
    "gqa": "cropl.benchmarks.gqa.Gqa",
    "mme": "cropl.benchmarks.mme.Mme",
    "pope": "cropl.benchmarks.pope.Pope",
    "scienceqa": "cropl.benchmarks.scienceqa.ScienceQA",
    "textvqa": "cropl.benchmarks.textvqa.TextVqa",
    "vqav2": "cropl.benchmarks.vqav2.VqaV2",
}
"""The built-in ones; any other is named by its class path."""

FILES = {
    "gqa": ("testdev_balanced_questions.json",),
    "mme": ("MME_Benchmark_release_version/",),
    "pope": ("coco_pope_adversarial.json", "coco_pope_popular.json", "coco_pope_random.json"),
    "scienceqa": ("problems.json", "pid_splits.json"),
    "textvqa": ("TextVQA_0.5.1_val.json",),
    "vqav2": ("v2_mscoco_val2014_annotations.json",),
}
"""The official annotation files of each."""


def check_files(name: str, files: Sequence[str], where: str) -> None:
    """UsageError, beginning with `where`, for another number of annotation files than a built-in benchmark has."""
    wanted = FILES.get(name)
    if wanted is not None and len(files) != len(wanted) and name != "pope":  # of any categories
        raise UsageError(f"{where}: {name} has {len(wanted)}: {' '.join(wanted)}")


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name or class path.

    Raises:
        UsageError: there is none.
    """
    path = BENCHMARKS.get(name, name if "." in name else "")
    if not path:
        raise UsageError(f"unknown benchmark {name!r}{nearest(name, list(BENCHMARKS), 'benchmarks')}")
    module, _, kind = path.rpartition(".")
    try:
        found = getattr(import_module(module), kind)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"benchmark {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from None

    from cropl.benchmarks.base import Benchmark

    if not isinstance(found, type) or not issubclass(found, Benchmark):
        raise UsageError(f"benchmark {name!r} is no Benchmark")
    return found()
