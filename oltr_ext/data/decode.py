"""Image files to images of eight bits a channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["ImageError", "image_endings", "on_white", "read_image", "read_rgb"]


class ImageError(ValueError):
    """A file that is damaged, or no image, or none that can be used; the message says why, in one
    line, and leaves it to the caller to name the file."""


def image_endings() -> frozenset[str]:
    """Of files that hold images which can be read: with their dot, in lower case."""
    known = Image.registered_extensions()  # with which `Image.OPEN` is whole
    read = {*Image.OPEN, "MPO"}  # the reader of JPEG opens that
    return frozenset(end for end, kind in known.items() if kind in read)


def read_image(source: Path | Image.Image) -> Image.Image:
    """The whole image of a file, or one that PIL holds, upright, of any mode with at most eight
    bits a channel.

    Sixteen bits of grey keep their upper eight, where PIL's own conversion cuts off what is over
    255. It is turned as its EXIF orientation says; an orientation that cannot be read says nothing.

    Raises:
        ImageError: whatever PIL's readers raise, of which each format has its own; pixels of 32
            bits, whose range nobody knows.
    """
    try:
        if isinstance(source, Image.Image):
            source.load()
            image = source
        else:
            with Image.open(source) as opened:
                opened.load()
                image = opened
        if 0 in image.size:
            raise ValueError(f"{image.width} x {image.height} pixels: there is nothing to see")
        deep = image.mode == "I" and image.format == "PPM"  # PGM of 16 bits, in PIL's 32
        if image.mode in ("I", "F") and not deep:
            raise ValueError(f"pixels of 32 bits (mode {image.mode}); expected 8 or 16")
        image = _upright(image)
        if deep or image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image
    except Exception as error:
        raise ImageError(_reason(error, source)) from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF: the pixels are good all the same
        return image


def _reason(error: Exception, source: Path | Image.Image) -> str:
    text = " ".join(str(error).split()).replace(f" {str(source)!r}", "")
    meant = isinstance(error, OSError | SyntaxError | ValueError | Image.DecompressionBombError)
    return text if text and meant else f"{type(error).__name__} in its decoder: {text}".rstrip(": ")


def read_rgb(source: Path | Image.Image) -> Image.Image:
    """`read_image` in RGB, transparency laid on white.

    Raises:
        ImageError: see `read_image`.
    """
    image = read_image(source)
    try:
        return on_white(image).convert("RGB")
    except Exception as error:  # some formats decode no sooner
        raise ImageError(_reason(error, source)) from None


def on_white(image: Image.Image) -> Image.Image:
    """What is transparent in an image of any mode laid on white; as it is where nothing may be."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
