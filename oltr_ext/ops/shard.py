"""A shard of the class axis, and the collectives between the processes that hold its parts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Shard"]


@dataclass(frozen=True)
class Shard:
    """Which classes of a bank this process holds: `start` to `stop` of `total`, its rows in order.

    Every process of the group holds others, some perhaps none, and all are given the same features
    and labels, in the same order. Ops over a shard give each of them what one process with the
    whole bank would have: values, and the gradient of features, which is complete in each.
    Gradients of a bank stay where its rows are. Each process differentiates the same loss, once.

    Args:
        start: first class, counted over the whole bank.
        stop: the one after the last; ``start`` where the shard is empty.
        total: classes of the whole bank.
        group: of the processes; None: all that there are.

    Raises:
        ValueError: not 0 <= start <= stop <= total, or no class at all.
    """

    start: int
    stop: int
    total: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop <= self.total or self.total < 1:
            raise ValueError(
                f"Shard: expected 0 <= start <= stop <= total and total >= 1, got {self.start}, "
                f"{self.stop} and {self.total}"
            )

    def __deepcopy__(self, memo: Any) -> Shard:
        return self  # a process group has no copies

    @staticmethod
    def of(total: int, group: dist.ProcessGroup | None = None) -> Shard:
        """This process's part of ``total`` classes, cut as `torch.chunk` and DTensor's ``Shard(0)``
        cut: parts of ``ceil(total / processes)``, the last ones shorter or empty."""
        start, stop = Shard.cut(total, dist.get_world_size(group), dist.get_rank(group))
        return Shard(start, stop, total, group)

    @staticmethod
    def cut(total: int, processes: int, rank: int) -> tuple[int, int]:
        """First class of a process, and the one after its last."""
        size = math.ceil(total / processes)
        start = min(total, size * rank)
        return start, min(total, start + size)

    @property
    def size(self) -> int:
        """Classes of this process."""
        return self.stop - self.start

    def local(self, target: Tensor, ignore_index: int | None = None, ignored: int = -1) -> Tensor:
        """Labels (B,) counted from `start`: `size` for a class of another process, ``ignored`` for
        ``ignore_index``, and -2 for what is no class of the bank."""
        here = (target >= self.start) & (target < self.stop)
        found = torch.where(here, target - self.start, torch.full_like(target, self.size))
        wrong = (target < 0) | (target >= self.total)
        found = found.masked_fill(wrong, -2)
        return found if ignore_index is None else found.masked_fill(target == ignore_index, ignored)


def summed(shard: Shard, value: Tensor) -> Tensor:
    return _reduce(shard, value, "sum")


def largest(shard: Shard, value: Tensor) -> Tensor:
    return _reduce(shard, value, "max")


def smallest(shard: Shard, value: Tensor) -> Tensor:
    return _reduce(shard, value, "min")


def _reduce(shard: Shard, value: Tensor, how: str) -> Tensor:
    """A new tensor. Sums of half types run in float32."""
    # functional, so that torch.compile sees a graph; not at the top, where it costs every import
    import torch.distributed._functional_collectives as collectives

    group = shard.group if shard.group is not None else dist.group.WORLD
    wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    found = collectives.all_reduce(wide.contiguous(), how, group)  # type: ignore[arg-type]
    return cast(collectives.wait_tensor(found), value.dtype)


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value.to(dtype)`, for what a `Function`'s forward returns: compiled by torch 2.11, one that
    returns a `.to` without effect has a gradient of zero (findings/compiled-function-dtype.sh)."""
    return value if value.dtype == dtype else value.to(dtype)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return summed(ctx.shard, grads[0]), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, shard: Shard) -> Tensor:
        return summed(shard, value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


def enter(shard: Shard, value: Tensor) -> Tensor:
    """What all processes have, as each uses it for its own classes: its gradient is the sum."""
    entered: Tensor = _Enter.apply(value, shard)
    return entered


def leave(shard: Shard, value: Tensor) -> Tensor:
    """The sum over processes, of which each takes the whole gradient."""
    left: Tensor = _Leave.apply(value, shard)
    return left


def unrounded(distance: Tensor, x: Tensor, rows: Tensor) -> Tensor:
    """(B,) float64, distances of x (B, D) to its nearest rows (B, D) by which parts of a bank are
    compared: rounded to a half type, or beyond the range of float32, they would seem to tie."""
    if distance.dtype == torch.float64:
        return distance
    # float64 holds the square of every float32
    exact = torch.linalg.vector_norm(x.double() - rows.double(), dim=1)
    if distance.dtype != torch.float32:
        return exact
    return torch.where(distance.isinf(), exact, distance.double())


def nearest_of(shard: Shard, distance: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest distance (B,) and its class over all shards, as `torch.min` chooses: NaN before
    everything, ties to the lower class. An empty shard gives infinity. The distance is float64."""
    distance = distance.double()
    # gloo's MIN forgets a NaN in some orders
    ranked = distance.masked_fill(distance.isnan(), -1)
    least = smallest(shard, ranked)
    own = torch.where(ranked == least, index + shard.start, torch.full_like(index, shard.total))
    return torch.where(least < 0, torch.nan, least), smallest(shard, own)
