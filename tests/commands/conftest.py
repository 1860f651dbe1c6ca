"""Untrained checkpoints, built once for this folder's tests."""

from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer
