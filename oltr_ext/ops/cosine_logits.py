"""Logits of the cosine classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import call_reference, precision, register
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.shard import Shard, enter
from oltr_ext.ops.streamed import passes

_OP = "cosine_logits"


class CosineLogits(torch.autograd.Function):
    """(v, weight, scale, precision) -> logits."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.cosine_logits(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        v, weight, *ctx.settings = inputs
        ctx.save_for_backward(v, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = torch.ops.oltr_ext.cosine_logits_backward(
            grads[0].contiguous(), *ctx.saved_tensors, *ctx.settings
        )
        return *g, None, None


def _fake(v: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return v.new_empty(v.shape[0], weight.shape[0])


def _fake_backward(grad_logits: Tensor, v: Tensor, weight: Tensor, *rest: Any) -> Any:
    return v.new_empty(v.shape), v.new_empty(weight.shape)


register(_OP, CosineLogits, _fake, _fake_backward)


def cosine_logits(
    v: Tensor,
    weight: Tensor | StreamedBank,
    *,
    scale: float = 16.0,
    shard: Shard | None = None,
) -> Tensor:
    r"""Scores an embedding against every class by direction.

    .. math::
        z_c = s \,\frac{\lVert v \rVert}{1 + \lVert v \rVert}\,
              \frac{v}{\lVert v \rVert} \cdot \frac{w_c}{\lVert w_c \rVert}

    Source: cosine classifier of OLTR (Liu et al., CVPR 2019, Eq. 6, with the norms of the released
    code). A zero ``v`` or a zero ``w_c`` has zero logits and no NaN in value or gradient. Lengths
    whose squares leave the range of float32 (of float64 in float64), above 1.8e19 or below some
    1e-22, have wrong ones.

    Args:
        v: embeddings (B, D); float32, float64, bfloat16 or float16. B may be 0.
        weight: class directions (C, D), same dtype and device, or a
            :class:`StreamedBank`, which gets no gradient.
        scale: s.
        shard: which classes ``weight`` is of, where other processes hold the others. The logits
            are of these alone, and so must be what is made of them: ``v`` gets the sum of what each
            process asks of it.

    Returns:
        Logits (B, C) in the dtype of ``v``. To train, prefer :func:`cosine_cross_entropy`, which
        never holds them.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``v``.
        ValueError: a shape, device or scale that does not fit.
    """
    if isinstance(weight, StreamedBank):
        passes.no_shard(_OP, shard)
        return passes.cosine_logits(v, weight, _check.number(_OP, "scale", scale, 0))
    _, width = _check.matrix(_OP, "v", v)
    _check.bank(_OP, "weight", weight, width, v, shard)
    scale = _check.number(_OP, "scale", scale, 0)
    if shard is not None:
        v = enter(shard, v)
        if shard.size == 0:  # a sum over no class keeps v and weight in the graph
            return (v[:, :1] + weight.sum())[:, :0]
    if not use_native(_OP, v, weight):
        return call_reference(_OP, reference.cosine_logits, v, weight, scale=scale)
    return torch.ops.oltr_ext.cosine_logits(v, weight, scale, precision(v.device.type))
