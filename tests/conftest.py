"""Settings for all tests."""

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# No deadline: CI machines are shared, and a slow second is no bug.
settings.register_profile("cropl", deadline=None)
settings.load_profile("cropl")

# Nothing of a test stays in the user's cache.
os.environ["CROPL_CACHE"] = tempfile.mkdtemp(prefix="cropl-tests-")

_LAUNCH = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def _no_launch_left_behind() -> Iterator[None]:
    """A trainer that ran here leaves its address in the environment, where the next test's processes would find it."""
    before = {name: os.environ.get(name) for name in _LAUNCH}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
