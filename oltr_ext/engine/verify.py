"""Is a data set whole? Its lists, its image files, its counts against the published ones."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from oltr_ext._words import counted
from oltr_ext.config.pictures import settled
from oltr_ext.config.schema import ListData
from oltr_ext.data import (
    PUBLISHED,
    ImageError,
    ListLine,
    Published,
    eval_transform,
    hold_out,
    read_list,
    read_names,
    read_rgb,
)
from oltr_ext.engine.preflight import shot_note

__all__ = ["DataCheck", "PartCheck", "check_data", "check_table"]

FEW = 3  # examples named of each kind of problem


@dataclass
class PartCheck:
    """One list and the images it names."""

    part: str
    file: str
    root: str
    images: int
    published: int | None
    missing: int
    decoded: int
    damaged: int


@dataclass
class DataCheck:
    """What was found. `problems` is empty when the set is whole; each is one line, as a note is."""

    title: str | None  # of the published set
    classes: int
    largest: int  # training images of the largest class
    smallest: int
    parts: list[PartCheck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what training takes, and should be known
    sources: tuple[str, ...] = ()  # where a published set is to be had


def check_data(data: ListData, *, decode: int | None = 200) -> DataCheck:
    """Check all that training and evaluation will read.

    Args:
        decode: how many images of each list to decode, evenly spaced; None for all.
    """
    known = PUBLISHED.get(data.train.name)
    found = DataCheck(
        known.title if known else None, 0, 0, 0, sources=known.sources if known else ()
    )
    how = settled(data)
    transform = eval_transform(int(how.image_size), how.augment.fit or "crop")
    lists: dict[str, list[ListLine]] = {}
    gone: dict[Path, list[str]] = {}
    for part, (file, root) in data.parts().items():
        lines = _read(part, file, found.problems)
        lists[part] = lines
        there = [line for line in lines if os.path.isfile(root / line.path)]
        missing = _without(lines, there)
        if not root.is_dir():
            gone.setdefault(root, []).append(part)
        elif missing:
            found.problems.append(
                f"{part}: {len(missing):,} of {len(lines):,} images are not in {root}: "
                + _some(line.path for line in missing)
            )
        chosen = _spread(there, decode)
        damaged = _damaged(part, [root / line.path for line in chosen], data.workers, transform)
        if damaged:
            found.problems.append(
                f"{part}: {len(damaged):,} of {len(chosen):,} images cannot be decoded: "
                + _some(damaged)
            )
        count = known.images.get(part) if known else None
        found.parts.append(
            PartCheck(
                part,
                str(file),
                str(root),
                len(lines),
                count,
                len(missing),
                len(chosen),
                len(damaged),
            )
        )
    found.problems += [f"{', '.join(names)}: no folder {root}" for root, names in gone.items()]
    _hold_out(data, lists, found)
    _check_labels(data, lists, found)
    _check_overlap(data, lists, found.problems)
    if known:
        _check_published(known, found, whole=isinstance(data.val, Path))
    return found


def _read(part: str, file: Path, problems: list[str]) -> list[ListLine]:
    """The good lines of a list; what is wrong with the others goes into `problems`."""
    try:
        lines = list(read_list(file))
    except (FileNotFoundError, ValueError) as error:
        problems.append(f"{part}: {str(error).removeprefix('ImageList: ')}")
        return []
    good = [line for line in lines if line.label is not None]
    if len(good) < len(lines):
        bad = [f"line {n} {text!r}" for n, text, label in lines if label is None]
        are = counted(len(bad), f"line of {file} is", f"lines of {file} are")
        problems.append(f"{part}: {are} not `path label`: {_some(bad)}")
    if not good:
        problems.append(f"{part}: {file} lists no images")
    twice = [path for path, n in Counter(line.path for line in good).items() if n > 1]
    if twice:
        problems.append(
            f"{part}: {counted(len(twice), 'image is', 'images are')} listed more than once: "
            f"{_some(twice)}"
        )
    return good


def _hold_out(data: ListData, lists: dict[str, list[ListLine]], found: DataCheck) -> None:
    """Deal the lines of train as training does, where there is no list of val."""
    if isinstance(data.val, Path):
        return
    lines = [line for line in lists["train"] if line.label is not None and line.label >= 0]
    lists["val"] = []
    if not lines:
        return
    paths, labels = [line.path for line in lines], [line.label or 0 for line in lines]
    held = hold_out(paths, labels, data.val, data.val_seed)
    if not held.any():
        found.problems.append(f"val: {data.val} holds none of the images of train out")
    lists["val"] = [line for line, out in zip(lines, held, strict=True) if out]
    lists["train"] = _without(lists["train"], lists["val"])
    found.notes.append(
        f"val: {len(lists['val']):,} of the {counted(len(lines), 'image')} of train are held out "
        "(data.val: "
        f"{data.val}, data.val_seed: {data.val_seed}); train keeps {len(lists['train']):,}"
    )


def _check_labels(data: ListData, lists: dict[str, list[ListLine]], found: DataCheck) -> None:
    """Labels against the classes, and classes against their training images."""
    train = [line.label or 0 for line in lists["train"] if line.label != -1]
    counts = Counter(train)
    found.classes, names = max(counts, default=-1) + 1, []
    if data.class_names is not None:
        try:
            names = read_names(data.file(data.class_names))
            found.classes = len(names)
        except (FileNotFoundError, ValueError) as error:
            found.problems.append(str(error))
    for part in ("train", "val", "test"):
        low = 0 if part == "train" else -1
        labels = [line.label for line in lists[part] if line.label is not None]
        wrong = {label for label in labels if not low <= label < found.classes}
        if wrong and lists["train"]:
            found.problems.append(
                f"{part}: labels out of range, for there are {counted(found.classes, 'class')} "
                f"from 0: " + _some(map(str, sorted(wrong)))
            )
        if part == "val" and labels and max(labels) < 0:
            found.problems.append("val: no image of a known class")
    if not train:
        return
    for part in ("val", "test"):
        tested = {line.label for line in lists[part]}
        lacking = sorted(c for c in counts if c not in tested and c < found.classes)
        if lists[part] and lacking:
            found.notes.append(
                f"{part}: {len(lacking):,} of {found.classes:,} classes have no image: "
                + _some(f"{c} ({names[c]})" if names else f"{c}" for c in lacking)
            )
    per_class = [counts[c] for c in range(found.classes)] if found.classes <= len(train) else []
    found.largest = max(counts.values())
    found.smallest = min(per_class, default=0)
    if found.smallest == 0:
        empty = found.classes - sum(1 for label in counts if label < found.classes)
        found.problems.append(
            f"train: {empty:,} of {found.classes:,} classes have no training image: "
            + _some(str(c) for c in range(found.classes) if c not in counts)
        )
    if per_class and (note := shot_note(per_class, data.shots)):
        found.notes.append(note)


def _check_overlap(data: ListData, lists: dict[str, list[ListLine]], problems: list[str]) -> None:
    """No image in two lists, but for lists that are the same file."""
    parts = data.parts()
    parts.setdefault("val", parts["train"])
    paths = {
        part: {os.path.normpath(parts[part][1] / line.path) for line in lines}
        for part, lines in lists.items()
    }
    names = list(paths)
    for n, one in enumerate(names):
        for other in names[n + 1 :]:
            both = paths[one] & paths[other]
            if both and parts[one] != parts[other]:
                problems.append(
                    f"{one} and {other}: {counted(len(both), 'image is', 'images are')} in both: "
                    f"{_some(sorted(both))}"
                )


def _check_published(known: Published, found: DataCheck, *, whole: bool) -> None:
    """Counts as published; those of the classes only where train is whole, with none held out."""

    def differs(what: str, value: int, published: int) -> bool:
        return abs(value - published) > known.rounded.get(what, 1) / 2

    for part in found.parts:
        if part.images and part.published and differs(part.part, part.images, part.published):
            found.problems.append(
                f"{part.part}: {counted(part.images, 'image')}, {part.published:,} are published"
            )
    if found.classes and differs("classes", found.classes, known.classes):
        found.problems.append(f"{counted(found.classes, 'class')}, {known.classes:,} are published")
    if whole and found.largest and known.shots and (found.largest, found.smallest) != known.shots:
        found.problems.append(
            f"train: {found.largest:,} to {found.smallest:,} images a class, "
            f"{known.shots[0]:,} to {known.shots[1]:,} are published"
        )


def _without(lines: Sequence[ListLine], there: Sequence[ListLine]) -> list[ListLine]:
    numbers = {line.number for line in there}
    return [line for line in lines if line.number not in numbers]


def _spread(lines: Sequence[ListLine], count: int | None) -> Sequence[ListLine]:
    if count is None or count >= len(lines):
        return lines
    return [lines[i] for i in np.linspace(0, len(lines) - 1, count, dtype=np.int64)]


def _damaged(
    part: str, paths: Sequence[Path], workers: int, transform: Callable[[Image.Image], object]
) -> list[str]:
    """Path and reason of each image that cannot be decoded whole, or not be used so."""

    def why_not(path: Path) -> str | None:
        try:
            transform(read_rgb(path))
        except ImageError as error:
            return str(error)
        return None

    found = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(paths), desc=part, unit="image", disable=None, leave=False) as bar,
    ):
        for begin in range(0, len(paths), 1000):  # the pool would queue all of a million
            some = paths[begin : begin + 1000]
            for path, reason in zip(some, pool.map(why_not, some), strict=True):
                bar.update()
                if reason is not None:
                    found.append(f"{path} ({reason})")
    return found


def _some(items: Iterable[str]) -> str:
    first = [item for item, _ in zip(items, range(FEW + 1), strict=False)]
    return ", ".join(first[:FEW]) + (", ..." if len(first) > FEW else "")


def check_table(found: DataCheck) -> str:
    """A row for each list, then what is wrong, and where a published set is to be had."""
    rows: list[tuple[str, ...]] = [
        ("part", "list", "images", "published", "missing", "damaged", "decoded")
    ]
    for part in found.parts:
        published = "-" if part.published is None else f"{part.published:,}"
        numbers = (f"{n:,}" for n in (part.missing, part.damaged, part.decoded))
        rows.append((part.part, part.file, f"{part.images:,}", published, *numbers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            c.ljust(w) if n < 2 else c.rjust(w)
            for n, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    if found.classes:
        lines.append(
            f"{found.title + ': ' if found.title else ''}{counted(found.classes, 'class')} with "
            f"{found.largest:,} to {found.smallest:,} training images"
        )
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"problem: {problem}" for problem in found.problems]
    if found.problems:
        lines += [f"to be had: {source}" for source in found.sources]
    else:
        lines.append("whole")
    return "\n".join(lines)
