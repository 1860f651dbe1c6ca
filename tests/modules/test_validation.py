"""The loss of validation is one number on all ranks: the mean over all their tokens, though one may have none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.modules.validation import losses
from tests.reference.checkpoints import build_llava

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_ranks_log_the_loss_of_all(tmp_path: Path) -> None:
    checkpoint = str(build_llava(tmp_path / "model", layers=2, width=32))
    command = [sys.executable, "-m", "tests.modules.validation", checkpoint, str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = losses(checkpoint)
    assert alone[0] != pytest.approx(alone[1])
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(alone, rel=1e-5)
