"""The loss that pulls features to their centroid and pushes centroids apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import accumulator, call_reference, register
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import disc_centroids_loss as of_shards
from oltr_ext.ops.sharded.both import checked_labels

_OP = "disc_centroids_loss"
COMPAT = ("fixed", "official")


class DiscCentroidsLoss(torch.autograd.Function):
    """(x, target, centroids, margin, repel_weight, official) -> (loss, sums)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.disc_centroids_loss(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, target, centroids, _, ctx.repel_weight, ctx.official = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, target, centroids, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x, grad_centroids = torch.ops.oltr_ext.disc_centroids_loss_backward(
            grads[0], *ctx.saved_tensors, ctx.repel_weight, ctx.official
        )
        return grad_x, None, grad_centroids, None, None, None


def _fake(
    x: Tensor,
    target: Tensor,
    centroids: Tensor,
    margin: float,
    repel_weight: float,
    official: bool,
) -> Any:
    sums = x.new_empty(1 + 2 * x.shape[1], dtype=torch.float64)
    return x.new_empty((), dtype=accumulator(x.dtype)), sums


def _fake_backward(
    grad_loss: Tensor, x: Tensor, target: Tensor, centroids: Tensor, *rest: Any
) -> Any:
    return x.new_empty(x.shape), x.new_empty(centroids.shape)


register(_OP, DiscCentroidsLoss, _fake, _fake_backward)


def disc_centroids_loss(
    x: Tensor,
    target: Tensor,
    centroids: Tensor,
    *,
    margin: float = 10.0,
    repel_weight: float = 0.01,
    compat: str = "fixed",
    shard: Shard | None = None,
) -> Tensor:
    r"""Discriminative centroids loss on direct features.

    .. math::
        L = \frac{1}{2B} \sum_i \lVert x_i - c_{y_i} \rVert^2
            + \lambda \,\mathrm{clamp}(\mu - R,\, 0,\, 10^6), \quad
        R = \frac{1}{BC} \sum_i \sum_{j \ne y_i} \lVert x_i - c_j \rVert^2

    Source: OLTR (Liu et al., CVPR 2019, Sec. 3.3). R is computed in closed form in O((B + C) D).

    Args:
        x: direct features (B, D); float32, float64, bfloat16 or float16. B = 0 has loss 0.
        target: class of each row, (B,) int64 in [0, C).
        centroids: (C, D), same dtype and device.
        margin: mu, in squared units of the features.
        repel_weight: lambda.
        compat: ``"fixed"`` has the true gradient. ``"official"`` has the released code's gradient
            of the first term to the centroids: it ignores the incoming gradient and divides by
            (rows of the class + 1).
        shard: which classes ``centroids`` is of, where other processes hold the others. Targets
            count over all.

    Returns:
        The loss, a scalar; float64 for float64 inputs, else float32.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``x``.
        ValueError: a shape, device or option that does not fit.
        RuntimeError: a target out of range. CUDA kernels do not wait to look: there, it makes
            the loss NaN.
    """
    rows, width = _check.matrix(_OP, "x", x)
    _check.bank(_OP, "centroids", centroids, width, x, shard)
    _check.labels(_OP, target, rows, x)
    margin = _check.number(_OP, "margin", margin, 0)
    repel_weight = _check.number(_OP, "repel_weight", repel_weight, 0)
    if compat not in COMPAT:
        raise ValueError(f"{_OP}: expected compat to be one of {', '.join(COMPAT)}, got {compat!r}")
    arguments = (x, target, centroids, margin, repel_weight, compat == "official")
    if shard is not None:
        checked_labels(_OP, target, shard, None)
        if rows == 0:
            return (x.sum() + centroids.sum()).to(accumulator(x.dtype)) * 0
        local = (x, shard.local(target), *arguments[2:])
        return call_reference(_OP, of_shards.Disc.apply, *local, shard)
    if not use_native(_OP, x, centroids):
        return call_reference(_OP, reference.disc_centroids_loss, *arguments)
    return torch.ops.oltr_ext.disc_centroids_loss(*arguments)[0]
