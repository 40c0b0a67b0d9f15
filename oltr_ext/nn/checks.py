"""What layers and heads ask of what they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from oltr_ext.ops import StreamedBank


def check_sizes(where: str, num_classes: int, feat_dim: int) -> None:
    """Raises ValueError for no class or no feature, where nothing could be answered."""
    if num_classes < 1 or feat_dim < 1:
        raise ValueError(
            f"{where}: expected at least one class and one feature, got {num_classes} and "
            f"{feat_dim}"
        )


def check_features(where: str, features: Tensor, width: int) -> None:
    """Raises ValueError for features that are not (N, width)."""
    if features.dim() != 2 or features.shape[1] != width:
        raise ValueError(
            f"{where}: expected features of shape (N, {width}), got {tuple(features.shape)}"
        )


def check_labels(where: str, target: Tensor, num_classes: int) -> None:
    """Raises ValueError where a label (N,) is no class."""
    if len(target) and (target.min() < 0 or target.max() >= num_classes):
        raise ValueError(
            f"{where}: expected labels in [0, {num_classes}), got {int(target.min())} to "
            f"{int(target.max())}"
        )


def check_own(where: str, layer: nn.Module, *names: str) -> None:
    """Raises ValueError where a tensor of a layer is made anew at each reading, as by a
    parametrization or pruning: what is written into it is lost; or streamed."""
    for name in names:
        check_in_memory(where, getattr(layer, name))
        if name not in layer._parameters and name not in layer._buffers:
            raise ValueError(
                f"{where}: expected {name} to be a parameter of {type(layer).__name__}, got one "
                "that is made of others: remove the parametrization or pruning first"
            )


def check_in_memory(where: str, bank: Any) -> None:
    """Raises ValueError for a streamed bank in the place of a tensor."""
    if isinstance(bank, StreamedBank):
        raise ValueError(
            f"{where}: expected banks in memory, got streamed ones, which are read-only: load the "
            "model without streaming it"
        )


def of_width(
    where: str, batches: Iterable[tuple[Tensor, Tensor]], width: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of features (B, D) and labels; ValueError at one of another width."""
    for features, target in batches:
        if features.dim() != 2 or features.shape[1] != width:
            raise ValueError(
                f"{where}: expected features (B, {width}), got {tuple(features.shape)}"
            )
        yield features, target


def alike(where: str, what: str, value: Tensor) -> Tensor:
    """A vector (K,), plain also where `torch.vmap` maps over some: ValueError if these differ."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(value):
        at = functorch.maybe_get_bdim(value)
        value = functorch.get_unwrapped(value)
        value = value if at < 0 else value.movedim(at, 0)
    if value.dim() == 1:
        return value
    every = value.flatten(0, -2)
    if (every != every[0]).any():
        raise ValueError(f"{where}: expected {what} to be alike in all that torch.vmap maps over")
    return every[0]


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
