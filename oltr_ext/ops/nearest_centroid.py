"""Nearest centroid: the distance that tells the known from the unknown."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import call_reference, precision, register
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import formulas
from oltr_ext.ops.sharded import native as kernels
from oltr_ext.ops.streamed import passes

_OP = "nearest_centroid"


class Nearest(NamedTuple):
    """Distance (B,) to the nearest centroid and its class (B,) int64."""

    distance: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, as torch.return_types.min


class NearestCentroid(torch.autograd.Function):
    """(x, memory) -> (distance, index)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.nearest_centroid(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*inputs[:2], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        need_memory = ctx.needs_input_grad[1]
        grad_x, grad_memory = torch.ops.oltr_ext.nearest_centroid_backward(
            grads[0].contiguous(), *ctx.saved_tensors, need_memory
        )
        return grad_x, grad_memory if need_memory else None, None


def _fake(x: Tensor, memory: Tensor, precision: str) -> Any:
    return x.new_empty(x.shape[0]), x.new_empty(x.shape[0], dtype=torch.int64)


def _fake_backward(
    grad_distance: Tensor, x: Tensor, memory: Tensor, index: Tensor, memory_grad: bool
) -> Any:
    classes, width = memory.shape
    return x.new_empty(x.shape), x.new_empty(classes if memory_grad else 0, width)


register(_OP, NearestCentroid, _fake, _fake_backward)


def nearest_centroid(
    x: Tensor, memory: Tensor | StreamedBank, *, shard: Shard | None = None
) -> Nearest:
    r"""Finds for each feature the nearest class centroid.

    .. math:: d_i = \min_c \lVert x_i - M_c \rVert_2

    Source: reachability of OLTR (Liu et al., CVPR 2019, Sec. 3.2). A product selects, and every
    candidate within its rounding error is measured as :math:`\sum (x-c)^2`, so the distance has
    full precision even where ``x`` is close to a centroid. Where squares would leave the range of
    their type, gaps are scaled first: features may be as small or as large as their dtype holds.

    Args:
        x: features (B, D); float32, float64, bfloat16 or float16. B may be 0.
        memory: class centroids (C, D), same dtype and device, or a
            :class:`StreamedBank`, which gets no gradient.
        shard: which classes ``memory`` is of, where other processes hold the others. The index
            counts over all.

    Returns:
        ``(distance (B,), index (B,) int64)``, the distance in the dtype of ``x``, infinite where
        that cannot hold it: in float16 from 65,520 on, which float32 features, or the ``distance``
        of :func:`meta_embedding`, avoid. The index is right all the same. Ties go to the lower
        class; a NaN row has distance NaN and index 0; a NaN centroid is the nearest of all, as in
        :func:`torch.min`. The gradient goes to ``x`` and to the nearest row of ``memory``, and is
        zero at distance 0.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``x``.
        ValueError: a shape or device that does not fit.
    """
    if isinstance(memory, StreamedBank):
        passes.no_shard(_OP, shard)
        return Nearest(*passes.nearest_centroid(x, memory))
    _, width = _check.matrix(_OP, "x", x)
    _check.bank(_OP, "memory", memory, width, x, shard)
    native = use_native(_OP, x, memory)
    if shard is not None:
        if native:
            return Nearest(*call_reference(_OP, kernels.Nearest.apply, x, memory, shard))
        return Nearest(*call_reference(_OP, formulas.nearest, x, memory, shard=shard))
    if not native:
        return Nearest(*call_reference(_OP, reference.nearest_centroid, x, memory))
    return Nearest(*torch.ops.oltr_ext.nearest_centroid(x, memory, precision(x.device.type)))
