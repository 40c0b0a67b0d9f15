"""Images of any size to a network's square pixels, in a graph: what `oltr_ext.data.transforms` does
to one image, for a target that has no library of images."""

from __future__ import annotations

from collections.abc import Callable

import PIL
import torch
from torch import Tensor, nn

from oltr_ext.data.transforms import Fit, Interpolation

__all__ = ["AnySize"]

BITS = 22
"""Pillow's, of a weight."""
TALL_BY_ROWS = int(PIL.__version__.split(".")[0]) >= 13
"""Whether Pillow makes rows before columns where the height shrinks by more than twice as much as
the width; before 13.0 it never does."""

RESIZE = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


class AnySize(nn.Module):
    """uint8 (B, C, H, W) of any size to (B, C, size, size), by tensors and sizes alone, so that one
    graph does for all.

    ``pad`` and ``resize`` are what the Pillow at hand makes, bit for bit: whole numbers in float64,
    columns and rows in its order, each rounded to eight bits. ``crop`` is torch's own resize of
    uint8.

    Args:
        smooth: how ``crop`` resizes.
        invert: where the ground is light.
    """

    def __init__(
        self, size: int, fit: Fit, smooth: Interpolation = "bilinear", *, invert: bool = False
    ) -> None:
        super().__init__()
        self.size, self.fit, self.smooth, self.invert = size, fit, smooth, invert

    def forward(self, images: Tensor) -> Tensor:
        if self.fit == "crop":
            return _cropped(images, self.size, RESIZE[self.smooth])
        height, width = (
            torch.scalar_tensor(n, dtype=torch.float64, device=images.device)
            for n in images.shape[2:]
        )
        size = torch.full_like(height, self.size)
        down, across = size, size
        if self.fit == "pad":
            share = size / torch.maximum(height, width)
            down, across = ((n * share).round().clamp_min(1) for n in (height, width))
        box = (across <= width) & (down <= height)
        columns, in_columns = _weights(images.shape[3], width, across, self.size, box)
        rows, in_rows = _weights(images.shape[2], height, down, self.size, box)
        pixels = images.double()
        made = _rounded(rows @ _rounded(pixels @ columns.t()))
        if TALL_BY_ROWS:
            tall = (height > down) & (height - down > 2 * (width - across))
            made = torch.where(tall, _rounded(_rounded(rows @ pixels) @ columns.t()), made)
        if self.fit == "pad":
            ground = _ground(images)
            made = torch.where(in_rows[:, None] & in_columns, made, ground)
            if self.invert:
                made = torch.where(ground > 127, 255 - made, made)
        return made.to(torch.uint8)


def _weights(
    extent: int, length: Tensor, to: Tensor, size: int, box: Tensor
) -> tuple[Tensor, Tensor]:
    """What each of ``size`` pixels takes of each of ``extent``, (size, extent), in 2^-`BITS`; and
    which of them, in the middle, are the ``to`` of the resized image, (size,) bool.

    As `precompute_coeffs` and `normalize_coeffs_8bpc` of Pillow's Resample.c.

    Args:
        length: ``extent`` in float64. box: Pillow's BOX, else BICUBIC.
    """
    at = torch.arange(size, dtype=to.dtype, device=to.device) - ((size - to) / 2).floor()
    inside = (at >= 0) & (at < to)
    scale = length / to
    stretch = scale.clamp_min(1)
    centre = (at + 0.5) * scale
    reach = torch.where(box, 0.5, 2.0) * stretch
    first = (centre - reach + 0.5).trunc().clamp_min(0)[:, None]
    end = torch.minimum((centre + reach + 0.5).trunc(), length)[:, None]
    pixel = torch.arange(extent, dtype=to.dtype, device=to.device)
    gap = (pixel - centre[:, None] + 0.5) * (1 / stretch)
    weight = torch.where(box, ((gap > -0.5) & (gap <= 0.5)).to(to.dtype), _bicubic(gap.abs()))
    weight = torch.where((pixel >= first) & (pixel < end), weight, 0.0)
    total = weight.sum(dim=1, keepdim=True)
    weight = weight / torch.where(total == 0, 1.0, total) * 2**BITS
    return (weight + torch.where(weight < 0, -0.5, 0.5)).trunc(), inside


def _bicubic(x: Tensor) -> Tensor:
    """Pillow's, of a = -0.5, for x >= 0."""
    a = -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _rounded(sums: Tensor) -> Tensor:
    return ((sums + 2 ** (BITS - 1)) * 2.0**-BITS).floor().clamp(0, 255)


def _ground(images: Tensor) -> Tensor:
    """(B, C, 1, 1) float64, the median of the border; see `oltr_ext.data.transforms.ground`."""
    sides = [images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]]
    half = images.shape[2] + images.shape[3]
    order = torch.cat(sides, dim=2).to(torch.int32).sort(dim=2).values
    middle = order[:, :, half - 1] + order[:, :, half]
    return torch.div(middle, 2, rounding_mode="floor").double()[:, :, None, None]


def _cropped(images: Tensor, size: int, resize: Callable[..., Tensor]) -> Tensor:
    """As `v2.Resize` of the short side, and `v2.CenterCrop`."""
    height, width = images.shape[2:]
    side, short = round(size * 256 / 224), torch.sym_min(height, width)
    down, across = side * height // short, side * width // short
    made = resize(images, [down, across], False, None, None)
    for axis, extent in ((2, down), (3, across)):
        made = made.narrow(axis, _half(extent - size), size)
    return made


def _half(n: int | torch.SymInt) -> int | torch.SymInt:
    """round(n / 2), half to even, without asking which."""
    return n // 2 + (n % 2) * (n // 2 % 2)
