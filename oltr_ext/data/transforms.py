"""Image transforms: the paper's for photos, and a batched augmentation for small icons."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from oltr_ext.data.samplers import mix

__all__ = [
    "Augment",
    "icon_image",
    "icon_tensor",
    "imagenet_test",
    "imagenet_train",
    "photo_tensor",
]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ImageTransform = Callable[[Image.Image], Tensor]


def imagenet_train(size: int = 224) -> ImageTransform:
    """RandomResizedCrop, flip, ColorJitter(.4, .4, .4, 0), ImageNet mean and std."""
    return _compose(
        v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4, 0)
    )


def imagenet_test(size: int = 224) -> ImageTransform:
    """Resize the short side to 256/224 of `size`, centre crop, ImageNet mean and std."""
    return _compose(v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size))


def _compose(*steps: ImageTransform) -> ImageTransform:
    """The steps on a uint8 tensor, faster than on a PIL image; then float32 with mean and std."""
    return v2.Compose([v2.PILToTensor(), *steps, photo_tensor])


def photo_tensor(images: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> float32 with ImageNet mean and std."""
    images = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(images, list(MEAN), list(STD), inplace=True)


def icon_image(image: Image.Image, size: int = 32, *, invert: bool = True) -> NDArray[np.uint8]:
    """Any image as an icon of the demo set: (size, size) uint8, bright ink on a dark ground.

    Transparency is laid on white; the ground is what the border shows, inverted when light, unless
    `invert` is False.
    """
    if image.mode != "L" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("L")
    side = max(image.size)
    grey = np.asarray(image)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    ground = int(np.median(border))
    square = Image.new("L", (side, side), ground)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    if side != size:
        square = square.resize((size, size), Image.Resampling.BOX if side > size else None)
    pixels = np.array(square, np.uint8)
    return 255 - pixels if invert and ground > 127 else pixels


def icon_tensor(images: Tensor) -> Tensor:
    """uint8 (B, 1, H, W) -> float32 in [0, 1]."""
    return images.to(torch.float32) / 255


@dataclass(frozen=True)
class Augment:
    """Augmentation of float images (B, C, H, W), each by a pure function of its key.

    Args:
        shift: largest move along each axis, in pixels.
        scale: zoom between 1/(1+scale) and 1+scale, uniform in its logarithm.
        stretch: the same, but with inverse effect on the two axes.
        rotate: largest turn, in degrees.
        flip: probability of a left-right flip.
        erase: probability of blanking a rectangle of 1/4 to 1/2 of each side.
        ink: brightness between 1/(1+ink) and 1+ink.
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
        draw = mix(keys[:, None], np.arange(12))
        u = torch.from_numpy((draw >> np.uint64(40)).astype(np.float32) * 2.0**-24)
        u = u.to(images.device)
        height, width = images.shape[2:]
        out = images
        if self.shift or self.scale or self.stretch or self.rotate or self.flip:
            zoom = (math.log1p(self.scale) * (2 * u[:, 0] - 1)).exp()
            aspect = (math.log1p(self.stretch) * (2 * u[:, 1] - 1)).exp()
            angle = math.radians(self.rotate) * (2 * u[:, 2] - 1)
            mirror = torch.where(u[:, 3] < self.flip, -1.0, 1.0)
            move = self.shift * (2 * u[:, 4:6] - 1)
            cos, sin = angle.cos() / zoom, angle.sin() / zoom
            theta = torch.stack(
                [
                    torch.stack([mirror * cos / aspect, -sin, 2 * move[:, 0] / width], 1),
                    torch.stack([mirror * sin, cos * aspect, 2 * move[:, 1] / height], 1),
                ],
                dim=1,
            )
            grid = F.affine_grid(theta, list(images.shape), align_corners=False)
            out = F.grid_sample(out, grid, align_corners=False)
        if self.erase:
            sides = 0.25 + 0.25 * u[:, 6:8]
            corner = u[:, 8:10] * (1 - sides)
            rows = (torch.arange(height, device=u.device) + 0.5) / height
            cols = (torch.arange(width, device=u.device) + 0.5) / width
            inside_y = (rows >= corner[:, :1]) & (rows < corner[:, :1] + sides[:, :1])
            inside_x = (cols >= corner[:, 1:]) & (cols < corner[:, 1:] + sides[:, 1:])
            chosen = (u[:, 10] < self.erase)[:, None, None]
            hole = chosen & inside_y[:, :, None] & inside_x[:, None, :]
            out = out.masked_fill(hole[:, None], 0.0)
        if self.ink:
            out = out * (math.log1p(self.ink) * (2 * u[:, 11] - 1)).exp()[:, None, None, None]
        return out
