"""From a decoded image to square uint8 pixels, and from those to what a network is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from oltr_ext._pixels import IMAGENET_MEAN, IMAGENET_STD, Interpolation
from oltr_ext.data.augment import Augment
from oltr_ext.data.decode import ImageError, on_white

__all__ = [
    "Fit",
    "Interpolation",
    "Policy",
    "Recipe",
    "eval_transform",
    "icon_image",
    "network_input",
    "square",
    "train_transform",
]

Fit = Literal["crop", "pad", "resize"]
Policy = Literal["none", "randaugment", "trivialaugment", "augmix"]
Picture = Callable[[Image.Image], Tensor]

LONGEST = 50
"""Images that are more times as long as wide are not cropped to a square: resizing their short
side first would make up to gigabytes of nearly nothing."""


@dataclass(frozen=True)
class Recipe:
    """How an image becomes a square, and what is drawn at random for it in training.

    Args:
        fit: `crop` takes the middle: the short side resized to 256/224 of the square's, then cut;
            `pad` the whole, on the ground that its border shows; `resize` the whole, distorted.
        crop: instead of `fit`'s crop, a random part of the image of at least this share of its
            area, and of at most 4:3, resized to the square; of the whole for other fits. 1: none.
        flip: probability of a left-right flip.
        jitter: brightness, contrast and saturation each between 1 - jitter and 1 + jitter.
        policy: one of torchvision's, with its own defaults.
        augment: what comes after these, on batches.
    """

    fit: Fit = "crop"
    crop: float = 1.0
    flip: float = 0.0
    jitter: float = 0.0
    policy: Policy = "none"
    augment: Augment = field(default_factory=Augment)


def eval_transform(
    size: int = 224, fit: Fit = "crop", interpolation: Interpolation = "bilinear"
) -> Picture:
    """PIL image (RGB) -> uint8 (3, size, size), as validation, test and prediction see it.

    The result raises `ImageError` for an image too long to be cropped.
    """
    return v2.Compose(_fitted(size, fit, interpolation))


def train_transform(
    size: int, recipe: Recipe, interpolation: Interpolation = "bilinear"
) -> Picture:
    """The same for training, up to `recipe.augment`; draws from torch's generator.

    The result raises `ImageError` for an image too long to be cropped.

    Raises:
        ValueError: no such interpolation, where `recipe.crop` is below 1.
    """
    steps = _fitted(size, recipe.fit, interpolation)
    if recipe.crop < 1:
        mode = v2.InterpolationMode(interpolation)
        cut = v2.RandomResizedCrop(size, scale=(recipe.crop, 1.0), interpolation=mode)
        steps = [_not_too_long, v2.PILToTensor(), cut] if recipe.fit == "crop" else [*steps, cut]
    if recipe.flip:
        steps.append(v2.RandomHorizontalFlip(recipe.flip))
    if recipe.jitter:
        steps.append(v2.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter, 0))
    if recipe.policy != "none":
        made = {
            "randaugment": v2.RandAugment,
            "trivialaugment": v2.TrivialAugmentWide,
            "augmix": v2.AugMix,
        }[recipe.policy]
        steps.append(made(interpolation=v2.InterpolationMode.BILINEAR))
    return v2.Compose(steps)


def _fitted(size: int, fit: Fit, interpolation: Interpolation) -> list[Callable[..., object]]:
    """Steps on uint8 tensors where they cut, which is faster than on PIL images."""
    if fit == "crop":
        resize = v2.Resize(round(size * 256 / 224), v2.InterpolationMode(interpolation))
        return [_not_too_long, v2.PILToTensor(), resize, v2.CenterCrop(size)]
    return [partial(square, size=size, fit=fit), v2.PILToTensor()]


def _not_too_long(image: Image.Image) -> Image.Image:
    if max(image.size) > LONGEST * min(image.size):
        raise ImageError(
            f"{image.width} x {image.height} pixels, more than {LONGEST} times as long as wide, "
            "are too many to be resized and cropped"
        )
    return image


def square(image: Image.Image, size: int, fit: Fit = "pad") -> Image.Image:
    """All of an image of mode L or RGB, (size, size): padded with its `ground`, or distorted.

    Args:
        fit: `pad` or `resize`.
    """
    to = (size, size)
    if fit == "pad":
        share = size / max(image.size)
        to = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    made = image
    if to != image.size:
        shrunk = to[0] <= image.width and to[1] <= image.height
        kind = Image.Resampling.BOX if shrunk else Image.Resampling.BICUBIC
        made = image.resize(to, kind)
    if to == (size, size):
        return made
    whole = Image.new(image.mode, (size, size), ground(image))
    whole.paste(made, ((size - to[0]) // 2, (size - to[1]) // 2))
    return whole


def ground(image: Image.Image) -> int | tuple[int, ...]:
    """Median of the border's pixels, for each channel."""
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    found = np.median(border, axis=0).astype(int)
    return int(found) if found.ndim == 0 else tuple(found.tolist())


def icon_image(image: Image.Image, size: int = 32, *, invert: bool = True) -> NDArray[np.uint8]:
    """Any image as an icon of the demo set: (size, size) uint8, bright ink on a dark ground.

    Transparency is laid on white; the ground is what the border shows, inverted when light, unless
    `invert` is False. An image of any mode that PIL converts to grey will do.
    """
    grey = on_white(image).convert("L")
    pixels = np.array(square(grey, size), np.uint8)
    light = ground(grey)
    assert isinstance(light, int)
    return 255 - pixels if invert and light > 127 else pixels


def network_input(
    images: Tensor, augment: Augment | None = None, draws: NDArray[np.uint64] | None = None
) -> Tensor:
    """What a network is fed, made of a batch on its own device.

    Args:
        images: uint8 (B, 1, H, W) grey or (B, 3, H, W) colour, or floats, which stay as they are.
        augment, draws: with both, the pixels are augmented, each image by its own of draws (B,).

    Returns:
        float32: grey in [0, 1], colour with ImageNet's mean and std.
    """
    if images.is_floating_point():
        return images
    grey = images.shape[1] == 1
    scaled = images.to(torch.float32) / 255
    if augment is not None and draws is not None:
        scaled = augment(scaled, draws)
    if grey:
        return scaled
    return v2.functional.normalize(scaled, [*IMAGENET_MEAN], [*IMAGENET_STD], inplace=True)
