"""Metrics: pure functions, and thin torchmetrics classes that only accumulate integer counts."""

from cropl.metrics.answer import AnswerAccuracy as AnswerAccuracy
from cropl.metrics.answer import exact_match as exact_match
from cropl.metrics.area import AreaRecall as AreaRecall
from cropl.metrics.area import AreaRecallBySource as AreaRecallBySource
from cropl.metrics.bootstrap import bootstrap_ci as bootstrap_ci
from cropl.metrics.bootstrap import paired_bootstrap_ci as paired_bootstrap_ci
from cropl.metrics.relative import relative_accuracy as relative_accuracy
