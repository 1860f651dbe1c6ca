"""Settings for all tests."""

import os
import tempfile

from hypothesis import settings

# No deadline: CI machines are shared, and a slow second is no bug.
settings.register_profile("cropl", deadline=None)
settings.load_profile("cropl")

# Nothing of a test stays in the user's cache.
os.environ["CROPL_CACHE"] = tempfile.mkdtemp(prefix="cropl-tests-")
