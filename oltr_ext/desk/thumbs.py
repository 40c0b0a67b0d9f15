"""Small pictures of images, made once. What is shown is never the file itself, but its pixels."""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path

from PIL import Image

from oltr_ext._files import write_whole
from oltr_ext.data import ImageError, read_rgb
from oltr_ext.desk.folder import Folder, NotThereError

__all__ = ["LARGE", "SMALL", "Thumbs"]

SMALL, LARGE = 128, 640
"""Pixels of the longer side."""
SUFFIX = ".jpg"


class Thumbs:
    """A cache on the disk, by image.

    Args:
        folder: of the cache.
        images: where the images are.
    """

    def __init__(self, folder: Path, images: Folder) -> None:
        self.folder, self._images = folder, images
        self._room = threading.Semaphore(2)  # large images take memory to decode

    def small(self, image: str, paths: list[str]) -> bytes:
        """JPEG of at most `SMALL` pixels; of an image that has gone too, if it was made before.

        Raises:
            NotThereError: none of the paths holds the image now, or it cannot be decoded.
        """
        file = self.folder / image[:2] / f"{image}{SUFFIX}"
        try:
            return file.read_bytes()
        except FileNotFoundError:
            made = self._made(image, paths, SMALL)
        write_whole(file, made, sync=False, several=True)
        return made

    def large(self, image: str, paths: list[str]) -> bytes:
        """Likewise of at most `LARGE` pixels; not kept."""
        return self._made(image, paths, LARGE)

    def _made(self, image: str, paths: list[str], size: int) -> bytes:
        for path in paths:
            try:
                held = self._images.contents(path, image)
            except (OSError, NotThereError):
                continue
            with self._room:
                return _jpeg(held, size)
        raise NotThereError("the image has gone, or was changed since it was read")


def _jpeg(held: bytes, size: int) -> bytes:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are read all the same
            opened = Image.open(io.BytesIO(held))
            opened.draft("RGB", (2 * size, 2 * size))  # a JPEG is decoded no larger than needed
            picture = read_rgb(opened)
    except ImageError as error:
        raise NotThereError(str(error)) from None
    except Exception as error:  # each format has its own
        raise NotThereError(f"{type(error).__name__}: {error}") from None
    picture.thumbnail((size, size), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    return out.getvalue()
