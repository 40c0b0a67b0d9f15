"""A graph that takes images of any size makes the pixels that the model is trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from oltr_ext.data import icon_image
from oltr_ext.data.transforms import eval_transform
from oltr_ext.serve.any_size import AnySize

SIDES = (1, 2, 3, 16, 31, 32, 33, 36, 63, 64, 65, 96, 100, 200)
AXES = {axis: torch.export.Dim(name) for axis, name in ((0, "rows"), (2, "height"), (3, "width"))}


def pictures(count):
    """Of all kinds of sizes: noise, ink on paper, and smooth ones."""
    draw = np.random.default_rng(0)
    for n in range(count):
        sides = [*SIDES, *draw.integers(1, 250, len(SIDES))]
        height, width = (int(side) for side in draw.choice(sides, 2))
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        if n % 3 == 1:
            pixels = np.where(pixels > 60, 255, 0).astype(np.uint8)
        if n % 3 == 2:
            pixels = np.full_like(pixels, 40)
            pixels[height // 4 : height // 2] += draw.integers(0, 200, 3, dtype=np.uint8)
        yield pixels


def program(made, channels):
    example = torch.zeros(2, channels, 37, 53, dtype=torch.uint8)
    return torch.export.export(made, (example,), dynamic_shapes=(AXES,)).module()


@pytest.mark.parametrize("fit", ["pad", "resize", "crop", "crop, bicubic"])
def test_colour(fit):
    fit, _, smooth = fit.partition(", ")
    how = (32, fit, smooth or "bilinear")
    made, want = program(AnySize(*how), 3), eval_transform(*how)
    seen = 0
    for pixels in pictures(120):
        height, width, _ = pixels.shape
        if fit == "crop" and max(height, width) > 50 * min(height, width):
            continue
        given = torch.from_numpy(pixels).permute(2, 0, 1)
        found = made(torch.stack([given, given.flip(0)]))
        one = want(Image.fromarray(pixels))
        assert torch.equal(found[0], one) and torch.equal(found[1], one.flip(0)), (height, width)
        seen += height > 2 * width
    assert seen > 5  # where Pillow turns the order round


@pytest.mark.parametrize("invert", [True, False])
def test_grey_with_ink(invert):
    made = program(AnySize(32, "pad", invert=invert), 1)
    light = 0
    for pixels in pictures(60):
        grey = pixels[:, :, 0]
        want = torch.from_numpy(icon_image(Image.fromarray(grey), 32, invert=invert))
        assert torch.equal(made(torch.from_numpy(grey)[None, None])[0, 0], want), grey.shape
        light += bool(np.median(grey) > 127)
    assert 5 < light < 55
