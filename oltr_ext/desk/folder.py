"""The images of a folder, by the hash of their contents; nothing outside it is ever opened."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from oltr_ext.desk.store import KnownFile
from oltr_ext.serve.discover_parts import FOLDER as PARTS

__all__ = ["Contents", "Folder", "NotThereError"]

CHUNK = 1 << 20


THUMBS = "thumbs"
MADE = (THUMBS, PARTS)
"""Folders of images and features that a desk makes."""


class NotThereError(ValueError):
    """A file that is not, or no more, what it was; the message says why, and names no path."""


@dataclass
class Contents:
    """What a folder holds.

    Attributes:
        paths: by image, in order of the first of its paths, all that hold it, as text relative to
            the folder. bad: what cannot be an image of it, and why.
        files: all that were read, as they were.
    """

    paths: dict[str, list[str]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, KnownFile] = field(default_factory=dict)


class Folder:
    """A folder of images.

    Args:
        without: a folder that may be in it, whose images are not of it.

    Raises:
        FileNotFoundError: it is none.
    """

    def __init__(self, root: Path, *, without: Path | None = None) -> None:
        if not root.is_dir():
            raise FileNotFoundError(f"desk: no folder {root}")
        self.root = root.resolve()
        made = None if without is None else str(without.resolve())
        self._without = {made}
        if made == str(self.root):  # then of what lies in it, what a desk makes
            self._without = {os.path.join(made, name) for name in MADE}

    def read(
        self,
        endings: frozenset[str],
        known: Mapping[str, KnownFile],
        step: Callable[[int], None] = lambda _: None,
    ) -> Contents:
        """Every file with one of the endings; hidden ones are passed over.

        Args:
            known: files whose contents need not be read again where size and time are the same.
            step: told how many more files were looked at.
        """
        found = Contents()
        for path in self._walk(endings):
            try:
                with self._open(path) as file:
                    at = os.fstat(file.fileno())
                    before = known.get(path)
                    if before is None or before[:2] != (at.st_size, at.st_mtime_ns):
                        before = KnownFile(at.st_size, at.st_mtime_ns, _hash(file))
            except (OSError, NotThereError) as error:
                found.bad.append((path, getattr(error, "strerror", None) or str(error)))
            else:
                found.files[path] = before
                found.paths.setdefault(before.hash, []).append(path)
            step(1)
        return found

    def contents(self, path: str, image: str) -> bytes:
        """The bytes of a file.

        Raises:
            NotThereError: it is not `image` any more, or leads outside. OSError: it has gone.
        """
        with self._open(path) as file:
            held = file.read()
        if hashlib.blake2b(held, digest_size=16).hexdigest() != image:
            raise NotThereError("changed since it was read")
        return held

    def _walk(self, endings: frozenset[str]) -> Iterator[str]:
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and os.path.join(folder, name) not in self._without
            )
            for name in sorted(files):
                if not name.startswith(".") and Path(name).suffix.lower() in endings:
                    path = os.path.relpath(os.path.join(folder, name), self.root)
                    yield path.replace(os.sep, "/")

    def _open(self, path: str) -> BufferedReader:
        """A regular file in the folder, wherever a link in it leads."""
        try:
            resolved = (self.root / path).resolve(strict=True)
        except RuntimeError:  # a link to itself, before Python 3.13
            raise NotThereError("a link that leads nowhere") from None
        if not resolved.is_relative_to(self.root):
            raise NotThereError("a link that leads out of the folder")
        # a pipe would keep whoever opens it waiting
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(resolved, flags | getattr(os, "O_BINARY", 0)), "rb")
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise NotThereError("no regular file")
        return file


def _hash(file: BufferedReader) -> str:
    digest = hashlib.blake2b(digest_size=16)
    while part := file.read(CHUNK):
        digest.update(part)
    return digest.hexdigest()
