"""Random numbers that follow from names: the same on every machine and with every version of NumPy."""

from __future__ import annotations

import hashlib

import numpy as np


def seeded(*names: object) -> np.random.RandomState:
    """The generator of these names: NumPy's frozen one, whose streams never change (NEP 19).

    So what was drawn can be drawn again: a saved position continues, a build makes the same shards.
    """
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))
