"""Images in folders, each class a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from oltr_ext.data.decode import image_endings
from oltr_ext.data.importing.records import Notes, Record, some, split_of

__all__ = ["CLASS_BY", "read_folder"]

ClassBy = Literal["top", "leaf", "path"]
CLASS_BY = ("top", "leaf", "path")


def read_folder(
    root: Path,
    notes: Notes,
    *,
    class_by: ClassBy = "top",
    observations: bool = False,
    follow_links: bool = False,
    given: bool = True,
) -> Iterator[Record]:
    """Every image below a folder, in order of its path.

    Folders named train, val and test (or what `GIVEN_SPLITS` has) are splits, where all folders at
    the top are called so and train is among them. Links to files are images like any other.

    Args:
        class_by: ``top``: an image is of the class of the topmost folder it is in, ``leaf``: of the
            innermost one, ``path``: of all of them, joined by "/".
        observations: the folder that holds an image, below that of its class, is an observation.
        follow_links: links to folders too, but for those that lead to a folder above them.
        given: whether folders may be splits.

    Raises:
        FileNotFoundError: no such folder. ValueError: an observation asked of ``leaf`` or ``path``.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    if observations and class_by != "top":
        raise ValueError(f"class_by: expected top where folders are observations, got {class_by}")
    suffixes = image_endings()
    try:
        tops = {entry.name for entry in os.scandir(root) if _visible(entry) and entry.is_dir()}
    except OSError as error:
        raise ValueError(f"cannot read {root}: {error.strerror}") from None
    splits = {split_of(name) for name in tops}
    as_splits = given and bool(tops) and None not in splits and {"train"} < splits
    if given and None in splits and "train" in splits:
        named = sorted(name for name in tops if split_of(name))
        # train alone, with images in it, is a class beside car and bus
        if len(named) > 1 or (not observations and _nested(root / named[0])):
            others = some(sorted(tops.difference(named)))
            taken = "not taken for splits" if class_by == "leaf" else "taken for classes"
            theirs = f"folder{'s' * (len(named) > 1)} {', '.join(named)}"
            verb = "are" if len(named) > 1 else "is"
            notes.say(f"PROBLEM: {theirs} {verb} {taken}, for {others} is no split")
    for file in _walk(root, notes, follow_links, ()):
        parts = file.relative_to(root).parts
        name = os.path.join(*parts)
        if file.suffix.lower() not in suffixes:
            notes.add("files that are no images by their suffix", name)
            continue
        split = split_of(parts[0]) if as_splits and len(parts) > 1 else None
        inside = parts[1:-1] if split else parts[:-1]
        if not inside:
            notes.add("images in no folder of a class", name)
            continue
        label = {"top": inside[0], "leaf": inside[-1], "path": "/".join(inside)}[class_by]
        seen = "/".join(inside) if observations and len(inside) > 1 else None
        yield Record(name, label, file, observation=seen, split=split)


def _nested(folder: Path) -> bool:
    try:
        return any(_visible(entry) and entry.is_dir() for entry in os.scandir(folder))
    except OSError:  # which the walk tells of
        return False


def _walk(
    folder: Path, notes: Notes, follow: bool, above: tuple[tuple[int, int], ...]
) -> Iterator[Path]:
    """Files below a folder, those of each before its folders, each in order of their names."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        here = folder.stat()
    except OSError as error:
        notes.add(f"folders that cannot be read ({error.strerror})", str(folder))
        return
    above = (*above, (here.st_dev, here.st_ino))
    inner, empty = [], True
    for entry in entries:
        if not _visible(entry):
            notes.add("hidden", entry.path)
            continue
        empty = False
        try:
            mode = entry.stat().st_mode
        except OSError:
            notes.add("links to nothing", entry.path)
            continue
        if stat.S_ISDIR(mode):
            inner.append(entry)
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            notes.add("neither files nor folders", entry.path)
    if empty:
        notes.add("empty folders", str(folder))
    for entry in inner:
        found = entry.stat()
        if entry.is_symlink() and not follow:
            notes.add("links to folders (see --follow-links)", entry.path)
        elif (found.st_dev, found.st_ino) in above:
            notes.add("links to a folder above them", entry.path)
        else:
            yield from _walk(Path(entry.path), notes, follow, above)


def _visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and entry.name not in ("__MACOSX", "Thumbs.db")
