"""What `discover` writes: a list to name, and a page that shows what is to be named."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oltr_ext._tables import mark_of
from oltr_ext.data import ImageError, read_rgb
from oltr_ext.report import png_uri, write_groups
from oltr_ext.serve.inputs import Picture, pil_image
from oltr_ext.serve.trained import Trained

if TYPE_CHECKING:
    from oltr_ext.serve.discover import Discovery

__all__ = ["CSV", "PAGE", "Pictures", "read_names", "write"]

CSV, PAGE, BEFORE = "groups.csv", "groups.html", "groups_before.csv"
COLUMNS = ("path", "group", "sure", "name")
SHOWN, EACH, ODD, BAD = 200, 12, 60, 100
"""Groups and images of each on the page, odd ones, and lines on what could not be read."""
SIZE = 72

Pictures = Callable[[int], Picture | None]
"""The image of a row of the discovery."""


def read_names(out: Path) -> dict[str, str]:
    """The names that a person has given to paths in a folder's list.

    Raises:
        ValueError: a list of another make.
    """
    return _names(out / CSV)


def _names(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines, delimiter=mark_of(lines))
        if not {"path", "name"} <= set(rows.fieldnames or ()):
            raise ValueError(
                f"{file}: expected columns {', '.join(COLUMNS)}, got "
                f"{', '.join(rows.fieldnames or ()) or 'none'}; choose another folder"
            )
        return {row["path"]: row["name"] for row in rows if (row["name"] or "").strip()}


def write(
    out: Path, found: Discovery, pictures: Pictures, names: dict[str, str], trained: Trained
) -> list[str]:
    """Write both files whole; what else there is to say, in lines.

    Args:
        names: by path, to be kept. Those whose path has no row any more go to another list.
    """
    lost = {path: names[path] for path in set(names).difference(found.path.tolist())}
    notes = []
    if lost:
        before = {**_names(out / BEFORE), **lost}
        _write_rows(out / BEFORE, [(path, 0, 0, before[path]) for path in sorted(before)])
        notes = [f"{len(lost):,} paths with names are unknown no more: {out / BEFORE} has them"]
    order = np.lexsort((-found.sure, found.group, found.group == 0)).tolist()
    rows = ((found.path[n], int(found.group[n]), f"{found.sure[n]:.4f}") for n in order)
    _write_rows(out / CSV, [(*row, names.get(row[0], "")) for row in rows])
    write_groups(out / PAGE, _page(found, pictures, trained, notes))
    return notes


def _write_rows(path: Path, rows: list[tuple[Any, ...]]) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    with partial.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


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
