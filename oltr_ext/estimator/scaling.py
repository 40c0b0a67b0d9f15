"""Features as a head sees them: centred, of one length, with one constant more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Scaling"]

LENGTH = 10.0
"""Root mean square length of the centred features that the head sees."""
HEIGHT = 3.0
"""One more feature, the same in all rows: by direction alone the middle has no place."""
FAR = 1e12
"""Of a feature at most: squares stay finite in float32."""
PIECE = 8192
"""Rows that are in float64 at a time."""


@dataclass(frozen=True)
class Scaling:
    """Mean (D,) and unit of length that features are told by, and their dtype from then on."""

    mean: NDArray[np.float64]
    unit: float
    dtype: np.dtype[Any]

    @staticmethod
    def of(rows: NDArray[Any], weight: NDArray[np.float64]) -> Scaling:
        """From rows (N, D) of positive weights (N,), as small or large as their dtype holds.

        Raises:
            ValueError: float64 does not hold how far they are apart.
        """
        share = weight / weight.max()
        share /= share.sum()
        pieces = [slice(at, at + PIECE) for at in range(0, len(rows), PIECE)]
        mean = np.zeros(rows.shape[1])
        for at in pieces:
            mean += (rows[at].astype(np.float64) * share[at, None]).sum(0)
        mean = mean.clip(rows.min(0), rows.max(0))  # of a constant feature, that very number
        with np.errstate(over="ignore"):
            largest = max(float(np.abs(rows[at] - mean).max()) for at in pieces)
        if largest == 0:
            return Scaling(mean, 1.0, rows.dtype)
        if largest * math.sqrt(rows.shape[1]) == math.inf:
            raise ValueError(
                f"OLTRClassifier: X: expected features whose distances float64 holds, got some "
                f"from {rows.min():g} to {rows.max():g}"
            )
        square = sum(
            float((np.square((rows[at] - mean) / largest).sum(1) * share[at]).sum())
            for at in pieces
        )
        return Scaling(mean, largest * (math.sqrt(square) / LENGTH) or 1.0, rows.dtype)

    def __call__(self, rows: NDArray[Any]) -> Tensor:
        """(N, D + 1) of rows (N, D)."""
        scaled = np.full((len(rows), rows.shape[1] + 1), HEIGHT, self.dtype)
        with np.errstate(over="ignore"):
            for at in range(0, len(rows), PIECE):
                part = (rows[at : at + PIECE] - self.mean) / self.unit
                scaled[at : at + PIECE, :-1] = part.clip(-FAR, FAR)
        return torch.from_numpy(scaled)

    def undone(self, scaled: Tensor) -> NDArray[np.float64]:
        """Rows (N, D) of what they were made."""
        return np.asarray(scaled[:, :-1].double().numpy() * self.unit + self.mean)
