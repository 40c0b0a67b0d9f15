"""Images named in JSON as COCO has them, and iNaturalist's contests and camera traps after it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oltr_ext.data.importing.records import NO_CLASS, Notes, Record, some

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
    `name`, with its number where several of all files have the same one; by its number where it has
    none. Numbers may be text. What annotations name and no file lists is said.

    Args:
        root: what `file_name` is relative to; None is the folder of the first file.
        observation, group: keys of an image, such as ``seq_id`` and ``location``.

    Raises:
        FileNotFoundError: no such file. ValueError: no JSON; without images or annotations (the
            keys that are there get named); a key that no image has; a category of two names.
    """
    base = files[0][1].parent if root is None else root
    names = _names(files)
    for split, file in files:
        whole = _read(file)
        images, annotations = whole["images"], whole["annotations"]
        listed = {_number(image, "id", file) for image in images}
        found: dict[str | None, set[str | None]] = defaultdict(set)
        strange: Counter[str] = Counter()
        for each in annotations:
            number, category = (_number(each, key, file) for key in ("image_id", "category_id"))
            found[number].add(category)
            if number not in listed:
                notes.add("annotations of images that are not there", str(number))
            elif names and category and category not in names and category != NO_CLASS:
                strange[category] += 1
        if strange:
            notes.say(
                f"{file.name}: annotations of categories that are not listed, which are called by "
                f"their numbers: {strange.total():,} ({some(strange)})"
            )
        wanted = {"observation": observation, "group": group}
        there = {key for image in images for key in image} if any(wanted.values()) else set()
        for what, key in wanted.items():
            if key is not None and key not in there:
                keys = ", ".join(sorted(map(str, there)))
                raise ValueError(f"{file}: no image has {key}, its {what}; there are {keys}")
        for image in images:
            name, own = str(_value(image, "file_name", file)), found[_number(image, "id", file)]
            if len(own) > 1:
                notes.add("images of several categories", name)
                continue
            category = next(iter(own), None)
            label = None if category is None else names.get(category, category)
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
            without = rows is None and key == "annotations"
            raise ValueError(
                f"{file}: expected a list of {key}; there are {keys or 'none'}"
                f"{': without them no class is known, leave it out' if without else ''}"
            )
    return dict(whole)


def _names(files: Sequence[Source]) -> dict[str, str]:
    """By number, over all files: one may list fewer than another."""
    named: dict[str, str] = {}
    for _, file in files:
        categories = _read(file).get("categories")
        for row in categories if isinstance(categories, list) else []:
            number = str(_number(row, "id", file))
            name = str(row.get("name") or number)
            if named.setdefault(number, name) != name:
                raise ValueError(f"{file}: category {number} is {name}, and {named[number]} before")
    count = Counter(named.values())
    return {n: name if count[name] == 1 else f"{name} #{n}" for n, name in named.items()}


def _number(row: Any, key: str, file: Path) -> str | None:
    """The same for 1, 1.0 and "1"; None for null and NaN."""
    value = _value(row, key, file)
    if value is None or value != value:
        return None
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _value(row: Any, key: str, file: Path) -> Any:
    try:
        value = row[key]
        hash(value)
    except (KeyError, TypeError):
        there = ", ".join(map(str, row)) if isinstance(row, dict) else repr(row)
        raise ValueError(f"{file}: expected {key} in each row; there are {there}") from None
    return value
