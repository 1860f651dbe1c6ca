"""Signals that ask a training to end: noted when they come, answered by all processes at the end of a step.

A handler may run anywhere, also inside an optimizer's step or a collective; so it only notes the signal.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import SLURMEnvironment

from cropl.callbacks.processes import gathered

_log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM: 143, as of any program that a SIGTERM ended."""


class Preempted(SystemExit):
    """Ends the process: with :data:`TERMINATED` in the first process of a machine, with 0 in the others.

    Lightning's launcher takes another code of a process that it started for a crash, and kills the first.
    """


class Signals:
    """SIGTERM, and SIGUSR1 (or SLURM's requeue signal) in a job that SLURM is to requeue."""

    def __init__(self) -> None:
        self.noted: set[int] = set()
        self.requeue: int | None = None

    def install(self, trainer: L.Trainer) -> None:
        """Take the place of Lightning's handlers, which start collectives; Lightning's own teardown restores all."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.requeue = _requeue_signal(trainer)
        for number in (signal.SIGTERM, self.requeue):
            if number is not None:
                signal.signal(number, self._note)

    def asked(self, trainer: L.Trainer) -> set[int]:
        """The signals that any process got. All processes call it."""
        if trainer.world_size == 1:
            return set(self.noted)
        if not trainer.strategy.reduce_boolean_decision(bool(self.noted), all=False):
            return set()
        return set().union(*gathered(self.noted))

    def leave(self, trainer: L.Trainer, signals: set[int], saved: str) -> None:
        """Have SLURM requeue the job, if that was asked for, and end this process.

        Raises:
            Preempted: always.
        """
        names = ", ".join(sorted(signal.Signals(number).name for number in signals))
        if trainer.is_global_zero:
            _log.warning("%s: step %d is saved in %s", names, trainer.global_step, saved)
            if self.requeue in signals:
                _requeue()
        trainer.strategy.barrier("cropl.preempted")
        raise Preempted(TERMINATED if trainer.local_rank == 0 else 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted.add(number)


def _requeue_signal(trainer: L.Trainer) -> int | None:
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    if not isinstance(environment, SLURMEnvironment):
        environment = SLURMEnvironment() if SLURMEnvironment.detect() else None
    if environment is None or not environment.auto_requeue:
        return None
    return int(environment.requeue_signal or signal.SIGUSR1)


def _requeue() -> None:
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        _log.error("the job %s cannot be requeued: %s", job, error)
