"""Tables as people have them: columns apart by a comma, a semicolon, a tab or a bar."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TextIO

__all__ = ["mark_of", "opened", "write_rows"]

MARKS = (",", ";", "\t", "|")


@contextmanager
def opened(file: Path, errors: str = "strict") -> Iterator[TextIO]:
    """A table to read, of UTF-8 with or without its mark.

    Args:
        errors: of `open`; ``surrogateescape`` keeps what is not UTF-8, as names of files may be.

    Raises:
        FileNotFoundError: no such file. ValueError: not UTF-8.
    """
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    try:
        with file.open(encoding="utf-8-sig", errors=errors, newline="") as table:
            yield table
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


class _Lines:
    """Takes rows that end as Windows has it, and writes them with a line feed alone."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(f"{row.removesuffix(chr(13) + chr(10))}\n")


def write_rows(file: IO[str], rows: Iterable[Iterable[object]]) -> None:
    """Rows of cells apart by commas, each on a line, in a file that translates no line ends.

    A cell with a lone carriage return is quoted, for readers end a row there. Before Python 3.13
    the writer of `csv` does so only where it is among the ends of its lines.
    """
    csv.writer(_Lines(file), lineterminator="\r\n").writerows(rows)


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
