"""What was decided, as lists to train on."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from oltr_ext._files import write_whole
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.state import JUNK

__all__ = ["check_free", "export", "lists", "zipped"]

NAMES, LEFT_OUT = ("train.txt", "names.txt", "junk.txt"), "left_out.txt"
MARK = ".oltr_desk_export"
"""Beside lists that an export wrote."""


def lists(desk: Desk) -> dict[str, bytes]:
    """Files by name: ``train.txt``, a line `path label` for each image in a group that has a name;
    ``names.txt``, the name of each label: the run's classes by id, then those that it has not;
    ``junk.txt``, with label -1, what was set aside. Paths are relative to the folder of images.

    An image that is there several times has a line for each. Those that have gone have none; nor
    have paths with a line break or an odd blank, which no list can hold: ``left_out.txt`` has them,
    if there are any.
    """
    with desk.lock:
        desk.ready()
        names = desk.trained.roster.names
        label = {name: n for n, name in enumerate(names)}
        label |= {desk.trained.roster[id].name: id for id in desk.trained.roster.living}
        rows: dict[str, int] = {}
        for name, images in desk.log.state.named().items():
            if name not in label:
                label[name] = len(names)
                names = [*names, name]
            for image in images:
                rows |= dict.fromkeys(desk.contents.paths.get(image, ()), label[name])
        aside = [i for i, place in desk.log.state.place.items() if place == JUNK]
        junk = {path: -1 for image in aside for path in desk.contents.paths.get(image, ())}
    lines = [" ".join(name.split()) for name in names]  # an older model's may have a line break
    found = {"names.txt": "\n".join([*lines, ""]).encode("utf-8", "replace")}
    odd = []
    for file, part in (("train.txt", rows), ("junk.txt", junk)):
        fit = {path: n for path, n in part.items() if _fits(path)}
        odd += [path for path in part if path not in fit]
        found[file] = "".join(f"{path} {fit[path]}\n" for path in sorted(fit)).encode()
    if odd:
        found[LEFT_OUT] = "".join(f"{path!r}\n" for path in sorted(odd)).encode()
    return found


def _fits(path: str) -> bool:
    """Whether a line of a list, UTF-8 and split at its last blank, gives a path back."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path == path.strip() and len(path.splitlines()) == 1


def export(desk: Desk, out: Path) -> list[Path]:
    """Write the lists into a folder, each whole, over those of an earlier export; their paths.

    Raises:
        ValueError: lists that no export wrote.
    """
    check_free(out)
    found, written = lists(desk), []
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    (out / LEFT_OUT).unlink(missing_ok=True)
    for name, held in found.items():
        write_whole(out / name, held)
        written.append(out / name)
    return written


def check_free(out: Path) -> None:
    """Raises ValueError where `export` would write over lists of somebody's."""
    for name in (*NAMES, LEFT_OUT):
        if (out / name).exists() and not (out / MARK).exists():
            raise ValueError(
                f"{out / name} is there, and is not of an earlier export: choose another folder"
            )


def zipped(desk: Desk) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in lists(desk).items():
            archive.writestr(name, part)
    return held.getvalue()
