"""Images named in JSON as COCO has them, and iNaturalist's contests and camera traps after it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oltr_ext.data.importing.records import Notes, Record

__all__ = ["Source", "read_coco"]

Source = tuple[str | None, Path]
"""train, val or test, where it is said; and a file or folder."""


def read_coco(
    files: Sequence[Source],
    notes: Notes,
    *,
    root: Path | None = None,
    observation: str | None = None,
    group: str | None = None,
) -> Iterator[Record]:
    """A record for each of `images`, whose class is the category of its annotations.

    Images whose annotations are of several categories are passed over. A category is called by its
    `name`, with its number where several have the same one; by its number where it has none.

    Args:
        root: what `file_name` is relative to; None is the folder of the first file.
        observation, group: keys of an image, such as ``seq_id`` and ``location``.

    Raises:
        FileNotFoundError: no such file. ValueError: no JSON; without images or annotations (the
            keys that are there get named); a key that no image has.
    """
    base = files[0][1].parent if root is None else root
    for split, file in files:
        whole = _read(file)
        images, annotations = whole["images"], whole["annotations"]
        names = _names(whole.get("categories"), file)
        found: dict[Any, set[Any]] = defaultdict(set)
        for each in annotations:
            found[_value(each, "image_id", file)].add(_value(each, "category_id", file))
        wanted = {"observation": observation, "group": group}
        there = {key for image in images for key in image} if any(wanted.values()) else set()
        for what, key in wanted.items():
            if key is not None and key not in there:
                keys = ", ".join(sorted(map(str, there)))
                raise ValueError(f"{file}: no image has {key}, its {what}; there are {keys}")
        for image in images:
            name, own = str(_value(image, "file_name", file)), found[_value(image, "id", file)]
            if len(own) > 1:
                notes.add("images of several categories", name)
                continue
            category = next(iter(own), None)
            label = None if category is None else names.get(category, str(category))
            told = {what: image.get(key) for what, key in wanted.items() if key is not None}
            yield Record(
                name,
                label,
                base / name,
                split=split,
                **{what: str(value) for what, value in told.items() if value is not None},
            )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    try:
        whole = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    keys = ", ".join(map(str, whole)) if isinstance(whole, dict) else type(whole).__name__
    for key in ("images", "annotations"):
        rows = whole.get(key) if isinstance(whole, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file}: expected a list of {key}; there are {keys or 'none'}")
    return dict(whole)


def _names(categories: Any, file: Path) -> dict[Any, str]:
    rows = categories if isinstance(categories, list) else []
    named = {
        _value(row, "id", file): str(row.get("name") or _value(row, "id", file)) for row in rows
    }
    count = Counter(named.values())
    return {n: name if count[name] == 1 else f"{name} #{n}" for n, name in named.items()}


def _value(row: Any, key: str, file: Path) -> Any:
    try:
        value = row[key]
        hash(value)
    except (KeyError, TypeError):
        there = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise ValueError(f"{file}: expected {key} in each row; there are {there}") from None
    return value
