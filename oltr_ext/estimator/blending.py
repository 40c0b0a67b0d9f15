"""What the nearest training row of each class adds to the logits of a head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor

from oltr_ext import ops

__all__ = ["Blend", "class_similarity", "judges"]

SCALE = 16.0
"""Of a cosine, as in the head."""
ENTRIES = 1 << 20
"""Logits of held-out rows, at most, that a blend is found by."""
Floats = NDArray[np.float64]


def class_similarity(x: Tensor, bank: Tensor, bank_y: Tensor) -> Tensor:
    """(N, C) scaled cosine of rows (N, D) to the nearest row of each class in a bank (K, D), which
    is in the order of its labels (K,) and has all C of them."""
    # |v| / (1 + |v|) of the op is a half
    each = ops.cosine_logits(F.normalize(x), bank, scale=2 * SCALE).numpy()
    starts = np.flatnonzero(np.diff(bank_y.numpy(), prepend=-1))
    return torch.from_numpy(np.maximum.reduceat(each, starts, axis=1))


def judges(order: NDArray[np.uint64], classes: int) -> NDArray[np.int64]:
    """Places of the held-out rows, of these places in a shuffled order, that find a blend."""
    return np.argsort(order, kind="stable")[: max(1, ENTRIES // classes)]


@dataclass(frozen=True)
class Blend:
    """Shares of the head's logits, of the similarity to rows, and of the logarithm of how many
    rows a class has: of more, the nearest is nearer."""

    head: float = 1.0
    rows: float = 0.0
    count: float = 0.0

    @staticmethod
    def of(
        logits: Tensor, similarity: Tensor, share: Tensor, y: Tensor, weight: Tensor, rows: int
    ) -> Blend:
        """The most likely one by held-out rows, all their classes as likely. Without rows, unless
        that is worse by more than the standard error of the difference between classes.

        Args:
            logits, similarity: (N, C) of held-out rows, whose labels and weights (N,) these are.
            share: (C,) of each class in training.
            rows: how many of the held-out ones are distinct.
        """
        one, two = logits.double().numpy(), similarity.double().numpy()
        three, label = np.log(share.numpy()), y.numpy()
        worth = weight.double().numpy()
        worth = worth / np.bincount(label, worth)[label]
        at = np.arange(len(label)), label
        # A class counts 1, whatever its rows: START says as much as one row of them, so that the
        # more are held out the less it says.
        fade = len(np.unique(label)) / rows

        def loss(part: Floats) -> Floats:
            return -log_softmax(part[0] * one + part[1] * two + part[2] * three, 1)[at]

        def judged(part: Floats) -> tuple[float, Floats]:
            over = log_softmax(part[0] * one + part[1] * two + part[2] * three, 1)
            each = -over[at]
            np.exp(over, out=over)
            over[at] -= 1
            over *= worth[:, None]
            slope = np.array([(over * one).sum(), (over * two).sum(), (over.sum(0) * three).sum()])
            off = part - START
            return float(each @ worth + fade * off @ off), slope + 2 * fade * off

        def most_likely(most: float | None) -> Floats:
            bounds = [(0, None), (0, most), (None, None)]
            answer = minimize(judged, START, jac=True, method="L-BFGS-B", bounds=bounds)
            return np.asarray(answer.x)

        alone, found = most_likely(0), most_likely(None)
        gain = np.bincount(label, worth * (loss(alone) - loss(found)))[np.unique(label)]
        worse = gain.sum() <= np.sqrt(np.square(gain).sum())  # a mean within its standard error
        return Blend(*map(float, alone if worse else found))

    def __call__(
        self, logits: Tensor, similarity: Tensor | None, share: Tensor, prior_share: float
    ) -> Tensor:
        """(N, C) of a head's logits with `prior_share` of its prior, which stays theirs whole;
        similarity, also (N, C), is not asked for where `rows` is 0."""
        count = (self.count + prior_share * (1 - self.head)) * share.log()
        answer = self.head * logits + count.to(logits.dtype)
        return answer if similarity is None else answer.add_(similarity, alpha=self.rows)


START = np.array([1.0, 0.0, 0.0])
"""The head alone."""
