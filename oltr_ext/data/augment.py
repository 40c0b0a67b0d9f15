"""Gentle augmentation of a batch, for pictures that are small or whose whole counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from oltr_ext.data.samplers import mix

__all__ = ["GENTLE", "Augment"]


@dataclass(frozen=True)
class Augment:
    """Augmentation of float images (B, C, H, W), each by a pure function of its key.

    What comes into view at the edges, and in a blanked rectangle, is the ground: black in grey
    images, whose ink is bright, and in colour what the image's border shows.

    Args:
        shift: largest move along each axis, in 32nds of the side: pixels of a 32 x 32 image.
        scale: zoom between 1/(1+scale) and 1+scale, uniform in its logarithm.
        stretch: the same, but with inverse effect on the two axes.
        rotate: largest turn, in degrees.
        flip: probability of a left-right flip.
        erase: probability of blanking a rectangle of 1/4 to 1/2 of each side.
        ink: what differs from the ground, times between 1/(1+ink) and 1+ink.
    """

    shift: float = 0.0
    scale: float = 0.0
    stretch: float = 0.0
    rotate: float = 0.0
    flip: float = 0.0
    erase: float = 0.0
    ink: float = 0.0

    def __call__(self, images: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Args: images (B, C, H, W) float; keys (B,) one hash for each image."""
        if self == Augment():  # to the bit: what is subtracted below would round
            return images
        draw = mix(keys[:, None], np.arange(12))
        u = torch.from_numpy((draw >> np.uint64(40)).astype(np.float32) * 2.0**-24)
        u = u.to(images.device)
        height, width = images.shape[2:]
        ground = _ground(images)
        out = images if ground is None else images - ground
        if self.shift or self.scale or self.stretch or self.rotate or self.flip:
            zoom = (math.log1p(self.scale) * (2 * u[:, 0] - 1)).exp()
            aspect = (math.log1p(self.stretch) * (2 * u[:, 1] - 1)).exp()
            angle = math.radians(self.rotate) * (2 * u[:, 2] - 1)
            mirror = 1 - 2 * (u[:, 3] < self.flip).to(u.dtype)
            move = self.shift * (2 * u[:, 4:6] - 1)
            cos, sin = angle.cos() / zoom, angle.sin() / zoom
            theta = torch.stack(
                [
                    torch.stack([mirror * cos / aspect, -sin, 2 * move[:, 0] / 32], 1),
                    torch.stack([mirror * sin, cos * aspect, 2 * move[:, 1] / 32], 1),
                ],
                dim=1,
            )
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            out = F.grid_sample(out, grid, align_corners=False)
        if self.erase:
            sides = 0.25 + 0.25 * u[:, 6:8]
            corner = u[:, 8:10] * (1 - sides)
            rows = (torch.arange(height, dtype=u.dtype, device=u.device) + 0.5) / height
            cols = (torch.arange(width, dtype=u.dtype, device=u.device) + 0.5) / width
            inside_y = (rows >= corner[:, :1]) & (rows < corner[:, :1] + sides[:, :1])
            inside_x = (cols >= corner[:, 1:]) & (cols < corner[:, 1:] + sides[:, 1:])
            chosen = (u[:, 10] < self.erase)[:, None, None]
            hole = chosen & inside_y[:, :, None] & inside_x[:, None, :]
            out = out.masked_fill(hole[:, None], 0.0)
        if self.ink:
            out = out * (math.log1p(self.ink) * (2 * u[:, 11] - 1)).exp()[:, None, None, None]
        return out if ground is None else out + ground


def _ground(images: Tensor) -> Tensor | None:
    """(B, 3, 1, 1) median of the border of each channel of colour images; None for black."""
    if images.shape[1] == 1:
        return None
    rows = torch.cat([images[:, :, 0], images[:, :, -1]], dim=2)
    columns = torch.cat([images[..., 0], images[..., -1]], dim=2)
    return torch.cat([rows, columns], dim=2).median(dim=2).values[:, :, None, None]


GENTLE = Augment(shift=3.0, scale=0.2, stretch=0.1, rotate=10.0, erase=0.25, ink=0.2)
"""The preset `gentle`. It mirrors nothing, for a mirrored character is another one, or none."""
