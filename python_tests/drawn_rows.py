"""Rows that the tests of `OLTRClassifier` draw."""

from __future__ import annotations

from typing import Any

import numpy as np

Data = tuple[Any, Any]


def drawn(sizes: tuple[int, ...], seed: int = 0, first: int = 0) -> Data:
    """Rows around the corners of a simplex, 6 from the middle, of classes from `first` on."""
    label = np.repeat(np.arange(len(sizes)), sizes) + first
    noise = np.random.default_rng(seed).normal(size=(len(label), 12))
    return noise + 6 * np.eye(12)[label], label


DATA = drawn((60, 30, 12, 4))
KNOWN = drawn((50, 50, 50, 50), seed=1)
STRANGERS = drawn((50, 50), seed=2, first=8)[0]
for _array in (*DATA, *KNOWN, STRANGERS):
    _array.flags.writeable = False
