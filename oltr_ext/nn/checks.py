"""What layers and heads ask of what they are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_sizes(where: str, num_classes: int, feat_dim: int) -> None:
    """Raises ValueError for no class or no feature, where nothing could be answered."""
    if num_classes < 1 or feat_dim < 1:
        raise ValueError(
            f"{where}: expected at least one class and one feature, got {num_classes} and "
            f"{feat_dim}"
        )


def check_labels(where: str, target: Tensor, num_classes: int) -> None:
    """Raises ValueError where a label (N,) is no class."""
    if len(target) and (target.min() < 0 or target.max() >= num_classes):
        raise ValueError(
            f"{where}: expected labels in [0, {num_classes}), got {int(target.min())} to "
            f"{int(target.max())}"
        )


def checked_prior(prior: Any, num_classes: int) -> Tensor | None:
    """Class frequencies (C,) as float32; None stays None.

    Raises:
        ValueError: another shape, or what is no frequency. On the meta device nothing is.
    """
    if prior is None:
        return None
    prior = torch.as_tensor(prior, dtype=torch.float32)
    if tuple(prior.shape) != (num_classes,):
        raise ValueError(f"class_prior: expected shape ({num_classes},), got {tuple(prior.shape)}")
    if not prior.is_meta and not (
        torch.isfinite(prior).all() and (prior >= 0).all() and prior.sum() > 0
    ):
        raise ValueError("class_prior: expected finite frequencies, not negative, not all zero")
    return prior
