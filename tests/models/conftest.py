"""Shared models: one tiny LLaVA-NeXT under both of its protocols."""

import pytest

from cropl.models.llava_next import LlavaNextVLM
from tests.families import llava_next, under


@pytest.fixture(scope="module")
def anyres() -> LlavaNextVLM:
    return llava_next(layers=3)


@pytest.fixture(scope="module")
def fixed(anyres: LlavaNextVLM) -> LlavaNextVLM:
    return under("fixed", anyres)
