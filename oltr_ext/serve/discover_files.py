"""What `discover` writes: a list to name, and a page that shows what is to be named."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oltr_ext._files import written
from oltr_ext._tables import mark_of, write_rows
from oltr_ext._words import counted
from oltr_ext.data import ImageError, read_rgb
from oltr_ext.report import png_uri, write_groups
from oltr_ext.serve.inputs import Picture, pil_image
from oltr_ext.serve.trained import Trained

if TYPE_CHECKING:
    from oltr_ext.serve.discover import Discovery

__all__ = ["CSV", "PAGE", "Given", "Pictures", "read_given", "write"]

CSV, PAGE, BEFORE = "groups.csv", "groups.html", "groups_before.csv"
COLUMNS = ("path", "group", "sure", "name")
SHOWN, EACH, ODD, BAD = 200, 12, 60, 100
"""Groups and images of each on the page, odd ones, and lines on what could not be read."""
SIZE = 72

Pictures = Callable[[int], Picture | None]
"""The image of a row of the discovery."""


@dataclass
class Given:
    """What a person has written beside paths.

    Attributes:
        columns: ``name``, and those that a person added.
        rows: by path, the cells of these columns; paths with nothing written are not in it.
        before: likewise, of paths that have no row in the list any more.
    """

    columns: list[str] = field(default_factory=lambda: ["name"])
    rows: dict[str, dict[str, str]] = field(default_factory=dict)
    before: dict[str, dict[str, str]] = field(default_factory=dict)


def read_given(out: Path) -> Given:
    """What a person has written into a folder's lists.

    Raises:
        ValueError: a list of another make, or a row of another length than its head.
    """
    given, before = _rows(out / CSV), _rows(out / BEFORE)
    columns = dict.fromkeys(["name", *given[0], *before[0]])
    there = {os.path.abspath(path) for path in given[1]}  # what is there now is meant
    return Given(
        list(columns),
        {path: cells for path, cells in given[1].items() if any(map(str.strip, cells.values()))},
        {path: cells for path, cells in before[1].items() if os.path.abspath(path) not in there},
    )


def _rows(file: Path) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Columns that are a person's, and the cells of these by path."""
    if not file.is_file():
        return [], {}
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        table = csv.DictReader(lines, delimiter=mark_of(lines))
        head = list(table.fieldnames or ())
        if not {"path", "name"} <= set(head) or len(set(head)) < len(head):
            raise ValueError(
                f"{file}: expected columns {', '.join(COLUMNS)}, got "
                f"{', '.join(head) or 'none'}; choose another folder"
            )
        columns = [name for name in head if name not in COLUMNS or name == "name"]
        found: dict[str, dict[str, str]] = {}
        for row in table:
            if row["path"] is None or any(row.pop(None, ())):
                raise ValueError(
                    f"{file}:{table.line_num}: expected {len(head)} cells, as the first line has"
                )
            found[row["path"]] = {name: row[name] or "" for name in columns}
        return columns, found


def write(
    out: Path,
    found: Discovery,
    pictures: Pictures,
    given: Given,
    trained: Trained,
    asked: Iterable[str],
) -> list[str]:
    """Write both files whole; what else there is to say, in lines.

    Args:
        given: to be kept. That of paths which have no row any more goes to another list, and comes
            back with them.
        asked: paths of all images that were asked about.
    """
    whole = {**given.before, **given.rows}
    absolute = {os.path.abspath(path): path for path in whole}
    own = {
        path: path if path in whole else absolute.get(os.path.abspath(path))
        for path in found.path.tolist()
    }
    lost = [path for path in given.rows if path not in set(own.values())]
    notes = []
    if lost or (out / BEFORE).exists():
        before = {**given.before, **{path: given.rows[path] for path in lost}}
        cells = [(path, 0, 0, before[path]) for path in sorted(before)]
        _write_rows(out / BEFORE, given.columns, cells)
        notes = _lost(lost, asked, found, out / BEFORE)
    order = np.lexsort((-found.sure, found.group, found.group == 0)).tolist()
    _write_rows(
        out / CSV,
        given.columns,
        [
            (path, int(found.group[n]), f"{found.sure[n]:.4f}", whole.get(own[path] or "", {}))
            for n in order
            for path in [found.path[n]]
        ],
    )
    write_groups(out / PAGE, _page(found, pictures, trained, notes))
    return notes


def _lost(lost: list[str], asked: Iterable[str], found: Discovery, before: Path) -> list[str]:
    """What became of paths with names that have no row any more."""
    here = {os.path.abspath(path) for path in asked}
    known = sum(os.path.abspath(path) in here for path in lost)
    why = {
        f"unknown no more{', or cannot be read' if found.bad else ''}": known,
        "not among these images": len(lost) - known,
    }
    what = "path with a name is", "paths with names are"
    return [
        f"{counted(count, *what)} {reason}: {before} has them"
        for reason, count in why.items()
        if count
    ]


def _write_rows(
    path: Path, columns: list[str], rows: Sequence[tuple[str, int, Any, Mapping[str, str]]]
) -> None:
    with written(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        write_rows(file, [[*COLUMNS[:-1], *columns]])
        write_rows(
            file, ([*place, *(cells.get(name, "") for name in columns)] for *place, cells in rows)
        )


def _page(
    found: Discovery, pictures: Pictures, trained: Trained, notes: list[str]
) -> dict[str, Any]:
    def images(index: NDArray[np.int64]) -> list[dict[str, str | None]]:
        return [{"path": _text(found.path[n]), "uri": _uri(pictures(n))} for n in index.tolist()]

    odd = found.odd
    return {
        "run": _text(trained.path.resolve().parent.name),
        "csv": CSV,
        "seen": found.seen,
        "rejected": len(found),
        "found": len(found.groups),
        "believed": len(found.believed),
        "limit": found.limit,
        "cut": "-" if math.isnan(found.cut) else f"{found.cut:.3f}",
        "notes": [*found.notes, *notes],
        "bad": [_text(line) for line in found.bad[:BAD]],
        "bad_count": len(found.bad),
        "groups": [
            {
                "number": each.number,
                "size": each.size,
                "sure": each.sure,
                "nearest": [(_text(name), distance) for name, distance in each.nearest],
                "images": images(each.members[:EACH]),
            }
            for each in found.groups[:SHOWN]
        ],
        "odd": {"size": len(odd), "images": images(odd[:ODD])},
    }


def _text(text: str) -> str:
    """What a name of bytes that are no UTF-8 can be shown as."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _uri(picture: Picture | None) -> str | None:
    if picture is None:
        return None
    try:
        opened = Path(picture) if isinstance(picture, str | Path) else pil_image(picture, "image")
        image = read_rgb(opened)
    except (ImageError, FileNotFoundError, ValueError):  # it has gone, since it was asked about
        return None
    image.thumbnail((SIZE, SIZE), Image.Resampling.BILINEAR)
    return png_uri(np.asarray(image, np.uint8), longest=SIZE)
