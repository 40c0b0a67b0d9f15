"""Folders that come with what is written into them."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["made_folder", "scratch_folder"]


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


@contextmanager
def scratch_folder(file: Path) -> Iterator[Path]:
    """A hidden folder beside a file, to make it in; removed after the block, and those that killed
    processes left before it. The system tells these by their locks, which it has let go of."""
    prefix = f".{file.name}.partial-"
    if fcntl is not None:
        for left in glob.glob(glob.escape(prefix) + "*", root_dir=file.parent):
            with suppress(OSError):  # it is in use, or there are no locks
                handle = os.open(file.parent / left, os.O_RDONLY)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(file.parent / left, ignore_errors=True)
                finally:
                    os.close(handle)
    folder, held = _locked_scratch(file.parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _locked_scratch(parent: Path, prefix: str) -> tuple[Path, int | None]:
    """A new folder and the handle that holds it, None where there are no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        if fcntl is None:
            return folder, None
        with suppress(FileNotFoundError):  # another process took it for one that was left
            handle = os.open(folder, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.exists():
                return folder, handle
            os.close(handle)
