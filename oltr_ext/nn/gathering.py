"""Rows and logits of one process to those of all, with gradients."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import formulas
from oltr_ext.ops.sharded.both import possible_elsewhere
from oltr_ext.reference._common import check_labels
from oltr_ext.reference.cosine_cross_entropy import cross_entropy_of


def gather_rows(value: Tensor, sizes: list[int], shard: Shard) -> Tensor:
    """(sum of sizes, ...) of every process's rows, in the order of the processes."""
    import torch.distributed._functional_collectives as collectives

    most = max(sizes)
    if most == 0:
        return value
    short = most - len(value)
    if short:
        value = torch.cat([value, value.new_zeros(short, *value.shape[1:])])
    group: Any = shard.group if shard.group is not None else dist.group.WORLD
    # the same under its name of before torch 2.14
    gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
    every: Tensor = collectives.wait_tensor(gather(value.contiguous(), 0, group))
    if min(sizes) == most:
        return every
    return torch.cat([part[:size] for part, size in zip(every.split(most), sizes, strict=True)])


def place(sizes: list[int], shard: Shard) -> slice:
    rank = dist.get_rank(shard.group)
    start = sum(sizes[:rank])
    return slice(start, start + sizes[rank])


def cross_entropy(
    criterion: nn.CrossEntropyLoss,
    columns: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    shard: Shard | None,
) -> Tensor:
    """Of logits (B, N), all or those of a shard, plus `log_prior` (N,), as torch has it of all
    classes, but smoothed over those alone that the prior says are possible."""
    smoothing, ignored = criterion.label_smoothing, criterion.ignore_index
    classes = columns.shape[1] if shard is None else shard.total
    check_labels("CrossEntropyLoss", target, classes, ignored)
    if shard is None:
        rows, _ = cross_entropy_of(columns, target, log_prior, smoothing, ignored)
    else:
        others = possible_elsewhere(log_prior, smoothing, shard)
        local = shard.local(target, ignored)
        rows = formulas.cross_entropy_of(columns, local, log_prior, smoothing, others, shard)
    if criterion.reduction == "none":
        return rows
    total = rows.sum()
    if criterion.reduction == "sum":
        return total
    return total / (target != criterion.ignore_index).sum()


class Gathered(torch.autograd.Function):
    """Rows of this process to those of all, which compute the same of them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sizes: list[int], shard: Shard) -> Tensor:
        ctx.settings = sizes, shard
        whole = gather_rows(value, sizes, shard)
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        sizes, shard = ctx.settings
        return grads[0][place(sizes, shard)] * len(sizes), None, None


class Mine(torch.autograd.Function):
    """Rows of all, which all have, to those of this process: each then has a loss of its own."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, sizes: list[int], shard: Shard) -> Tensor:
        ctx.settings = sizes, shard
        return value[place(sizes, shard)].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        sizes, shard = ctx.settings
        return gather_rows(grads[0], sizes, shard) / len(sizes), None, None


class Whole(torch.autograd.Function):
    """Logits of a process's classes to those of all."""

    @staticmethod
    def forward(ctx: Any, columns: Tensor, shard: Shard) -> Tensor:
        ctx.shard = shard
        number = dist.get_world_size(shard.group)
        cuts = [Shard.cut(shard.total, number, rank) for rank in range(number)]
        sizes = [stop - start for start, stop in cuts]
        return gather_rows(columns.t().contiguous(), sizes, shard).t().contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0][:, ctx.shard.start : ctx.shard.stop].contiguous(), None


class MeanGradient(torch.autograd.Function):
    """A parameter that processes of the group have alike."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        from torch.distributed._functional_collectives import all_reduce, wait_tensor

        total = wait_tensor(all_reduce(grads[0].contiguous(), "sum", ctx.group))
        return total / dist.get_world_size(ctx.group), None
