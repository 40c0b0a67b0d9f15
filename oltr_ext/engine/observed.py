"""Thresholds for observations: several images judged as one, and each number of them by its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from oltr_ext.engine.evaluate import Outputs, answers, stream
from oltr_ext.engine.splits import Splits
from oltr_ext.metrics import calibrate_threshold
from oltr_ext.models import OLTRModel
from oltr_ext.nn import Head

__all__ = ["BY", "By", "observation_thresholds", "thresholds_of_sizes"]

By = Literal["embeddings", "scores"]
BY: tuple[By, ...] = ("embeddings", "scores")
"""The mean that stands for an observation: of its images' features, or of what the head says of
each, probabilities and scores."""

SIZES = range(2, 11)

LEAST, MOST = 20, 2000
"""Observations of a size: without an image twice so many are needed, and so many are drawn."""

ROUNDS = 20

NUMBERS = 1 << 26
"""Of features that are held for it: 256 MB."""

Thresholds = dict[By, list[tuple[int, float]]]
"""Sizes from 2 on, and the threshold of each."""


@torch.no_grad()
def observation_thresholds(
    model: OLTRModel,
    splits: Splits,
    seen: Outputs,
    device: torch.device,
    single: Mapping[str, Any],
    share: float | None = None,
) -> Thresholds:
    """For each size of which there are enough observations, the highest threshold that keeps a
    share of them.

    They are drawn: in each round the validation images of every known class are dealt into
    observations of the size, without an image in two of them. In several processes, all of them
    call this.

    Args:
        seen: what the model answers for all validation images.
        single: ``score`` and ``value`` of single images.
        share: of known ones to keep, in (0, 1]; None: what `single` keeps of the images.
    """
    known = np.flatnonzero(seen.target >= 0)
    score = seen.scores[single["score"]]
    if share is None:
        share = float((score[known] >= single["value"]).mean())
    known = known[:: 1 + len(known) * model.feature_dim // NUMBERS]
    drawn = {size: _drawn(seen.target[known], size) for size in SIZES}
    drawn = {size: rows for size, rows in drawn.items() if len(rows)}
    found: Thresholds = {by: [] for by in BY}
    if not drawn or not share:
        return found
    wanted = torch.from_numpy(np.isin(np.arange(len(seen.target)), known))
    parts, place = [], 0
    for x, _ in stream(model, splits.val, device, workers=splits.workers):
        parts.append(x[wanted[place : place + len(x)].to(device)])
        place += len(x)
    features = torch.cat(parts)
    for size, rows in drawn.items():
        means = {
            "embeddings": _of_means(model.head, features, rows, single["score"]),
            "scores": score[known][rows].mean(axis=1),
        }
        for by in BY:
            found[by].append((size, calibrate_threshold(means[by], value=share)))
    return found


def thresholds_of_sizes(single: Mapping[str, Any], by: By, sizes: ArrayLike) -> NDArray[np.float64]:
    """(N,) of observations of so many images (N,): that of the largest size up to theirs which has
    one; where none has, that of single images."""
    known = [(1, single["value"]), *single.get("observations", {}).get(by, [])]
    least, values = (np.array(column) for column in zip(*known, strict=True))
    return values.astype(np.float64)[np.searchsorted(least, sizes, side="right") - 1]


def _drawn(target: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """(M, size) rows of one class each, drawn the same each time; none where too few are apart."""
    counts = np.bincount(target)
    apart = int((counts // size).sum())
    if apart < LEAST:
        return np.empty((0, size), np.int64)
    first = np.cumsum(counts) - counts
    draw, rounds = np.random.default_rng(size), []
    for _ in range(min(ROUNDS, -(-MOST // apart))):
        order = np.lexsort((draw.random(len(target)), target))
        place = np.arange(len(target)) - first[target[order]]
        whole = place < counts[target[order]] // size * size
        rounds.append(order[whole].reshape(-1, size))
    every = np.concatenate(rounds)
    return every[draw.permutation(len(every))[:MOST]]


def _of_means(
    head: Head, features: torch.Tensor, rows: NDArray[np.int64], score: str
) -> NDArray[np.float64]:
    """Scores (M,) of the mean features of rows (M, size)."""
    found = []
    for part in torch.from_numpy(rows).split(256):
        means = features[part.to(features.device)].double().mean(dim=1).to(features.dtype)
        for piece in head.pieces(means):
            label = torch.full((len(piece),), -1, device=features.device)
            found.append(answers(head, piece, label).scores[score])
    return np.concatenate(found)
