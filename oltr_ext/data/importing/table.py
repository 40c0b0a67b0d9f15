"""Images named in a table: CSV, or with any other mark between its columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from oltr_ext._tables import mark_of, opened
from oltr_ext.data.importing.records import Notes, Record, split_of

__all__ = ["LABELS", "PATHS", "column_of", "read_table", "unused_labels"]

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
LABELS = ("class", "class_name", "label", "category", "species", "scientific_name", "name")
"""Columns that are taken unless another is named: the first of these that is there; of labels the
first that tells classes apart by name."""
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?", re.ASCII)


def read_table(
    file: Path,
    notes: Notes,
    *,
    root: Path | None = None,
    path: str | None = None,
    label: str | None = None,
    observation: str | None = None,
    group: str | None = None,
    split: str | None = None,
    suffix: str = "",
    delimiter: str | None = None,
) -> Iterator[Record]:
    """A record for each row, in order.

    Args:
        file: UTF-8, with or without a BOM; its first row names the columns.
        root: what paths are relative to; None is the file's folder.
        path, label: columns; None takes the first of `PATHS`, and of `LABELS` the first that has
            several values, some of them of two images, not all of them numbers, else of several; a
            note names the others.
        observation: column; None takes one of that name. group, split: columns, if any; of those
            of these names that are not taken, a note is made.
        suffix: put after each path, for tables of names without one: ``.jpg``.
        delimiter: None takes that of `oltr_ext._tables.MARKS` which gives the head most columns.

    Raises:
        FileNotFoundError: no such file. ValueError: not UTF-8; a column that is not there (those
            that are get named) or twice; a split that is none; a row that cannot be read.
    """
    base = file.parent if root is None else root
    try:
        with opened(file) as lines:
            rows = csv.reader(lines, delimiter=delimiter or mark_of(lines), strict=True)
            head = [name.strip() for name in next(rows, [])]
            if label is None:
                label, others = _label_of(file, head, rows.dialect.delimiter)
                if others:
                    notes.say(unused_labels(file.name, others))
            where = {
                "path": column_of(head, path, PATHS, "--path-column", str(file)),
                "label": column_of(head, label, LABELS, "--label-column", str(file)),
            }
            lower = [name.casefold() for name in head]
            if observation is None and "observation" in lower:
                observation = "observation"
            for what, name in (("observation", observation), ("group", group), ("split", split)):
                if name is not None:
                    where[what] = column_of(head, name, (), f"--{what}-column", str(file))
                elif what in lower:
                    notes.say(f"{file.name}: {what} is not used: --{what}-column {what}")
            said = ", ".join(f"{what} is {head[n]}" for what, n in where.items())
            notes.say(f"{file.name}: {said}")
            for row in rows:
                if not any(map(str.strip, row)):
                    continue
                line = f"line {rows.line_num}"
                if len(row) != len(head):
                    reason = "fewer" if len(row) < len(head) else "more"
                    notes.add(f"rows of {reason} columns than the head", line)
                    continue
                values = {what: row[n].strip() for what, n in where.items()}
                if not values["path"]:
                    notes.add("rows without a path", line)
                    continue
                yield _record(values, base, suffix, f"{file}:{rows.line_num}")
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: {error}") from None


def _label_of(file: Path, head: Sequence[str], mark: str) -> tuple[str | None, list[str]]:
    """The column of `LABELS` to take where there are several, and the others."""
    lower = [name.casefold() for name in head]
    known = [each for each in LABELS if lower.count(each) == 1]
    if len(known) < 2:
        return None, []
    places = {each: lower.index(each) for each in known}
    values: dict[str, set[str]] = {each: set() for each in known}
    several, named, shared = set[str](), set[str](), set[str]()
    with opened(file) as lines, suppress(csv.Error):  # which whoever reads all of it will meet
        rows = csv.reader(lines, delimiter=mark)
        next(rows)
        for row in rows:
            for each, n in places.items() if len(row) == len(head) else ():
                value = row[n].strip()
                if not value:
                    continue
                if value in values[each]:
                    shared.add(each)
                elif each not in several & shared:
                    values[each].add(value)
                if len(values[each]) > 1:
                    several.add(each)
                if not NUMBER.fullmatch(value):
                    named.add(each)
            if known[0] in several & named & shared:
                break
    # what no two images share is a name of theirs and not of a class
    best = max(known, key=lambda each: (each in several & shared, each in several & named))
    return head[places[best]], [head[places[each]] for each in known if each != best]


def _record(values: dict[str, str], base: Path, suffix: str, line: str) -> Record:
    word = values.get("split", "")
    if word and split_of(word) is None:
        raise ValueError(f"{line}: expected a split of train, val or test, got {word!r}")
    name = values["path"] + suffix
    image = base / name
    if "\\" in name and not image.exists():  # written on Windows
        image = base / name.replace("\\", "/")
    return Record(
        name,
        values["label"] or None,
        image,
        values.get("observation") or None,
        values.get("group") or None,
        split_of(word) if word else None,
    )


def unused_labels(name: str, others: Sequence[str]) -> str:
    """What to say of columns of `LABELS` that are not taken."""
    verb = "is" if len(others) == 1 else "are"
    return f"{name}: {', '.join(others)} {verb} not used: --label-column {others[0]}"


def column_of(
    head: Sequence[str], name: str | None, usual: Sequence[str], option: str, where: str
) -> int:
    """The place of a column, by its name or, where that is None, by what it usually is called.

    Raises:
        ValueError: it is not there, or twice.
    """
    lower = [each.casefold() for each in head]
    known = [each for each in usual if each in lower] if name is None else [name.casefold()]
    # a name as it is written goes before one of other capitals
    places = [n for n, each in enumerate(head) if each == name]
    places = places or [n for n, each in enumerate(lower) if known and each == known[0]]
    if len(places) == 1:
        return places[0]
    wanted = name or f"one of {', '.join(usual)}"
    problem = f"column {wanted} is there {len(places)} times" if places else f"no column {wanted}"
    raise ValueError(
        f"{where}: {problem}; there are {', '.join(head) or 'none'}: say which by {option}"
    )
