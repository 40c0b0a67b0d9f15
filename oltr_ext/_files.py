"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

__all__ = ["write_whole", "written"]


@contextmanager
def written(
    path: Path,
    mode: str = "wb",
    *,
    sync: bool = True,
    several: bool = False,
    before: Path | None = None,
    **how: Any,
) -> Iterator[IO[Any]]:
    """A file to write in a block, which takes the place of `path` at its end.

    At any moment `path` is what it was or all of the new file, and after an error what it was.
    Folders that are missing are made.

    Args:
        mode, how: of `open`.
        sync: whether to wait for the disk, so that a loss of power changes nothing of this.
        several: whether threads or processes may write it at once. Otherwise what is written has a
            fixed name, `.NAME.tmp`, of which a kill leaves one at most.
        before: where to keep the old file; between two renames it alone is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{os.getpid()}-{threading.get_ident()}" if several else ""
    partial = path.with_name(f".{path.name}{own}.tmp")
    try:
        with partial.open(mode, **how) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if before is not None and path.exists():
            os.replace(path, before)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    if sync:
        sync_folder(path.parent)


def write_whole(path: Path, content: bytes, *, sync: bool = True, several: bool = False) -> None:
    """`written`, of what is in memory."""
    with written(path, sync=sync, several=several) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and rename is durable enough
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
