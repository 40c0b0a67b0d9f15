from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext.reference._common import check_labels, widen


class _OfficialAttract(torch.autograd.Function):
    """The released code's first term: its centroid gradient ignores the incoming gradient and
    divides by (rows of the class + 1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
        return (x - centroids[target]).square().sum() / (2 * x.shape[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, target, centroids = ctx.saved_tensors
        gap = (centroids[target] - x) / x.shape[0]
        ones = torch.ones_like(target, dtype=x.dtype)
        counts = torch.ones_like(centroids[:, 0]).index_add(0, target, ones)
        pull = torch.zeros_like(centroids).index_add(0, target, gap)
        return -grads[0] * gap, None, pull / counts.unsqueeze(1)


def disc_centroids_loss(
    x: Tensor,
    target: Tensor,
    centroids: Tensor,
    margin: float,
    repel_weight: float,
    official: bool,
) -> Tensor:
    """attract + repel_weight clamp(margin - R, 0, 1e6), R over the whole (B, C) distances.

    Raises:
        RuntimeError: a target outside [0, C).
    """
    rows, classes = x.shape[0], centroids.shape[0]
    check_labels("disc_centroids_loss", target, classes)
    wide, c = widen(x, centroids)
    if rows == 0:
        return (wide.sum() + c.sum()) * 0
    if official:
        attract = _OfficialAttract.apply(wide, target, c)
    else:
        # the gradient of c[target] is summed by threads in any order, on a CPU
        attract = (wide - c.index_select(0, target)).square().sum() / (2 * rows)
    centre = c.detach().mean(dim=0)  # R does not change by a shift, its rounding error does
    a, b = wide - centre, c - centre
    distances = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()
    own = target[:, None] == torch.arange(classes, device=target.device)
    mean = distances.masked_fill(own, 0).sum() / (rows * classes)
    return attract + repel_weight * (margin - mean).clamp(0, 1e6)
