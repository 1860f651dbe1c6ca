"""Settings for all tests."""

from hypothesis import settings

# No deadline: CI machines are shared, and a slow second is no bug.
settings.register_profile("cropl", deadline=None)
settings.load_profile("cropl")
