"""Ops over a bank that several processes hold, exactly: the states of their passes merge by the
rule by which parts of one pass do (csrc/common/merge.h). See `Shard` for what each process gets.

Collectives of a forward pass: MAX of the softmax's reference, SUM of its weight and what it
recalled, B (D + 2) numbers, two MIN of distance and class; of a backward pass one SUM of the
features' gradient, B D numbers. What a native op gives of a shard is rounded to the op's dtype
before it is summed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext.ops._register import accumulator, precision
from oltr_ext.ops.shard import Shard, cast, largest, nearest_of, summed, unrounded

FLOOR = 1e-30
"""Of distances; small enough to change none, and 1 / it is finite."""


class Recall(torch.autograd.Function):
    """(x, keys, key_bias, memory, memory_grad, shard) -> (recalled, lse over all shards)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        memory: Tensor,
        memory_grad: bool,
        shard: Shard,
    ) -> Any:
        how = precision(x.device.type)
        if shard.size > 0:
            part, lse = torch.ops.oltr_ext.memory_attention(
                x, keys, key_bias, memory, memory_grad, how
            )
        else:
            part, lse = torch.zeros_like(x), _no_class(x)
        out, lse = merged(shard, part, lse)
        ctx.save_for_backward(x, keys, key_bias, memory, out, lse)
        ctx.settings = memory_grad, how, shard
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return *recall_gradients(ctx, grads[0].contiguous()), None, None


def recall_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Of x, keys, key_bias and memory."""
    x, keys, key_bias, memory, out, lse = ctx.saved_tensors
    memory_grad, how, shard = ctx.settings
    memory_grad = memory_grad and ctx.needs_input_grad[3]
    if shard.size > 0:
        g = torch.ops.oltr_ext.memory_attention_backward(
            grad, x, keys, key_bias, memory, out, lse, memory_grad, how
        )
    else:
        g = [torch.zeros_like(t) for t in (x, keys, key_bias, memory)]
    return summed(shard, g[0]), g[1], g[2], g[3] if memory_grad else None


class Nearest(torch.autograd.Function):
    """(x, memory, shard) -> (distance, class over all shards)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, memory: Tensor, shard: Shard) -> Any:
        if shard.size > 0:
            distance, index = torch.ops.oltr_ext.nearest_centroid(
                x, memory, precision(x.device.type)
            )
            distance = unrounded(distance, x, memory[index])
        else:
            distance = x.new_full((len(x),), torch.inf, dtype=accumulator(x.dtype))
            index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        distance, found = nearest_of(shard, distance, index)
        ctx.save_for_backward(x, memory, found)
        ctx.shard = shard
        ctx.mark_non_differentiable(found)
        return cast(distance, x.dtype), found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, memory, found = ctx.saved_tensors
        shard, need_memory = ctx.shard, ctx.needs_input_grad[1]
        if shard.size > 0:
            here = (found >= shard.start) & (found < shard.stop)
            grad = torch.where(here, grads[0], 0)
            local = torch.where(here, found - shard.start, 0)
            grad_x, grad_memory = torch.ops.oltr_ext.nearest_centroid_backward(
                grad.contiguous(), x, memory, local, need_memory
            )
            # a row of NaN has a gradient of NaN there alone where it counts
            grad_x = torch.where(here[:, None], grad_x, 0)
        else:
            grad_x, grad_memory = torch.zeros_like(x), torch.zeros_like(memory)
        return summed(shard, grad_x), grad_memory if need_memory else None, None


class Meta(torch.autograd.Function):
    """(x, memory, keys, key_bias, selector_weight, selector_bias, memory_grad, shard) -> (recalled,
    distance, class over all shards), by one pass over the bank. Of the gate, which all shards have
    alike, it is not asked, and no gradient goes to it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        memory: Tensor,
        keys: Tensor,
        key_bias: Tensor,
        selector_weight: Tensor,
        selector_bias: Tensor,
        memory_grad: bool,
        shard: Shard,
    ) -> Any:
        how = precision(x.device.type)
        if shard.size > 0:
            _, part, selector, distance, index, lse = torch.ops.oltr_ext.meta_embedding(
                x,
                memory,
                keys,
                key_bias,
                selector_weight,
                selector_bias,
                1.0,
                0.0,
                memory_grad,
                how,
            )
            distance = unrounded(distance, x, memory[index])
        else:
            part = selector = torch.zeros_like(x)
            lse = _no_class(x)
            distance, index = -lse, torch.zeros(len(x), dtype=torch.int64, device=x.device)
        recalled, lse = merged(shard, part, lse)
        distance, found = nearest_of(shard, distance, index)
        distance = cast(distance, lse.dtype)
        ctx.save_for_backward(
            x, memory, keys, key_bias, selector_weight, recalled, selector, distance, found, lse
        )
        ctx.settings = memory_grad, how, shard
        ctx.mark_non_differentiable(found)
        return recalled, distance, found

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, memory, keys, key_bias, weight, recalled, selector, distance, found, lse = (
            ctx.saved_tensors
        )
        memory_grad, how, shard = ctx.settings
        memory_grad = memory_grad and ctx.needs_input_grad[1]
        if shard.size == 0:
            none = [torch.zeros_like(t) for t in (memory, keys, key_bias)]
            return summed(shard, torch.zeros_like(x)), *none, None, None, None, None
        here = (found >= shard.start) & (found < shard.stop)
        floored = distance.clamp_min(FLOOR)  # by which zeros are divided
        g = torch.ops.oltr_ext.meta_embedding_backward(
            torch.zeros_like(x), grads[0].contiguous(), None, torch.where(here, grads[1], 0),
            x, memory, keys, key_bias, weight, recalled, selector,
            floored, torch.where(here, found - shard.start, 0), lse, 1.0, FLOOR, memory_grad, how,
        )  # fmt: skip
        grad_memory = g[1] if memory_grad else None
        return summed(shard, g[0]), grad_memory, g[2], g[3], None, None, None, None


class CrossEntropy(torch.autograd.Function):
    """(v, weight, target, log_prior, scale, label_smoothing, others, shard) -> loss a row.

    Targets are those of `Shard.local`, -1 for a row that is ignored.
    """

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        weight: Tensor,
        target: Tensor,
        log_prior: Tensor | None,
        scale: float,
        label_smoothing: float,
        others: int,
        shard: Shard,
    ) -> Tensor:
        settings = (scale, label_smoothing, -1, others, precision(v.device.type))
        if shard.size > 0:
            part, lse, _ = torch.ops.oltr_ext.cosine_cross_entropy(
                v, weight, target, log_prior, *settings
            )
        else:
            lse = _no_class(v)
            part = torch.zeros_like(lse)
        high = largest(shard, lse)
        both = summed(shard, torch.stack([share(lse, high), part]))
        lse = high + both[0].log()
        ctx.save_for_backward(v, weight, target, log_prior, lse)
        ctx.settings, ctx.shard = settings, shard
        return torch.where(target == -1, 0, lse + both[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        v, weight = ctx.saved_tensors[:2]
        if ctx.shard.size > 0:
            grad_v, grad_weight = torch.ops.oltr_ext.cosine_cross_entropy_backward(
                grads[0].contiguous(), *ctx.saved_tensors, *ctx.settings
            )
        else:
            grad_v, grad_weight = torch.zeros_like(v), torch.zeros_like(weight)
        return summed(ctx.shard, grad_v), grad_weight, *[None] * 6


def _no_class(x: Tensor) -> Tensor:
    return x.new_full((len(x),), -torch.inf, dtype=accumulator(x.dtype))


def share(lse: Tensor, high: Tensor) -> Tensor:
    """exp(lse - high), 0 of a shard without a possible class, also where no shard has one."""
    return torch.where(lse == -torch.inf, 0, (lse - high).exp())


def merged(shard: Shard, part: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """What all shards recall (B, D) in the dtype of `part`, and their lse (B,)."""
    high = largest(shard, lse)
    weight = share(lse, high)[:, None]
    # a shard without weight may have recalled NaN: of no class, nothing
    recalled = torch.where(weight == 0, 0, weight * part.to(lse.dtype))
    both = summed(shard, torch.cat([weight, recalled], dim=1))
    return cast(both[:, 1:] / both[:, :1], part.dtype), high + both[:, 0].log()
