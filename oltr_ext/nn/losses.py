"""Losses as modules: OLTR's centroid loss, and those of the methods it is compared with.

None of them holds a parameter, so a state dict does not depend on the choice.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.layout import is_dtensor
from oltr_ext.ops import Shard
from oltr_ext.ops.disc_centroids_loss import COMPAT
from oltr_ext.reference._common import wide


class DiscCentroidsLoss(nn.Module):
    """See :func:`oltr_ext.ops.disc_centroids_loss`.

    Args:
        margin: in squared units of the features. The paper's 10 is far below the mean squared
            distance of usual features, which leaves the repel term off; see :meth:`fit_margin`.
        repel_weight: of the repel term against the attract term.
        compat: ``"fixed"``, or ``"official"`` for the released code's gradient.

    Raises:
        ValueError: another ``compat``.
    """

    def __init__(
        self, margin: float = 10.0, repel_weight: float = 0.01, compat: str = "fixed"
    ) -> None:
        super().__init__()
        if compat not in COMPAT:
            raise ValueError(
                f"DiscCentroidsLoss: expected compat to be one of {', '.join(COMPAT)}, got "
                f"{compat!r}"
            )
        self.margin, self.repel_weight, self.compat = margin, repel_weight, compat

    @torch.no_grad()
    def fit_margin(self, centroids: Tensor, factor: float = 1.0) -> float:
        """Sets the margin to ``factor`` times the mean squared distance between two centroids.

        Relative to the data, the repel term works at any scale of the features. Returns the margin,
        which a state dict does not hold: give it to the module that loads one.

        Raises:
            ValueError: fewer than two centroids.
        """
        classes = centroids.shape[0]
        if classes < 2:
            raise ValueError("DiscCentroidsLoss: expected at least two centroids to fit a margin")
        exact = getattr(centroids, "_local_tensor", centroids).double()
        centre = _total(exact.sum(dim=0), centroids) / classes
        spread = _total((exact - centre).square().sum(), centroids).item() / (classes - 1)
        self.margin = factor * 2 * spread
        return self.margin

    def forward(
        self, x: Tensor, target: Tensor, centroids: Tensor, shard: Shard | None = None
    ) -> Tensor:
        """Features (B, D), labels (B,) and centroids (C, D), or a shard of them, to a scalar.

        Raises:
            TypeError, ValueError, RuntimeError: as :func:`oltr_ext.ops.disc_centroids_loss`.
        """
        return ops.disc_centroids_loss(
            x,
            target,
            centroids,
            margin=self.margin,
            repel_weight=self.repel_weight,
            compat=self.compat,
            shard=shard,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, repel_weight={self.repel_weight}, compat={self.compat!r}"


class FocalLoss(nn.Module):
    """Mean of ``-(1 - p)^gamma log p``, p the softmax probability of the true class.

    Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, Eq. 4, for a softmax instead of
    a sigmoid, as the long-tailed field uses it. ``gamma=0`` is cross-entropy.

    Args:
        gamma: how strongly rows that are right already are turned down.
    """

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (B, C) and labels (B,) int64 in [0, C) to a float32 (or float64) scalar."""
        log_p = -F.cross_entropy(wide(logits), target, reduction="none")
        # -expm1 keeps 1 - p exact for a row that is right; where it is 0 the power has no slope
        rest = (-log_p.expm1()).clamp_min(1e-12)
        return -(rest**self.gamma * log_p).mean()

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class LiftedStructureLoss(nn.Module):
    """Every pair of a class against all the strangers of both its members.

    Song et al., *Deep Metric Learning via Lifted Structured Feature Embedding*, CVPR 2016, Eq. 4:
    with D the Euclidean distance, P the pairs (i, j) of one class in the batch and N the pairs of
    two classes,
    ``J_ij = log(sum_{(i,k) in N} exp(margin - D_ik) + sum_{(j,l) in N} exp(margin - D_jl)) + D_ij``
    and the loss is ``sum_P max(0, J_ij)^2 / (2 |P|)``. A batch without a pair of one class, or of
    one class alone, gives zero.

    Args:
        margin: in units of the features (1 in the paper).
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Features (B, D) and labels (B,) to a float32 (or float64) scalar."""
        x = wide(features)
        same = target[:, None] == target
        positive = same.triu(diagonal=1)  # each pair once
        if not positive.any() or same.all():
            return x.sum() * 0
        distance = _distances(x)
        strangers = (self.margin - distance).masked_fill(same, -torch.inf).logsumexp(dim=1)
        value = torch.logaddexp(strangers[:, None], strangers) + distance
        return value[positive].relu().square().mean() / 2

    def extra_repr(self) -> str:
        return f"margin={self.margin}"


class RangeLoss(nn.Module):
    """Narrow classes, and the two nearest of them apart.

    Zhang et al., *Range Loss for Deep Face Recognition with Long-Tailed Training Data*, ICCV 2017,
    Section 3: ``intra * sum_c k / sum_{j<=k} (1 / D_cj) + inter * max(0, margin - D_centre)``,
    where D_cj is the j-th largest squared distance between two images of class c in the batch (a
    harmonic mean of the k largest), and D_centre the smallest squared distance between the batch
    means of two classes. A class with fewer than k pairs uses those it has.

    Args:
        k: ranges of a class (2 in the paper).
        margin: in squared units of the features.
        intra, inter: weights of the two terms; they absorb the paper's lambda.

    Raises:
        ValueError: k below 1.
    """

    def __init__(
        self, k: int = 2, margin: float = 10.0, intra: float = 1.0, inter: float = 1.0
    ) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"RangeLoss: expected k of at least 1, got {k}")
        self.k, self.margin, self.intra, self.inter = k, margin, intra, inter

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        """Features (B, D) and labels (B,) to a float32 (or float64) scalar."""
        x = wide(features)
        classes, row = target.unique(return_inverse=True)
        squared = _distances(x).square()
        upper = torch.ones_like(squared, dtype=torch.bool).triu(diagonal=1)
        loss = x.sum() * 0
        for c in range(len(classes)):
            own = row == c
            pairs = squared[upper & own & own[:, None]]
            if len(pairs):
                largest = pairs.topk(min(self.k, len(pairs))).values.clamp_min(1e-12)
                loss = loss + self.intra * len(largest) / largest.reciprocal().sum()
        if len(classes) > 1:
            means = ops.class_means(x, row, len(classes)).means
            apart = F.pdist(means).min().square()
            loss = loss + self.inter * (self.margin - apart).relu()
        return loss

    def extra_repr(self) -> str:
        return f"k={self.k}, margin={self.margin}, intra={self.intra}, inter={self.inter}"


def _total(value: Tensor, bank: Tensor) -> Tensor:
    """The sum over the processes that share a bank."""
    if is_dtensor(bank):
        dist.all_reduce(value, group=bank.device_mesh.get_group())  # type: ignore[attr-defined]
    return value


def _distances(x: Tensor) -> Tensor:
    """(B, B) Euclidean, by differences: exact for near rows, and with gradient 0 at distance 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
