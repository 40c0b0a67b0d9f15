"""What `OLTRClassifier` rejects: how a row scores, and below which score it is unknown."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from oltr_ext import ops
from oltr_ext.estimator.running import threads
from oltr_ext.metrics.threshold import keep_fraction

__all__ = ["Rejects"]

PIECE = 8192
"""Rows whose directions are held at a time."""


class Rejects:
    """`score_samples` of an estimator that has a head, and what `offset_` goes by."""

    seen_: NDArray[np.int64]
    known_recall: float
    n_jobs: int | None
    offset_: float
    _bank: Tensor
    _pairs: Tensor
    _location: Tensor
    _spread: Tensor

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N,), higher for known classes: the head's largest logit less distance to the nearest
        training row's direction, each in deviations of the rows that calibrated it."""
        x = self._asked(X)
        with threads(self.n_jobs):
            return self._score(self._best(x)[0], self._nearness(x))

    def _nearness(self, x: Tensor) -> Tensor:
        """(N,) float64 distance to the nearest direction of the bank with its sign turned; where
        there is one class, whose mean is the origin, to the nearest row."""

        def seen(rows: Tensor) -> Tensor:
            return rows if len(self.seen_) == 1 else F.normalize(rows)

        bank = seen(self._bank)
        each = [ops.nearest_centroid(seen(rows), bank).distance for rows in x.split(PIECE)]
        return -torch.cat(each).double()

    def _pair(self, x: Tensor, weight: Tensor) -> Tensor:
        """(N, 3) what rows are judged by, and how much each row counts."""
        return torch.stack([self._best(x)[0], self._nearness(x), weight.double()], 1)

    def _settle(self, calibrated: bool) -> None:
        pairs, share = self._pairs[:, :2], self._pairs[:, 2:] / self._pairs[:, 2].sum()
        self._location = (share * pairs).sum(0)
        spread = (share * (pairs - self._location).square()).sum(0).sqrt()
        self._spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
        if len(self.seen_) == 1:
            self._spread[0] = math.inf  # a logit says nothing where there is no other
        low = keep_fraction(self._score(*pairs.T), self.known_recall, share[:, 0].numpy())
        self.offset_ = low if calibrated else -math.inf

    def _score(self, largest: Tensor, nearness: Tensor) -> NDArray[np.float64]:
        pair = torch.stack([largest, nearness], 1)
        return np.asarray(((pair - self._location) / self._spread).sum(1).numpy())

    if TYPE_CHECKING:  # the estimator has them

        def _asked(self, X: ArrayLike) -> Tensor: ...
        def _best(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
