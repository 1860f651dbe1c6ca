"""Pictures and tables for whichever loggers of a run can show them: TensorBoard, Weights & Biases, MLflow.

They are told apart by what they can do, so a logger of one's own that has the methods of one of them is served as well;
one without, such as a CSV log, is passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image


def log_image(loggers: Sequence[Any], key: str, image: Image.Image, step: int) -> None:
    """Log an RGB picture under a name."""
    for logger in loggers:
        if hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image(key=key, images=[image], step=step)
            continue
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_image"):  # TensorBoard
            writer.add_image(key, np.asarray(image), step, dataformats="HWC")
        elif hasattr(writer, "log_image") and hasattr(logger, "run_id"):  # MLflow
            writer.log_image(logger.run_id, image, key=key, step=step)


def log_table(loggers: Sequence[Any], key: str, columns: Sequence[str], rows: Sequence[Sequence[str]], markdown: str,
              step: int) -> None:  # fmt: skip
    """Log a table under a name: its cells where a logger knows tables, else its `markdown`."""
    for logger in loggers:
        if hasattr(logger, "log_table"):  # Weights & Biases
            logger.log_table(key=key, columns=list(columns), data=[list(row) for row in rows], step=step)
            continue
        writer: Any = getattr(logger, "experiment", None)
        if hasattr(writer, "add_text"):  # TensorBoard
            writer.add_text(key, markdown, step)
        elif hasattr(writer, "log_text") and hasattr(logger, "run_id"):  # MLflow
            writer.log_text(logger.run_id, markdown, f"{key}/step-{step:06d}.md")
