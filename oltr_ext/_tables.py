"""Tables as people have them: columns apart by a comma, a semicolon, a tab or a bar."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

__all__ = ["mark_of", "opened"]

MARKS = (",", ";", "\t", "|")


@contextmanager
def opened(file: Path) -> Iterator[TextIO]:
    """A table to read, of UTF-8 with or without its mark.

    Raises:
        FileNotFoundError: no such file. ValueError: not UTF-8.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    try:
        with file.open(encoding="utf-8-sig", newline="") as table:
            yield table
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


def mark_of(table: TextIO) -> str:
    """Which of `MARKS` gives the first line most columns; the file is at its start again."""
    head = table.readline()
    table.seek(0)

    def columns(mark: str) -> int:
        try:
            return len(next(csv.reader([head], delimiter=mark)))
        except (csv.Error, StopIteration):
            return 0

    return max(MARKS, key=columns)
