"""Tables as people have them: columns apart by a comma, a semicolon, a tab or a bar."""

from __future__ import annotations

import csv
from typing import TextIO

__all__ = ["mark_of"]

MARKS = (",", ";", "\t", "|")


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
