"""Folders that come with what is written into them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

__all__ = ["made_folder"]


@contextmanager
def made_folder(folder: Path) -> Iterator[bool]:
    """Make a folder, and those above it, for a block; what it leaves empty of these is removed.

    Yields:
        Whether it was not there.
    """
    missing = list(takewhile(lambda each: not each.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield bool(missing)
    finally:
        for each in missing:
            try:
                each.rmdir()
            except OSError:  # something is in it, as in all above
                break
