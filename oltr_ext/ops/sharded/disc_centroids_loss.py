"""The centroid loss over a bank that several processes hold, on both backends: it is two sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext.ops._register import accumulator
from oltr_ext.ops.shard import Shard, cast, summed


class Disc(torch.autograd.Function):
    """(x, target, centroids, margin, repel_weight, official, shard) -> loss. Targets are those of
    `Shard.local`. In closed form, sums in float64, as csrc/cpu/disc_centroids_loss.h has it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        centroids: Tensor,
        margin: float,
        repel_weight: float,
        official: bool,
        shard: Shard,
    ) -> Tensor:
        rows, wide = len(x), torch.float64
        centre = _centre(x)  # R does not change by a shift, its rounding error does
        a = x.to(wide) - centre
        gap = _gap(a, target, centroids, centre)
        sum_a, sum_c, squares = a.sum(0), a.new_zeros(a.shape[1]), a.new_zeros(())
        for piece in centroids.split(8192):
            c = piece.to(wide) - centre
            sum_c, squares = sum_c + c.sum(0), squares + c.square().sum()
        attract = gap.square().sum()
        both = summed(shard, torch.cat([attract[None], squares[None], sum_c]))
        attract, squares, sum_c = both[0], both[1], both[2:]
        pairs = shard.total * a.square().sum() + rows * squares - 2 * sum_a @ sum_c - attract
        room = margin - pairs / (rows * shard.total)
        ctx.save_for_backward(x, target, centroids, sum_a, sum_c, (room > 0) & (room < 1e6))
        ctx.settings = repel_weight, official, shard
        # labels that are no class (a GPU's are not looked at)
        bad = (target < 0).any()
        loss = attract / (2 * rows) + repel_weight * room.clamp(0, 1e6)
        return cast(torch.where(bad, torch.nan, loss), accumulator(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, target, centroids, sum_a, sum_c, is_open = ctx.saved_tensors
        repel_weight, official, shard = ctx.settings
        rows, g = len(x), grads[0].double()
        centre = _centre(x)
        # R's pairs are all but a row's own class; a number times a flag would be one of float32
        repel = torch.where(is_open, g, 0) * (-2 * repel_weight / (rows * shard.total))
        gap = _gap(x.double(), target, centroids, torch.zeros_like(centre))
        grad_x = summed(shard, gap * (g / rows - repel))
        grad_x = grad_x + repel * (shard.total * (x.double() - centre) - sum_c)
        # the last row is for targets elsewhere, so that no shape depends on where they are
        grad_c = centroids.new_empty(shard.size + 1, x.shape[1])
        for first, piece in enumerate(centroids.split(8192)):
            shifted = piece.double() - centre
            grad_c[first * 8192 :][: len(piece)] = repel * (rows * shifted - sum_a)
        grad_c[-1] = 0
        own = torch.where(target < 0, shard.size, target)
        at = _numbered(own)
        pull = gap * repel  # takes a row's own class out of R
        if official:
            counts = torch.zeros_like(own).index_add_(0, at, torch.ones_like(own))
            pull = pull - gap / (rows * (counts[at, None] + 1))
        else:
            pull = pull - gap * g / rows
        sums = torch.zeros_like(pull).index_add_(0, at, pull)[at]
        grad_c[own] = (grad_c[own].double() + sums).to(grad_c.dtype)
        return grad_x.to(x.dtype), None, grad_c[:-1], None, None, None, None


def _gap(x: Tensor, target: Tensor, centroids: Tensor, centre: Tensor) -> Tensor:
    """(B, D) float64 from the centroid of a row's class, both shifted; 0 for one elsewhere."""
    if len(centroids) == 0:
        return torch.zeros_like(x)
    here = (target >= 0) & (target < len(centroids))
    own = centroids[torch.where(here, target, 0)].double() - centre
    return torch.where(here[:, None], x - own, 0)


def _numbered(classes: Tensor) -> Tensor:
    """(B,) numbers below B, equal where classes (B,) are."""
    ordered, order = classes.sort(stable=True)
    first = torch.ones_like(ordered)
    first[1:] = (ordered[1:] != ordered[:-1]).long()
    return torch.empty_like(order).index_copy_(0, order, first.cumsum(0) - 1)


def _centre(x: Tensor) -> Tensor:
    return x.double().mean(0)
