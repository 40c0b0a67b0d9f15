"""Logits that are never whole: of a classifier that passes by in blocks, or whose classes several
processes share. What is asked of them are the largest, sums of exponentials, and single ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import reduce
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from oltr_ext.nn.gathering import gather_rows
from oltr_ext.ops.bank import StreamedBank, blocks_of
from oltr_ext.ops.shard import Shard, summed

__all__ = ["PartedLogits", "SharedLogits", "closest_rows", "strongest_of", "weakest_of"]

BLOCK = 1 << 22
"""Logits of a block, at most: 32 MB of float64."""
COLUMNS = 1 << 13
"""Rows of a bank that distances are held to at a time."""


class Seen(NamedTuple):
    """What a pass over some of the classes tells of logits (B, C): float64."""

    top: Tensor  # (B, K), the largest, in order, ties by class
    classes: Tensor  # (B, K)
    rest: Tensor  # (B,) logsumexp of all but the largest
    known: Tensor  # (B,) logsumexp of the first `known`

    def merged(self, later: Seen, count: int) -> Seen:
        """With what was seen of higher classes."""
        rest = torch.logaddexp(self.rest, later.rest)
        if self.top.shape[1] and later.top.shape[1]:
            rest = torch.logaddexp(rest, torch.minimum(self.top[:, 0], later.top[:, 0]))
        top = torch.cat([self.top, later.top], dim=1)
        # stable: of equals the lower class, which came first
        top, order = top.sort(dim=1, descending=True, stable=True)
        classes = torch.cat([self.classes, later.classes], dim=1).gather(1, order)
        known = torch.logaddexp(self.known, later.known)
        return Seen(top[:, :count], classes[:, :count], rest, known)


class PartedLogits(ABC):
    """Logits (B, C), as far as scores, answers and sets ask for them, without gradients.

    Args:
        shape: (B, C).
        like: has their device and dtype.
        known: of how many first classes `log_known` is.
    """

    def __init__(self, shape: tuple[int, int], like: Tensor, known: int) -> None:
        self.shape = torch.Size(shape)
        self.device, self.dtype = like.device, like.dtype
        self._known = known
        self._seen: Seen | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def blocks(self) -> AbstractContextManager[Iterator[tuple[int, Tensor]]]:
        """First class and logits (B, n) float64, to be written over, of each block that this
        process passes."""

    @abstractmethod
    def at(self, target: Tensor) -> Tensor:
        """(B,) float64 logit of one class (B,) int64 a row."""

    def summed(self, value: Tensor) -> Tensor:
        """The sum of what each process found in its blocks."""
        return value

    def joined(self, row: Tensor, column: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries (N,) that each process found in its blocks, of all; values are float32."""
        return row, column, value

    def _of_all(self, seen: Seen, count: int) -> Seen:
        """What all processes saw."""
        return seen

    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest logits (B, K) float64, in order, ties by class, and their classes."""
        seen = self._look(count)
        return seen.top[:, :count], seen.classes[:, :count]

    def amax(self, dim: int = 1) -> Tensor:
        """(B,) float64, the largest logit."""
        assert dim == 1
        return self._look(1).top[:, 0]

    def argmax(self, dim: int = 1) -> Tensor:
        """(B,) class of the largest logit."""
        assert dim == 1
        return self._look(1).classes[:, 0]

    @property
    def log_total(self) -> Tensor:
        """(B,) float64, logsumexp over all classes."""
        seen = self._look(1)
        return torch.logaddexp(seen.top[:, 0], seen.rest)

    @property
    def log_rest(self) -> Tensor:
        """(B,) float64, logsumexp over all classes but that of the largest logit."""
        return self._look(1).rest

    @property
    def log_known(self) -> Tensor:
        """(B,) float64, logsumexp over the known classes."""
        return self._look(1).known

    @torch.no_grad()
    def _look(self, count: int) -> Seen:
        """A pass, where the last one kept fewer of the largest."""
        count = min(count, self.shape[1])
        if self._seen is None or self._seen.top.shape[1] < count:
            self._seen = self._of_all(self._pass(count), count)
        return self._seen

    def _pass(self, count: int) -> Seen:
        rows = len(self)
        none = torch.full((rows,), -torch.inf, dtype=torch.float64, device=self.device)
        nothing = torch.empty(rows, 0, dtype=torch.int64, device=self.device)
        seen = Seen(none.new_empty(rows, 0), nothing, none, none)
        with self.blocks() as blocks:
            for start, z in blocks:
                known = none if start >= self._known else z[:, : self._known - start].logsumexp(1)
                top, at = strongest_of(z, count)
                rest = z.scatter_(1, at[:, :1], -torch.inf).logsumexp(dim=1)
                seen = seen.merged(Seen(top, at + start, rest, known), count)
        return seen


class SharedLogits(PartedLogits):
    """Logits of which this process has those of its own classes, for rows that all have.

    Every process asks the same of them, in the same order. A look sends 2 K + 2 numbers of float64
    a row, and one class a row one, whatever C.

    Args:
        columns: (B, n), of the classes of the shard.
    """

    def __init__(self, columns: Tensor, shard: Shard) -> None:
        super().__init__((len(columns), shard.total), columns, shard.total)
        self._columns, self._shard = columns.detach(), shard

    @contextmanager
    def blocks(self) -> Iterator[Iterator[tuple[int, Tensor]]]:
        parts = self._columns.split(max(1, BLOCK // max(1, len(self))), dim=1)
        starts = range(self._shard.start, self._shard.stop, max(1, parts[0].shape[1]))
        yield (
            (start, part.to(torch.float64, copy=True))
            for start, part in zip(starts, parts, strict=False)  # of no class there is one part
        )

    @torch.no_grad()
    def at(self, target: Tensor) -> Tensor:
        own = self._columns.new_zeros(len(self), dtype=torch.float64)
        if self._shard.size:
            place = self._shard.local(target)
            here = (place >= 0) & (place < self._shard.size)
            found = self._columns.gather(1, place.where(here, 0)[:, None])[:, 0].double()
            own = found.where(here, 0.0)
        return self.summed(own)

    def summed(self, value: Tensor) -> Tensor:
        return summed(self._shard, value)

    def joined(self, row: Tensor, column: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        number = torch.tensor([len(row)], device=row.device)
        sizes = gather_rows(number, [1] * self._processes, self._shard).tolist()
        # whole numbers below 2^53, and float32, are such in float64
        every = gather_rows(torch.stack([row, column, value.double()], 1), sizes, self._shard)
        return every[:, 0].long(), every[:, 1].long(), every[:, 2].float()

    @property
    def _processes(self) -> int:
        return dist.get_world_size(self._shard.group)

    def _of_all(self, seen: Seen, count: int) -> Seen:
        cuts = [Shard.cut(self._shard.total, self._processes, r) for r in range(self._processes)]
        width = min(count, cuts[0][1])  # none has more classes than the first
        none = self._columns.new_zeros(len(self), width - seen.top.shape[1], dtype=torch.float64)
        parts = [seen.top, none, seen.classes.double(), none, seen.rest[:, None]]
        packed = torch.cat([*parts, seen.known[:, None]], dim=1)
        every = gather_rows(packed, [len(self)] * self._processes, self._shard)
        of_each = every.split(len(self)) if len(self) else [every] * self._processes
        found: list[Seen] = []
        for (start, stop), part in zip(cuts, of_each, strict=True):
            there = min(width, stop - start)
            top, classes = part[:, :there], part[:, width : width + there].long()
            found.append(Seen(top, classes, part[:, -2], part[:, -1]))
        return reduce(lambda one, later: one.merged(later, count), found)


def strongest_of(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest of numbers (B, N), in order, (B, K), and their places: NaN first, of equals the
    one that comes first, as `torch.max` has it and `torch.topk` does not."""
    count = min(count, z.shape[1])
    if count == 0:
        return z[:, :0], torch.empty_like(z[:, :0], dtype=torch.int64)
    if count == 1:
        return z.max(dim=1, keepdim=True)
    value, at = z.topk(count, dim=1)
    at, order = at.sort(dim=1)
    value, again = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    at = at.gather(1, again)
    # equals of the last may be anywhere
    last = value[:, -1:]
    tied = ((z >= last) | z.isnan()).sum(dim=1) > count
    tied |= last[:, 0].isnan()
    rows = tied.nonzero()[:, 0]
    if len(rows):
        whole, order = z[rows].sort(dim=1, descending=True, stable=True)
        value[rows], at[rows] = whole[:, :count], order[:, :count]
    return value, at


def weakest_of(z: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `strongest_of`, the smallest: of equals the one that comes first, NaN last."""
    at = strongest_of(torch.where(z.isnan(), -torch.inf, -z), count)[1]
    return z.gather(1, at), at


def closest_rows(x: Tensor, rows: Tensor | StreamedBank, count: int) -> tuple[Tensor, Tensor]:
    """Distances (B, K), smallest first, of x (B, D) to the closest of rows (N, D), and which these
    are (B, K), K being ``min(count, N)``; of equals the row that comes first.

    Holds B x `COLUMNS` distances, whatever N.
    """
    # By differences: close to a row, the products of the default cancel. In float64, where there is
    # one: it holds the square of every float32.
    mode = "donot_use_mm_for_euclid_dist"
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    wider = x.to(exact)
    values, indices = [wider.new_empty(len(x), 0)], []
    with blocks_of(rows, COLUMNS) as blocks:
        for start, block in blocks:
            distance = torch.cdist(wider, block.to(exact), compute_mode=mode)
            near, at = weakest_of(distance, count)
            values.append(near)
            indices.append(at + start)
    value, order = weakest_of(torch.cat(values, dim=1), count)
    return value, torch.cat([torch.empty_like(order[:, :0]), *indices], dim=1).gather(1, order)
