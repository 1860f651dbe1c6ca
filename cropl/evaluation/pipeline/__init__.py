"""Ahead-of-time localization (paper, 4.4): the localizer and the model that answers as two overlapped stages."""

from cropl.evaluation.pipeline.loader import LocalizedAhead
from cropl.evaluation.pipeline.overlap import Pipeline, Result, pipeline

__all__ = ["LocalizedAhead", "Pipeline", "Result", "pipeline"]
