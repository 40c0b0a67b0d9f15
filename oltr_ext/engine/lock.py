"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["BusyError", "locked"]

FILE = ".lock"
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
"""What flock says of a file that another process holds."""


class BusyError(RuntimeError):
    """Another process writes into the folder."""


@contextmanager
def locked(
    folder: Path, say: Callable[[str], None] = lambda _: None, *, wait: float = 0
) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for the length of the block.

    The system lets go of it when the process ends, however it ends. On a file system without locks
    nothing is held. A folder that was made for a block that left nothing in it is removed.

    Args:
        say: gets a line where there are no locks.
        wait: seconds to wait for another process to let go.

    Raises:
        BusyError: another process holds it, or another thread of this one.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    reason = _no_locks(folder)
    if reason is not None:
        say(f"{folder} has no file locks ({reason}): nothing keeps another run out of it")
    try:
        with ExitStack() as held:
            try:
                if reason is None:
                    held.enter_context(FileLock(folder / FILE, timeout=wait))
            except Timeout:
                raise BusyError(
                    f"{folder} is in use by another run; wait for it, or choose another folder"
                ) from None
            yield
    finally:
        if made and {file.name for file in folder.iterdir()} <= {FILE}:
            (folder / FILE).unlink(missing_ok=True)
            folder.rmdir()


def _no_locks(folder: Path) -> str | None:
    """Why there are no locks in a folder, as on NFS without a lock daemon; None where there are.

    Asked of the system itself: filelock takes such an error for a lock that is held in its version
    3, and passes on another one, or makes do with a file that a kill leaves behind, in version 4.
    """
    if fcntl is None:
        return None
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in HELD else str(error.strerror)
    return None
