"""What an image file holds: its hash, whether it can be read; and a place for images that come as
bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from oltr_ext._files import write_whole
from oltr_ext.data.decode import ImageError, read_rgb

__all__ = ["Look", "Seen", "keep_bytes", "look_at"]

CHUNK = 1 << 20
WHOLE = 32 << 20
"""Bytes of a file up to which it is read once, for its hash and to be decoded."""

SUFFIX = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


@dataclass(frozen=True, slots=True)
class Look:
    """What was found in a file.

    Args:
        sha256: of its bytes, hexadecimal; empty where they cannot be read.
        suffix: of a file of this format, with its dot; empty where it is no image.
        pixels: width times height.
        problem: why it cannot be used; None where it can.
    """

    sha256: str
    suffix: str = ""
    pixels: int = 0
    problem: str | None = None
    whole: bool = True  # not its head alone


def look_at(content: Path | bytes, *, decode: bool = True) -> Look:
    """Hash a file, and decode it whole, or with `decode` False its head alone."""
    try:
        if isinstance(content, Path) and content.stat().st_size <= WHOLE:
            content = content.read_bytes()
        digest = _sha256(content)
    except OSError as error:
        return _unread(error)
    source = content if isinstance(content, Path) else io.BytesIO(content)
    suffix, pixels = "", 0
    try:
        with Image.open(source) as image:
            kind = image.format or ""
            suffix = SUFFIX.get(kind, "." + re.sub(r"\W", "", kind).lower())
            pixels = image.size[0] * image.size[1]
            if decode:
                read_rgb(image)
    except UnidentifiedImageError:
        return Look(digest, problem="no image, or of an unknown format")
    except ImageError as error:
        return Look(digest, suffix, pixels, str(error))
    except Exception as error:  # each format's reader raises its own
        if isinstance(error, OSError) and error.errno:  # of the system, not of the image
            return _unread(error)
        text = " ".join(str(error).split()) or type(error).__name__
        return Look(digest, suffix, pixels, text)
    return Look(digest, suffix, pixels, whole=decode)


def _unread(error: OSError) -> Look:
    """Without a hash: another time it may be read."""
    return Look("", problem=error.strerror or type(error).__name__)


def _sha256(content: Path | bytes) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def keep_bytes(folder: Path, content: bytes, look: Look) -> str:
    """Write an image under the name of its content, whole or not at all; its path in `folder`.

    The same content has one file, whoever else is writing it.
    """
    path = f"{look.sha256[:2]}/{look.sha256[2:34]}{look.suffix}"
    file = folder / path
    if not (file.is_file() and file.stat().st_size == len(content)):
        write_whole(file, content, sync=False, several=True)
    return path


class Seen:
    """What was found in files before, by a name that changes with them, so that an import that was
    killed need not look again."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known = dict(self._read())
        self.new: list[str] = []

    def _read(self) -> Iterator[tuple[str, Look]]:
        if not self.file.is_file():
            return
        for line in self.file.read_text("utf-8").split("\n"):
            try:
                key, *values = json.loads(line)
                yield key, Look(*values)
            except (ValueError, TypeError):  # the last line of a process that was killed
                continue

    def add(self, key: str, look: Look) -> None:
        if look.sha256 and self.known.get(key) != look:
            values = (look.sha256, look.suffix, look.pixels, look.problem, look.whole)
            self.new.append(json.dumps([key, *values]))

    def flush(self) -> None:
        if self.new:
            with self.file.open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{line}" for line in self.new))  # after half a line, if any
            self.new = []


def key_of(content: Path) -> str | None:
    """Name of a file as it is now; None where it is none."""
    try:
        found = content.stat()
    except OSError:
        return None
    return json.dumps([os.fspath(content), found.st_size, found.st_mtime_ns])
