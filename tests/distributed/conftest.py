"""Shards and untrained checkpoints, built once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.worlds import Job, write_samples
from tests.reference.checkpoints import build_llava, build_qwen2_vl


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A training of each kind on one process; :func:`dataclasses.replace` makes others of it."""
    root: Path = tmp_path_factory.mktemp("distributed")
    shards = write_samples(root)
    llava = str(build_llava(root / "llava", layers=2, width=32))
    qwen = str(build_qwen2_vl(root / "qwen2_vl", layers=2, width=64))
    return {
        "instruction": Job("instruction", "cropl.modules.instruction.InstructionModule", llava, shards, root),
        "localizer": Job(
            "localizer", "cropl.modules.localizer.LocalizerModule", qwen, shards, root, {"readout": "coverage:0.9"}
        ),
        "compressor": Job("compressor", "cropl.modules.compressor.CompressorModule", llava, shards, root),
    }
