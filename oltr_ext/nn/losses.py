"""The centroid loss as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oltr_ext import ops


class DiscCentroidsLoss(nn.Module):
    """See :func:`oltr_ext.ops.disc_centroids_loss`.

    Args:
        margin: in squared units of the features. The paper's 10 is far below the mean squared
            distance of usual features, which leaves the repel term off; see :meth:`fit_margin`.
        repel_weight: of the repel term against the attract term.
        compat: ``"fixed"``, or ``"official"`` for the released code's gradient.
    """

    def __init__(
        self, margin: float = 10.0, repel_weight: float = 0.01, compat: str = "fixed"
    ) -> None:
        super().__init__()
        self.margin, self.repel_weight, self.compat = margin, repel_weight, compat

    @torch.no_grad()
    def fit_margin(self, centroids: Tensor, factor: float = 1.0) -> float:
        """Sets the margin to ``factor`` times the mean squared distance between two centroids.

        Relative to the data, the repel term works at any scale of the features. Returns the margin.

        Raises:
            ValueError: fewer than two centroids.
        """
        classes = centroids.shape[0]
        if classes < 2:
            raise ValueError("DiscCentroidsLoss: expected at least two centroids to fit a margin")
        wide = centroids.double()
        spread = (wide - wide.mean(dim=0)).square().sum().item() / (classes - 1)
        self.margin = factor * 2 * spread
        return self.margin

    def forward(self, x: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
        """Features (B, D), labels (B,) and centroids (C, D) to a scalar."""
        return ops.disc_centroids_loss(
            x,
            target,
            centroids,
            margin=self.margin,
            repel_weight=self.repel_weight,
            compat=self.compat,
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, repel_weight={self.repel_weight}, compat={self.compat!r}"
