"""The same in pure PyTorch, through the B x C of a shard; gradients and their collectives are
autograd's."""

from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops.shard import Shard, enter, largest, leave, nearest_of, unrounded
from oltr_ext.reference._common import widen


def attention(
    x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor, *, memory_grad: bool, shard: Shard
) -> Tensor:
    wide, k, b, m = widen(
        enter(shard, x), keys, key_bias, memory if memory_grad else memory.detach()
    )
    weight = _weights(shard, wide @ k.t() + b)
    return (leave(shard, weight @ m) / leave(shard, weight.sum(1, keepdim=True))).to(x.dtype)


def _weights(shard: Shard, logits: Tensor) -> Tensor:
    return (logits - _high(shard, logits)[:, None]).exp()


def _high(shard: Shard, logits: Tensor) -> Tensor:
    none = logits.new_full((len(logits), 1), -torch.inf)
    return largest(shard, torch.cat([logits.detach(), none], dim=1).amax(1))


def nearest(x: Tensor, memory: Tensor, *, shard: Shard) -> tuple[Tensor, Tensor]:
    wide, m = widen(enter(shard, x), memory)
    # a sum of nothing: whoever has no class still takes part in the backward's collective
    distance = wide[:, :0].sum(1) + m.sum() + torch.inf
    index = torch.zeros(len(wide), dtype=torch.int64, device=x.device)
    exact = distance.detach()
    if shard.size > 0:
        distance, index = reference.nearest_centroid(wide, m)
        exact = unrounded(distance.detach(), wide.detach(), m[index].detach())
    least, found = nearest_of(shard, exact, index)
    here = (found >= shard.start) & (found < shard.stop)
    # the owner's distance has the gradient; its value is what all agreed upon
    own = torch.where(here & ~distance.isinf(), distance - distance.detach(), 0)
    return (least + leave(shard, own)).to(x.dtype), found


def cross_entropy(
    v: Tensor,
    weight: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    scale: float,
    label_smoothing: float,
    others: int,
    shard: Shard,
) -> Tensor:
    logits = reference.cosine_logits(*widen(enter(shard, v), weight), scale=scale)
    return cross_entropy_of(logits, target, log_prior, label_smoothing, others, shard)


def cross_entropy_of(
    logits: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    label_smoothing: float,
    others: int,
    shard: Shard,
) -> Tensor:
    """Of logits (B, N) of the shard; a loss a row, 0 where the target is -1."""
    possible = torch.ones(shard.size, dtype=torch.bool, device=logits.device)
    if log_prior is not None:
        logits, possible = logits + log_prior, log_prior.isfinite()
    here = (target >= 0) & (target < shard.size)
    high = _high(shard, logits)
    total = leave(shard, (logits - high[:, None]).exp().sum(1))
    part = torch.zeros_like(total)
    if shard.size > 0:
        picked = logits.gather(1, torch.where(here, target, 0)[:, None])[:, 0]
        part = torch.where(here, -(1 - label_smoothing) * picked, 0)
        if label_smoothing > 0:
            every = int(possible.sum()) + others
            part = part - label_smoothing * torch.where(possible, logits, 0).sum(1) / every
    return torch.where(target == -1, 0, high + total.log() + leave(shard, part))


def meta(
    x: Tensor, memory: Tensor, keys: Tensor, key_bias: Tensor, *, memory_grad: bool, shard: Shard
) -> tuple[Tensor, Tensor, Tensor]:
    wide, m, k, b = widen(x, memory if memory_grad else memory.detach(), keys, key_bias)
    recalled = attention(wide, k, b, m, memory_grad=memory_grad, shard=shard)
    return (recalled, *nearest(wide, m, shard=shard))
