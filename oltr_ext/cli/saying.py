"""Lines to the terminal while a command works: at once, and above a progress bar where there is
one."""

from __future__ import annotations

import sys
from typing import TextIO

__all__ = ["say", "tell"]


def say(line: str) -> None:
    """What comes out of a command."""
    _write(line, sys.stdout)


def tell(line: str) -> None:
    """How it goes, beside what comes out of it."""
    _write(line, sys.stderr)


def _write(line: str, to: TextIO) -> None:
    from tqdm import tqdm

    tqdm.write(line, file=to)
    to.flush()
