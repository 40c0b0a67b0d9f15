"""A run's folder belongs to one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["BusyError", "locked"]

FILE = ".lock"


class BusyError(RuntimeError):
    """Another process writes into the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for the length of the block.

    The system lets go of it when the process ends, however it ends. On a file system without locks
    nothing is held. A folder that was made for a block that left nothing in it is removed.

    Raises:
        BusyError: another process holds it, or another thread of this one.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(
            f"{folder} is in use by another run; wait for it, or choose another folder"
        ) from None
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()
        if made and [file.name for file in folder.iterdir()] == [FILE]:
            (folder / FILE).unlink()
            folder.rmdir()
