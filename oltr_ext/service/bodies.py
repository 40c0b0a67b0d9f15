"""What the body of a request holds: images, each by itself, or rows of features."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from oltr_ext._words import counted
from oltr_ext.serve.inputs import Reads, pixels_of
from oltr_ext.service.room import Limits, Seat

__all__ = ["Body", "RefusedError", "opened", "read_body", "readable", "rows_of"]

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Of images from strangers: those whose decoders are in wide use, and start no other program."""

CHUNK = 1 << 16  # what is held of a request before its share of the room is taken


class RefusedError(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {k.replace("_", "-"): v for k, v in headers.items()}


class _Form(MultiPartParser):
    """A form of which it is known whether it came whole."""

    whole = False

    def on_end(self) -> None:
        self.whole = True


@dataclass
class Body:
    """Images under their names, or one that holds rows of features."""

    images: list[tuple[str, bytes]]
    rows: bytes | None = None


async def read_body(request: Request, limits: Limits, seat: Seat) -> Body:
    """The body of a request, which takes its bytes and images of the room.

    Raises:
        RefusedError: too large, empty, no multipart or one without its end, or too many images.
        FullError: no room.
    """
    chunks = _within(request, limits, seat)
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        whole = b"".join([chunk async for chunk in chunks])
        if not whole:
            raise RefusedError(400, "expected an image or features as the body, or files in a form")
        is_rows = whole.startswith(npy.MAGIC_PREFIX) or whole.lstrip()[:1] in (b"{", b"[")
        return Body([], whole) if is_rows else Body([("image[0]", whole)])
    try:
        parser = _Form(request.headers, chunks, max_files=limits.images, max_fields=limits.images)
        form = await parser.parse()
    except MultiPartException as error:
        many = error.message.startswith("Too many files")
        message = (
            f"at most {counted(limits.images, 'image')} in one request" if many else error.message
        )
        raise RefusedError(413 if many else 400, message) from None
    except UnicodeError:
        raise RefusedError(400, "charset: expected UTF-8 or another encoding of text") from None
    try:
        if not parser.whole:
            raise RefusedError(400, "the form has no end: it was cut off, or lacks its last line")
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        if not files:
            raise RefusedError(400, "expected images as files of the form, got none")
        seat.take(images=len(files) - 1)
        return Body([(f.filename or f"image[{n}]", await f.read()) for n, f in enumerate(files)])
    finally:
        await form.close()


async def _within(request: Request, limits: Limits, seat: Seat) -> AsyncGenerator[bytes, None]:
    """The body's chunks. What is too much is read to its end, so far as that is not much more, for
    whoever is still sending may not see an answer."""
    told = request.headers.get("content-length", "")
    size = int(told) if told.isdecimal() else 0
    refused: Exception | None = None
    if size > limits.body:
        refused = _too_large(limits)
    else:
        try:
            seat.take(images=1, held=size)
        except Exception as error:
            refused = error
    read = 0
    async for chunk in request.stream():
        read += len(chunk)
        if refused is None and read > limits.body:
            refused = _too_large(limits)
        if refused is None and read > max(size, seat.held):
            try:
                seat.take(held=max(len(chunk), CHUNK))
            except Exception as error:
                refused = error
        if refused is None:
            yield chunk
        elif read > 2 * limits.body:
            break
    if refused is not None:
        raise refused


@cache
def readable() -> tuple[str, ...]:
    """Of `FORMATS` those that this Pillow was built with."""
    Image.init()
    return tuple(each for each in FORMATS if each in Image.OPEN)


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"at most {limits.body:,} bytes in one request")


def opened(name: str, blob: bytes, how: Reads, limits: Limits) -> Any:
    """uint8 pixels (C, H, W) of an image.

    Raises:
        ValueError: what it is that cannot be read.
    """
    there = readable()
    try:
        image = Image.open(io.BytesIO(blob), formats=there)
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: at most {limits.pixels:,} pixels") from None
    except Exception:
        raise ValueError(f"cannot read image {name}: none of {', '.join(there)}") from None
    with image:
        if image.width * image.height > limits.pixels:
            raise ValueError(
                f"{name}: {image.width} x {image.height} pixels, at most {limits.pixels:,}"
            )
        return pixels_of(*how, image, name)


def rows_of(blob: bytes) -> NDArray[Any]:
    """The array of a .npy body, or the ``embeddings`` of a JSON one, whatever it holds.

    Raises:
        ValueError: neither; the message is for who asked.
    """
    if not blob.startswith(npy.MAGIC_PREFIX):
        try:
            found = json.loads(blob)
            if not isinstance(found, dict) or "embeddings" not in found:
                raise ValueError
            return np.asarray(found["embeddings"], np.float64)
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise ValueError('expected JSON {"embeddings": [[...], ...]} of numbers') from None
    try:
        file = io.BytesIO(blob)
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
        # of what is there: NumPy would first make room for whatever the header says
        flat = np.frombuffer(blob, dtype, offset=file.tell())
        return flat.reshape(shape, order="F" if fortran else "C")
    except Exception:
        raise ValueError("expected a .npy body of floats (N, D)") from None
