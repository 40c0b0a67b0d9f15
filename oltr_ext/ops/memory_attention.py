"""Memory attention: recall the centroids of the classes a feature resembles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import accumulator, call_reference, precision, register
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import formulas
from oltr_ext.ops.sharded import native as kernels
from oltr_ext.ops.streamed import passes

_OP = "memory_attention"


class MemoryAttention(torch.autograd.Function):
    """(x, keys, key_bias, memory, memory_grad, precision) -> (out, lse); lse has no gradient."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.memory_attention(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, keys, key_bias, memory, ctx.memory_grad, ctx.precision = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.save_for_backward(x, keys, key_bias, memory, out, lse)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        memory_grad = ctx.memory_grad and ctx.needs_input_grad[3]
        g = torch.ops.oltr_ext.memory_attention_backward(
            grads[0].contiguous(), *ctx.saved_tensors, memory_grad, ctx.precision
        )
        return g[0], g[1], g[2], g[3] if memory_grad else None, None, None


def _fake(x: Tensor, *rest: Any) -> Any:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=accumulator(x.dtype))


def _fake_backward(
    grad_out: Tensor,
    x: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    memory: Tensor,
    out: Tensor,
    lse: Tensor,
    memory_grad: bool,
    precision: str,
) -> Any:
    classes, width = memory.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(keys.shape),
        x.new_empty(key_bias.shape),
        x.new_empty(classes if memory_grad else 0, width),
    )


register(_OP, MemoryAttention, _fake, _fake_backward)


def memory_attention(
    x: Tensor,
    keys: Tensor | StreamedBank,
    key_bias: Tensor,
    memory: Tensor | StreamedBank,
    *,
    memory_grad: bool = True,
    shard: Shard | None = None,
) -> Tensor:
    r"""Recalls a memory feature by attention over the class bank.

    .. math:: m = \mathrm{softmax}(x W_h^\top + b_h)\, M

    Source: memory feature of OLTR (Liu et al., CVPR 2019, Sec. 3.2). Neither B x C x D nor a whole
    B x C is ever allocated.

    Args:
        x: direct features (B, D); float32, float64, bfloat16 or float16. B may be 0.
        keys: hallucinator weight W_h (C, D), same dtype and device.
        key_bias: hallucinator bias b_h (C,).
        memory: class centroids M (C, D). Keys or memory may be a :class:`StreamedBank`; then
            neither, nor the bias, gets a gradient.
        memory_grad: whether ``memory`` gets a gradient (the released code detaches it here).
        shard: which classes keys, bias and memory are of, where other processes hold the others.

    Returns:
        The memory feature (B, D) in the dtype of ``x``. A row of ``x`` holding NaN gives NaN in
        that row only.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``x``.
        ValueError: a shape or device that does not fit.
    """
    if isinstance(keys, StreamedBank) or isinstance(memory, StreamedBank):
        passes.no_shard(_OP, shard)
        return passes.memory_attention(x, keys, key_bias, memory)
    _, width = _check.matrix(_OP, "x", x)
    classes = _check.bank(_OP, "keys", keys, width, x, shard)
    _check.same(_OP, "key_bias", key_bias, (classes,), x)
    _check.same(_OP, "memory", memory, (classes, width), x)
    native = use_native(_OP, x, keys, key_bias, memory)
    if shard is not None:
        banks = (x, keys, key_bias, memory)
        if native:
            return call_reference(_OP, kernels.Recall.apply, *banks, memory_grad, shard)[0]
        how = {"memory_grad": memory_grad, "shard": shard}
        return call_reference(_OP, formulas.attention, *banks, **how)
    if not native:
        return call_reference(
            _OP, reference.memory_attention, x, keys, key_bias, memory, memory_grad=memory_grad
        )
    arguments = (x, keys, key_bias, memory, memory_grad, precision(x.device.type))
    return torch.ops.oltr_ext.memory_attention(*arguments)[0]
