"""A tiny model and one row for it."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from tests.reference.tiny import pixels, prompt, tiny_llava


@pytest.fixture
def model() -> Any:
    return tiny_llava(3)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"input_ids": prompt(5)[None], "pixel_values": pixels(1)}
