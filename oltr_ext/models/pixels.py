"""Pixels as this package makes them, and as published nets take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oltr_ext._pixels import IMAGENET_MEAN, IMAGENET_STD, Interpolation

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Interpolation",
    "Renormalise",
    "Wants",
    "check_channels",
    "probe",
]


@dataclass(frozen=True)
class Wants:
    """The images that a net was made for: their side in pixels, and how they are resized to it."""

    size: int
    interpolation: Interpolation


def check_channels(net: str, channels: int) -> None:
    """Raises ValueError for images that a net made for three channels cannot be given."""
    if channels not in (1, 3):
        raise ValueError(f"build_backbone: {net} takes 1 or 3 channels, got {channels}")


def probe(channels: int, size: int) -> Tensor:
    """An image (1, channels, size, size) in [0, 1] that is nothing in particular, always the same,
    and draws nothing from torch's generator."""
    device = torch.get_default_device()
    if device.type == "meta":
        return torch.zeros(1, channels, size, size)
    draws = torch.Generator(device="cpu").manual_seed(0)
    return torch.rand(1, channels, size, size, generator=draws, device="cpu").to(device)


class Renormalise(nn.Module):
    """Images as this package makes them, to three channels of the mean and std a net was made for.

    Colour images come with ImageNet's mean and std, grey ones (one channel) in [0, 1].

    Args:
        in_channels: 1 or 3.
        mean, std: (3,) of pixels in [0, 1].
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, in_channels: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        wide = torch.float64
        to_mean, to_std = (torch.tensor(v, dtype=wide, device="cpu") for v in (mean, std))
        own = (IMAGENET_MEAN, IMAGENET_STD) if in_channels == 3 else (0.0, 1.0)
        own_mean, own_std = (torch.tensor(v, dtype=wide, device="cpu") for v in own)
        scale, shift = own_std / to_std, (own_mean - to_mean) / to_std
        self.needed = in_channels != 3 or bool((scale != 1).any() or (shift != 0).any())
        self.values = {"scale": scale[:, None, None], "shift": shift[:, None, None]}
        for name in self.values:  # of the code, not of a checkpoint
            self.register_buffer(name, None, persistent=False)
        self._fill(torch.get_default_device())

    def _fill(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        for name, value in self.values.items():
            setattr(self, name, value.to(dtype).to(device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._fill(self.scale.device, self.scale.dtype)  # `to_empty` leaves anything in them
        return self

    def _load_from_state_dict(
        self, state: dict[str, Tensor], prefix: str, local: dict[str, Any], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, local, *rest)
        if self.scale.is_meta and local.get("assign_to_params_buffers"):
            self._fill(next((t.device for t in state.values()), torch.device("cpu")))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift if self.needed else images
