"""The dynamic meta-embedding: memory attention, selector gate and reachability in one op."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import accumulator, call_reference, held, precision, register
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import both
from oltr_ext.ops.streamed import passes
from oltr_ext.reference._common import reads_values

_OP = "meta_embedding"


class MetaEmbeddingDetails(NamedTuple):
    """All that one meta-embedding is made of. B rows, D features."""

    embedding: Tensor
    """v (B, D)."""
    memory_feature: Tensor
    """m (B, D), recalled by attention."""
    selector: Tensor
    """e (B, D) in [-1, 1], the gate on m."""
    distance: Tensor
    """d (B,), to the nearest centroid, at least eps; float32 or float64."""
    nearest: Tensor
    """Class (B,) int64 of the nearest centroid."""


class MetaEmbedding(torch.autograd.Function):
    """(x, memory, keys, key_bias, selector_weight, selector_bias, scale, eps, memory_grad,
    precision) -> (embedding, memory_feature, selector, distance, nearest, lse)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.meta_embedding(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, memory, keys, key_bias, selector_weight, _, *settings = inputs
        ctx.scale, ctx.eps, ctx.memory_grad, ctx.precision = settings
        _, memory_feature, selector, distance, nearest, lse = output
        ctx.mark_non_differentiable(nearest, lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            x, memory, keys, key_bias, selector_weight,
            memory_feature, selector, distance, nearest, lse,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        embedding, memory_feature, selector, distance = (
            None if g is None else g.contiguous() for g in grads[:4]
        )
        if embedding is None:
            embedding = torch.zeros_like(ctx.saved_tensors[0])
        memory_grad = ctx.memory_grad and ctx.needs_input_grad[1]
        g = torch.ops.oltr_ext.meta_embedding_backward(
            embedding, memory_feature, selector, distance, *ctx.saved_tensors,
            ctx.scale, ctx.eps, memory_grad, ctx.precision,
        )  # fmt: skip
        return g[0], g[1] if memory_grad else None, *g[2:], None, None, None, None


def _fake(x: Tensor, *rest: Any) -> Any:
    rows, statistics = x.shape[0], accumulator(x.dtype)
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        x.new_empty(rows, dtype=statistics),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(rows, dtype=statistics),
    )


def _fake_backward(*args: Any) -> Any:
    x, memory, keys, key_bias, selector_weight = args[4:9]
    classes, width = memory.shape
    return (
        x.new_empty(x.shape),
        x.new_empty(classes if args[-2] else 0, width),
        x.new_empty(keys.shape),
        x.new_empty(key_bias.shape),
        x.new_empty(selector_weight.shape),
        x.new_empty(width),
    )


register(_OP, MetaEmbedding, _fake, _fake_backward)


@overload
def meta_embedding(
    x: Tensor,
    memory: Tensor | StreamedBank,
    keys: Tensor | StreamedBank,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    *,
    scale: float = ...,
    eps: float = ...,
    memory_grad: bool = ...,
    return_details: Literal[False] = ...,
    shard: Shard | None = ...,
) -> Tensor: ...


@overload
def meta_embedding(
    x: Tensor,
    memory: Tensor | StreamedBank,
    keys: Tensor | StreamedBank,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    *,
    scale: float = ...,
    eps: float = ...,
    memory_grad: bool = ...,
    return_details: Literal[True],
    shard: Shard | None = ...,
) -> MetaEmbeddingDetails: ...


def meta_embedding(
    x: Tensor,
    memory: Tensor | StreamedBank,
    keys: Tensor | StreamedBank,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    *,
    scale: float = 10.0,
    eps: float = 1e-6,
    memory_grad: bool = False,
    return_details: bool = False,
    shard: Shard | None = None,
) -> Tensor | MetaEmbeddingDetails:
    r"""Joins a feature with what the memory recalls of its likely classes.

    .. math::
        v = \frac{s}{\max(d, \epsilon)} \,(x + e \odot m), \quad
        m = \mathrm{softmax}(x W_h^\top + b_h) M, \quad
        e = \tanh(x W_s^\top + b_s), \quad
        d = \min_c \lVert x - M_c \rVert_2

    Source: dynamic meta-embedding of OLTR (Liu et al., CVPR 2019, Sec. 3.2). Attention and
    distance share one pass over the bank; neither B x C x D nor a whole B x C is ever allocated.

    Args:
        x: direct features (B, D); float32, float64, bfloat16 or float16. B may be 0.
        memory: class centroids M (C, D), same dtype and device, as all that follow.
        keys: hallucinator weight W_h (C, D). Keys or memory may be a :class:`StreamedBank`; then
            neither, nor the bias, gets a gradient.
        key_bias: hallucinator bias b_h (C,).
        selector_weight: concept selector W_s (D, D).
        selector_bias: b_s (D,).
        scale: s, the reachability scale.
        eps: floor of the distance, in its units; the gradient through a floored distance is zero.
        memory_grad: whether ``memory`` gets a gradient, through attention and distance both.
        return_details: also return m, e, d and the nearest class.
        shard: which classes memory, keys and bias are of, where other processes hold the others;
            the gate is the same in all.

    Returns:
        The embedding (B, D) in the dtype of ``x``, or :class:`MetaEmbeddingDetails`. One longer
        than float16 holds keeps its direction, at a length that it does.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``x``.
        ValueError: a shape, device, scale or eps that does not fit.
    """
    scale = _check.number(_OP, "scale", scale, 0)
    eps = _check.number(_OP, "eps", eps, 0)
    if isinstance(memory, StreamedBank) or isinstance(keys, StreamedBank):
        passes.no_shard(_OP, shard)
        gate = (key_bias, selector_weight, selector_bias)
        outputs = passes.meta_embedding(x, memory, keys, *gate, scale, eps)
        details = _details(x, outputs, scale)
        return details if return_details else details.embedding
    _, width = _check.matrix(_OP, "x", x)
    classes = _check.bank(_OP, "memory", memory, width, x, shard)
    _check.same(_OP, "keys", keys, (classes, width), x)
    _check.same(_OP, "key_bias", key_bias, (classes,), x)
    _check.same(_OP, "selector_weight", selector_weight, (width, width), x)
    _check.same(_OP, "selector_bias", selector_bias, (width,), x)
    banks = (x, memory, keys, key_bias, selector_weight, selector_bias)
    native = use_native(_OP, *banks)
    if shard is not None:
        outputs = call_reference(
            _OP, both.meta_embedding, *banks, scale, eps, memory_grad, shard, native
        )
    elif native:
        how = precision(x.device.type)
        outputs = torch.ops.oltr_ext.meta_embedding(*banks, scale, eps, memory_grad, how)[:5]
    else:
        outputs = call_reference(
            _OP, reference.meta_embedding, *banks, scale=scale, eps=eps, memory_grad=memory_grad
        )
    details = _details(x, outputs, scale)
    return details if return_details else details.embedding


def _details(x: Tensor, outputs: Any, scale: float) -> MetaEmbeddingDetails:
    details = MetaEmbeddingDetails(*outputs)
    v, recalled, gate, distance, _ = details
    if v.dtype != torch.float16:
        return details
    if v.is_cpu and reads_values(v) and not v.isinf().any():  # no device is waited for
        return details
    # how much longer it gets near a centroid says nothing more, and has no gradient
    far = distance.detach()[:, None]
    joined = scale / far * (x.float() + gate.float() * recalled.float())
    return details._replace(
        embedding=torch.where(v.isinf().any(dim=1, keepdim=True), held(joined, v.dtype), v)
    )
