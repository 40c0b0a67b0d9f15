"""Groups among features that no known class fits, at the scale that the known classes set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext import ops
from oltr_ext.nn import FeatureBank

__all__ = ["ROWS", "Grouping", "group_features", "known_means", "measure"]

EXACT = 8192
"""Features of which all pairs are compared (540 MB of distances); of more, that many means are."""
PASSES = 4
ROWS = 1024
"""Of which distances to all means are held at a time."""
QUARTILE = 0.25
Floats = NDArray[np.float64]


@dataclass
class Grouping:
    """Where each of N features belongs.

    Attributes:
        group: (N,) int64, from 1 on, that of most features first; 0: to none.
        sure: (N,) float64 in [-1, 1], the silhouette (Rousseeuw 1987): 1 - a / b for a feature
            whose mean distance to its group's others is a, and to those of the nearest other group
            or known class b; -(1 - b / a) where b is less; 0 without a group or without others.
        cut: groups are joined up to this mean distance, 1 - cosine.
        means: (G, D), of the groups' features of unit length.
        cells: means that were compared in place of features; 0: the features themselves.
    """

    group: NDArray[np.int64]
    sure: Floats
    cut: float
    means: Tensor
    cells: int


@torch.no_grad()
def known_means(bank: FeatureBank) -> Tensor:
    """(K, D) float64: means of each known class's features of unit length, in a fitted bank.

    Raises:
        ValueError: the bank is empty.
    """
    if bank.whitening is None or bank.means is None:
        raise ValueError(
            "discover: expected a model that keeps the means of its classes, and this one, of an "
            "earlier version, has none"
        )
    white = bank.means.cpu().double().t()
    return torch.linalg.solve_triangular(bank.whitening.cpu().double(), white, upper=False).t()


@torch.no_grad()
def group_features(features: Tensor, known: Tensor, *, least: int = 2) -> Grouping:
    """Average linkage by cosine, cut where strangers lie from the known.

    The mean cosine distance of a feature to the training images of a known class is one less the
    product with their mean; so is that between two groups. Each feature has a nearest known class,
    to which it does not belong. Groups are joined as long as their mean distance is less than the
    lower quartile of those: what lies nearer than that to one another than most strangers to a
    known class is held for one kind. Known classes thus set the scale, whatever the network.

    Of more than `EXACT` features as many k-means cells are joined in their place, each for one; a
    feature further than the cut from the mean of its cell belongs to none. Neither depends on the
    number of threads.

    Args:
        features: (N, D), of different images. known: (K, D) of `known_means`.
        least: smaller groups are none.
    """
    z = F.normalize(features.float(), dim=1)
    if len(z) == 0:
        none = np.zeros(0)
        return Grouping(none.astype(np.int64), none, float("nan"), z.double(), 0)
    near = torch.cat([(1 - rows.double() @ known.t()).amin(dim=1) for rows in z.split(ROWS)])
    cut = float(np.quantile(near.numpy(), QUARTILE))
    label, cells = (_joined(z, cut), 0) if len(z) <= EXACT else _joined_cells(z, cut)
    label = _keep(label, least)
    means = _means(z, label)
    sure, inside = np.zeros(len(label)), np.flatnonzero(label >= 0)
    sure[inside] = _silhouette(z, label, means, known, inside)
    label, order = _largest_first(label, sure)
    return Grouping(label, sure, cut, means[order], cells)


@torch.no_grad()
def measure(
    features: Tensor, group: NDArray[np.int64], known: Tensor, rows: NDArray[np.int64]
) -> tuple[Floats, Tensor]:
    """How sure groups that are given are, as `Grouping` says, and their means.

    Args:
        features: (N, D). group: (N,), from 1 on, each with a feature; 0: none.
        rows: (R,) features with a group, of which to say it.

    Returns:
        (R,), and (G, D) float64.
    """
    z = F.normalize(features.float(), dim=1)
    label = group - 1
    means = _means(z, label)
    return _silhouette(z, label, means, known, rows), means


def _joined(points: Tensor, cut: float) -> NDArray[np.int64]:
    """(N,) labels from 0 of average linkage of (N, D), of which 1 - product is the distance."""
    from sklearn.cluster import AgglomerativeClustering

    if len(points) == 1:
        return np.zeros(1, np.int64)
    x = points.double()
    distance = x.new_empty(len(x), len(x))
    torch.mm(x, x.t(), out=distance).neg_().add_(1).clamp_min_(0)
    tree = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=cut
    )
    return tree.fit_predict(distance.numpy()).astype(np.int64)


def _joined_cells(z: Tensor, cut: float) -> tuple[NDArray[np.int64], int]:
    """As `_joined` over means of k-means cells; -1 where a feature is far from its own."""
    draw = torch.from_numpy(np.random.default_rng(0).permutation(len(z))[:EXACT])
    means = z[draw.sort().values]
    for _ in range(PASSES):
        cell = ops.nearest_centroid(z, means).index
        cell = cell.unique(return_inverse=True)[1]  # none is empty
        means, _ = ops.class_means(z, cell, int(cell.max()) + 1)
    far = 1 - (z * means[cell]).sum(dim=1) > cut
    label = _joined(means, cut)[cell.numpy()]
    label[far.numpy()] = -1
    return label, len(means)


def _keep(label: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Labels from 0 without gaps, -1 for what is in less than `least`."""
    size = np.bincount(label[label >= 0], minlength=1)
    number = np.where(size >= least, np.cumsum(size >= least) - 1, -1)
    return np.where(label < 0, -1, number[label]).astype(np.int64)


def _means(z: Tensor, label: NDArray[np.int64]) -> Tensor:
    """(G, D) float64."""
    groups = int(label.max()) + 1
    place = np.where(label < 0, groups, label)  # those of none are a class of their own, left out
    return ops.class_means(z, torch.from_numpy(place), groups + 1)[0][:groups].double()


def _silhouette(
    z: Tensor,
    label: NDArray[np.int64],
    means: Tensor,
    known: Tensor,
    rows: NDArray[np.int64],
) -> Floats:
    """(R,) of the rows (R,), which have a group."""
    sure = [np.empty(0)]
    size = np.bincount(label[label >= 0], minlength=len(means))
    every = torch.cat([means, known])
    for part in np.split(rows, range(ROWS, len(rows), ROWS)):
        distance = (1 - z[torch.from_numpy(part)].double() @ every.t()).clamp_min(0).numpy()
        own, row = label[part], np.arange(len(part))
        count = size[own]
        # the feature itself, at distance 0, is no other
        within = distance[row, own] * count / np.maximum(count - 1, 1)
        distance[row, own] = np.inf
        other = distance.min(axis=1)
        value = (other - within) / np.maximum(np.maximum(within, other), 1e-12)
        sure.append(np.where(count == 1, 0.0, value))
    return np.concatenate(sure)


def _largest_first(
    label: NDArray[np.int64], sure: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels from 1 by size, then by sureness; 0 for none. And which group each was."""
    inside = label >= 0
    size = np.bincount(label[inside])
    total = np.bincount(label[inside], sure[inside])
    order = np.lexsort((-total / np.maximum(size, 1), -size)).astype(np.int64)
    place = np.empty_like(order)
    place[order] = np.arange(1, len(order) + 1)
    return (np.where(inside, place[label], 0) if len(order) else np.zeros_like(label)), order
