"""Image files to images of eight bits a channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["DECODE_ERRORS", "read_image"]

DECODE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What PIL raises on files that are damaged, or no images, or too large."""


def read_image(path: Path) -> Image.Image:
    """The whole image, of any mode with at most eight bits a channel.

    Sixteen bits of grey keep their upper eight, where PIL's own conversion cuts off what is over
    255. EXIF orientation is ignored, as by torchvision's loaders and so in the published results.

    Raises:
        one of `DECODE_ERRORS`; ValueError for 32-bit pixels, whose range nobody knows.
    """
    with Image.open(path) as image:
        image.load()
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}); expected 8 or 16")
    return image
