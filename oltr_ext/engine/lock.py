"""A run's folder belongs to one process at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from oltr_ext.data.folders import made_folder

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["BusyError", "locked"]

FILE, HOLDER = ".lock", ".lock.holder"
HELD = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
"""What flock says of a file that another process holds."""


class BusyError(RuntimeError):
    """Another process writes into the folder.

    Attributes:
        what: what it does, in words.
    """

    def __init__(self, folder: Path, hint: str) -> None:
        self.what, where = _holder(folder)
        super().__init__(f"{folder} is in use by {self.what}{where}; wait for it{hint}")


@contextmanager
def locked(
    folder: Path, what: str, say: Callable[[str], None] = lambda _: None, *, wait: float = 0
) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for the length of the block.

    The system lets go of it when the process ends, however it ends. On a file system without locks
    nothing is held. Folders that were made for a block that left nothing in them are removed.

    Args:
        what: is done in the block, in words for those who find the folder held.
        say: gets a line where there are no locks.
        wait: seconds to wait for another process to let go.

    Raises:
        BusyError: another process holds it, or another thread of this one.
    """
    with made_folder(folder) as new:
        reason = _no_locks(folder)
        if reason is not None:
            say(f"{folder} has no file locks ({reason}): nothing keeps another run out of it")
        try:
            with ExitStack() as held:
                try:
                    if reason is None:
                        held.enter_context(FileLock(folder / FILE, timeout=wait))
                        held.enter_context(_named(folder / HOLDER, what))
                except Timeout:
                    hint = "" if wait else ", or choose another folder"
                    raise BusyError(folder, hint) from None
                yield
        finally:
            if new and {file.name for file in folder.iterdir()} <= {FILE}:
                (folder / FILE).unlink(missing_ok=True)


@contextmanager
def _named(file: Path, what: str) -> Iterator[None]:
    """Say who holds a lock, in a file of its own: of the lock's some systems give nothing to read,
    and some versions of filelock empty it."""
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    said = {"what": what, "process": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # whoever cannot write here will be told by what it writes
        file.write_text(json.dumps(said), "utf-8")
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


def _holder(folder: Path) -> tuple[str, str]:
    """What the process that holds a folder does, and where it is; as far as it says."""
    try:
        said = json.loads((folder / HOLDER).read_text("utf-8"))
        return said["what"], " (process {process} on {host}, since {since})".format(**said)
    except (OSError, ValueError, KeyError, TypeError):  # it has only begun
        return "another process", ""


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
