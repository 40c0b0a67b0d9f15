"""What `FeatureBank` works out of features: whitenings, a null space, which rows to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from oltr_ext.nn.gathering import gather_rows
from oltr_ext.nn.layout import Layout, Sharded, as_shard
from oltr_ext.nn.memory import means_over
from oltr_ext.nn.parted import COLUMNS
from oltr_ext.ops import Shard, StreamedBank
from oltr_ext.ops.bank import blocks_of
from oltr_ext.ops.shard import summed


def whitening(scatter: Tensor, free: int) -> Tensor:
    """W (D, D) float64, lower triangular, such that W'W is the inverse of a covariance that is
    shrunk towards a multiple of the identity (Chen et al. 2010, OAS).

    Args:
        scatter: (D, D) float64, sum over rows of products of deviations from the mean.
        free: degrees of freedom of that sum.
    """
    width, free = len(scatter), max(free, 1)
    covariance = (scatter + scatter.t()) / (2 * free)
    mean = covariance.trace() / width
    eye = torch.eye(width, dtype=scatter.dtype, device=scatter.device)
    if mean <= 1e-12:  # a feature a class: nothing is known of deviations
        return eye
    square = covariance.square().mean()
    below = (free + 1) * (square - mean**2 / width)
    shrink = float((square + mean**2) / below) if below > 0 else 1.0
    shrink = min(shrink, 1.0)
    root = torch.linalg.cholesky((1 - shrink) * covariance + shrink * mean * eye)
    return torch.linalg.solve_triangular(root, eye, upper=False)


class BankMeans(NamedTuple):
    """Class means that a bank is made of: of the K classes with features, in order."""

    means: Tensor
    """(K, D) float64; of a shard, its own."""
    own: Tensor
    """(K,) int64, how many features each of these is of."""
    counts: Tensor
    """(K,) int64, that of all of them."""
    layout: Layout
    """Where the K are."""

    def summed(self, value: Tensor) -> Tensor:
        """A sum over classes, from that over those that are here."""
        if not isinstance(self.layout, Sharded):
            return value
        shared = value.to(self.layout.mesh.device_type)
        return summed(self.layout.shard, shared).to(value.device)

    def shared(self, rows: Tensor) -> Tensor:
        """(K, ...) of rows of those that are here."""
        if not isinstance(self.layout, Sharded):
            return rows
        return as_shard(rows.to(self.layout.mesh.device_type), self.layout)


def bank_means(
    batches: Iterable[tuple[Tensor, Tensor]], counts: Tensor, layout: Layout
) -> BankMeans:
    """Of unit features (B, D) float64 and labels (B,), which every process is given.

    Args:
        counts: (C,) training images of each class.
        layout: where the classes are. Those with features are cut anew, as evenly as all were.

    Raises:
        ValueError: more features of a class than its count. RuntimeError: a label out of range.
    """
    if not isinstance(layout, Sharded):
        means, number = means_over(batches, len(counts))
        _check_counts(number, counts)
        if not (there := number > 0).all():
            means, number = means[there], number[there]
        return BankMeans(means, number, number, layout)
    expected = counts > 0
    place = torch.where(expected, expected.cumsum(0) - 1, -1)
    place = torch.cat([place, place.new_tensor([-1])])  # of a label out of range

    def placed() -> Iterator[tuple[Tensor, Tensor]]:
        for z, y in batches:
            yield z, place[torch.where((y >= 0) & (y < len(counts)), y, len(counts))]

    cut = Sharded(int(expected.sum()), layout.mesh, None, False)
    means, number = means_over(placed(), cut.shard.total, cut)
    found = BankMeans(means, number, number, cut)
    every = number.new_zeros(cut.shard.total)
    every[cut.shard.start : cut.shard.stop] = number
    every = found.summed(every)
    _check_counts(torch.zeros_like(counts).masked_scatter(expected, every), counts)
    if bool((every > 0).all()):
        return found._replace(counts=every)
    # classes none of whose images could be read are few and seldom: rows move to other processes
    sizes = [
        b - a
        for a, b in (Shard.cut(len(every), cut.mesh.size(), n) for n in range(cut.mesh.size()))
    ]
    whole = gather_rows(means.to(cut.mesh.device_type), sizes, cut.shard).to(means.device)
    there = every > 0
    again = Sharded(int(there.sum()), layout.mesh, None, False)
    here = slice(again.shard.start, again.shard.stop)
    return BankMeans(whole[there][here].clone(), every[there][here], every[there], again)


def _check_counts(number: Tensor, counts: Tensor) -> None:
    if (number > counts).any():
        c = int((number > counts).nonzero()[0])
        raise ValueError(
            f"FeatureBank.fit: class {c} has {number[c]} features, and counts say {counts[c]}"
        )


def null_space(rows: Tensor) -> Tensor:
    """(D, D - P) float64, an orthonormal basis of what is left of (N, D) rows beside the P
    directions in which they are longest: 1,000 of more than 1,500, 512 of 768 or more (Wang et al.,
    Sec. 4), half of fewer; and of fewer rows than that all that they have, for which further ones
    would be principal is arbitrary."""
    width = rows.shape[1]
    principal = 1000 if width > 1500 else 512 if width >= 768 else width // 2
    values, basis = torch.linalg.eigh(rows.t() @ rows)
    there = values > values[-1] * max(rows.shape) * torch.finfo(values.dtype).eps
    return basis[:, : width - min(principal, int(there.sum()))]


def default_neighbours(counts: Tensor) -> int:
    """k of ``knn``: half the images of the rarest class, so that what resembles it has as many of
    its own around it; 2 at least, and 50 at most (that of Sun et al. for CIFAR-10).

    Args:
        counts: (C,) training images of each class; those without any do not count.
    """
    rarest = int(counts[counts > 0].min()) if (counts > 0).any() else 0
    return min(max(rarest // 2, 2), 50)


def kth_distance(x: Tensor, rows: Tensor | StreamedBank, k: int) -> Tensor:
    """(B,) distance of each of x (B, D) to the k-th nearest of rows (N >= k, D).

    Holds B x `COLUMNS` distances, whatever N. In float64 the product form cancels to 1e-8 of the
    length of a row; x gives the dtype.
    """
    own, parts = x.square().sum(dim=1, keepdim=True), []
    with blocks_of(rows, COLUMNS) as blocks:
        for _, part in blocks:
            near = part.to(x.dtype)
            square = own + near.square().sum(dim=1) - 2 * (x @ near.t())
            parts.append(square.topk(min(k, len(near)), dim=1, largest=False).values)
    best = torch.cat(parts, dim=1).topk(k, dim=1, largest=False).values
    return best.amax(dim=1).clamp_min(0).sqrt()


def largest_share(counts: Tensor, most: int | None) -> int | None:
    """How many rows a class may keep so that all keep `most` at most; None: no limit."""
    if most is None or int(counts.sum()) <= most:
        return None
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if int(counts.clamp_max(middle).sum()) <= most else (low, middle - 1)
        )
    return low


class Evenly:
    """Which rows of a stream are kept so that all keep `most` at most: of n of a class as many as
    fit, evenly spaced.

    Args:
        counts: (C,) rows of each class in the whole stream.
    """

    def __init__(self, counts: Tensor, most: int | None) -> None:
        self.counts, self.limit = counts, largest_share(counts, most)
        self.seen = torch.zeros_like(counts)

    def __call__(self, target: Tensor) -> Tensor:
        """(B,) bool of the next rows, from their labels (B,)."""
        if self.limit is None:
            return torch.ones_like(target, dtype=torch.bool)
        order = target.argsort(stable=True)
        first = torch.searchsorted(target[order], target)
        place = torch.empty_like(target)
        place[order] = torch.arange(len(target), device=target.device)
        place = place - first + self.seen[target]  # among the rows of its class
        self.seen += target.bincount(minlength=len(self.seen))
        return place * self.limit % self.counts[target].clamp_min(1) < self.limit
