"""`oltr enroll` and `oltr classes`: new classes in a trained run, and who its classes are."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oltr_ext._tables import mark_of, opened
from oltr_ext._words import counted
from oltr_ext.cli.arguments import add_device, add_run
from oltr_ext.config.paths import path_of

if TYPE_CHECKING:
    from oltr_ext.nn import Roster
    from oltr_ext.serve.enroll import Enrolled
    from oltr_ext.serve.predict import Named
    from oltr_ext.serve.trained import Trained

Pair = tuple[str, str]
"""An image, and the name of its class."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`oltr enroll` and `oltr classes`, made by the parser's `command`."""
    sub = command(
        "enroll",
        run_enroll,
        "let new classes join a trained run, from a few images of each, without training",
        "  oltr enroll runs/demo/oltr-plus --name snail snails/*.png --dry-run\n"
        "  oltr enroll runs/demo/oltr-plus --name snail snails/ --name crab crab1.png crab2.png\n"
        "  oltr enroll runs/demo/oltr-plus --from groups.csv\n"
        "  oltr enroll runs/demo/oltr-plus --name snail another.png --more\n"
        "  oltr enroll runs/on_embeddings --name snail snails.npy",
    )
    add_run(sub)
    sub.add_argument(
        "--name",
        nargs="+",
        action="append",
        metavar=("NAME", "IMAGE"),
        help="a class, and its images: files or folders; for a run on embeddings .npy files (N, D) "
        "too; may be repeated",
    )
    sub.add_argument(
        "--from",
        dest="source",
        action="append",
        type=path_of,
        metavar="FILE",
        help="a table with columns path and name, of which rows without a name are passed "
        "over; or a folder of folders, each named as its class; may be repeated",
    )
    sub.add_argument(
        "--more", action="store_true", help="add images to names that were enrolled before"
    )
    sub.add_argument("--dry-run", action="store_true", help="say what it would do; write nothing")
    sub.add_argument("--json", action="store_true", help="one JSON object a class, a line each")
    add_device(sub)

    sub = command(
        "classes",
        run_classes,
        "list the classes of a trained run; rename or remove them, or undo the last change",
        "  oltr classes runs/demo/oltr-plus\n"
        "  oltr classes runs/demo/oltr-plus --rename snail slug\n"
        "  oltr classes runs/demo/oltr-plus --remove slug crab\n"
        "  oltr classes runs/demo/oltr-plus --undo",
    )
    add_run(sub)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--rename", nargs=2, metavar=("OLD", "NEW"), help="call a class otherwise")
    what.add_argument("--remove", nargs="+", metavar="NAME", help="make classes no answer any more")
    what.add_argument(
        "--undo",
        action="store_true",
        help="take back the last change, also an enrolment; again: bring it back",
    )
    sub.add_argument("--json", action="store_true", help="one JSON object a class, a line each")


def run_enroll(args: argparse.Namespace) -> int:
    from oltr_ext.serve.enroll import editing, enroll
    from oltr_ext.serve.trained import load_trained

    asked = [pair for name, *paths in args.name or [] for pair in _of_name(name, paths)]
    for source in args.source or []:
        asked += _of_folders(source) if source.is_dir() else _of_table(source)
    if not asked:
        raise ValueError("nothing to enroll: expected --name NAME IMAGE ..., or --from FILE")
    trained = load_trained(args.checkpoint, device=args.device)
    given, names = _features(trained, asked)
    if args.dry_run:
        found = enroll(trained, given, names, more=args.more)
    else:
        with editing(trained):
            found = enroll(trained, given, names, more=args.more)
    for each in found:
        if args.json:
            print(json.dumps({**dataclasses.asdict(each), "looks_like": each.looks_like}))
        else:
            print(_told(each, dry=args.dry_run))
    if args.dry_run:
        print("nothing was written (--dry-run)", file=sys.stderr)
    return 0


def run_classes(args: argparse.Namespace) -> int:
    from oltr_ext.engine import checkpoint, enrolment
    from oltr_ext.serve.enroll import classes, editing, remove, rename, undo
    from oltr_ext.serve.trained import load_trained

    if args.rename or args.remove or args.undo:
        trained = load_trained(args.checkpoint, device="cpu")
        with editing(trained):
            before = trained.enrolment.roster
            if args.rename:
                rename(trained, *args.rename)
            elif args.remove:
                remove(trained, args.remove)
            else:
                undo(trained)
        for line in _changes(before, trained.roster):
            print(line, file=sys.stderr)
        found = classes(trained.roster)
    else:
        found = classes(enrolment.read(*checkpoint.read_model(args.checkpoint)[1:]).roster)
    if args.json:
        for each in found:
            print(json.dumps(dataclasses.asdict(each)))
        return 0
    rows = [("id", "name", "origin", "images", "when")]
    rows += [
        (str(c.id), c.name, c.origin, "-" if c.images is None else str(c.images), c.when or "-")
        for c in found
    ]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(w) for cell, w in zip(row, width, strict=True)).rstrip())
    return 0


def _features(trained: Trained, asked: Sequence[Pair]) -> tuple[list[Named], list[str]]:
    """Features of all images under their names, and the class of each."""
    from oltr_ext._defaults import own_defaults
    from oltr_ext.serve.predict import numbered_features

    given: list[Named] = []
    names: list[str] = []
    bad: list[Exception] = []
    with own_defaults():
        paths = [path for path, _ in asked]
        for numbers, called, features in numbered_features(trained, paths, on_error=bad.append):
            given.append((called, features))
            names += [asked[number][1] for number in numbers]
    if bad:
        told = "\n".join(map(str, bad))
        raise ValueError(f"nothing was enrolled, for {len(bad)} cannot be read:\n{told}")
    return given, names


def _of_name(name: str, paths: Sequence[str]) -> Iterator[Pair]:
    if not paths:
        raise ValueError(f"--name {name}: expected images of it after its name")
    for path in paths:
        if Path(path).is_dir():
            yield from ((str(file), name) for file in _images_in(Path(path)))
        else:
            yield path, name


def _of_folders(folder: Path) -> list[Pair]:
    """A folder a class."""
    classes = sorted(each for each in folder.iterdir() if each.is_dir())
    if not classes:
        raise ValueError(f"{folder} has no folders: expected one for each class, named so")
    return [(str(file), each.name) for each in classes for file in _images_in(each)]


def _of_table(file: Path) -> list[Pair]:
    """Rows with a name, each image once; a path is meant as it stands, else beside the file."""
    found: dict[str, tuple[Pair, int]] = {}
    with opened(file, "surrogateescape") as lines:  # paths are names of files, of any bytes
        table = csv.DictReader(lines, delimiter=mark_of(lines))
        columns = table.fieldnames or []
        if not {"path", "name"} <= set(columns):
            if not _is_text("".join(columns)):
                raise ValueError(f"{file} is not UTF-8 text")
            raise ValueError(
                f"{file}: expected columns path and name, got {', '.join(columns) or 'none'}"
            )
        for row in table:
            path, name = (row["path"] or "").strip(), " ".join((row["name"] or "").split())
            if name and not path:
                raise ValueError(f"{file}:{table.line_num}: {name} without a path")
            if not name:
                continue
            if not _is_text(name):
                raise ValueError(f"{file}:{table.line_num}: the name is not UTF-8 text")
            path = _there(path, file.parent)
            pair, line = found.setdefault(os.path.abspath(path), ((path, name), table.line_num))
            if pair[1] != name:
                raise ValueError(
                    f"{file}: {path} is {pair[1]} in line {line} and {name} in line "
                    f"{table.line_num}: expected one name"
                )
    if not found:
        raise ValueError(f"{file} gives no image a name: fill in its column name")
    return [pair for pair, _ in found.values()]


def _is_text(words: str) -> bool:
    """Whether all of it was UTF-8, in a file read with ``surrogateescape``."""
    return not any("\udc80" <= letter <= "\udcff" for letter in words)


def _there(path: str, folder: Path) -> str:
    """A path of a table, of which the file may also lie beside it; ``file.npy[3]`` is a row."""
    for each in (path, str(folder / path)):
        if Path(each).exists() or (each.endswith("]") and Path(each.rpartition("[")[0]).exists()):
            return each
    return path


def _images_in(folder: Path) -> list[Path]:
    """Image files, and those of embeddings, in order of their names; not of folders within."""
    from oltr_ext.data.decode import image_endings

    kinds = {*image_endings(), ".npy"}
    found = sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in kinds and not file.name.startswith(".") and file.is_file()
    )
    if not found:
        raise ValueError(f"{folder} holds no image")
    return found


def _told(found: Enrolled, *, dry: bool) -> str:
    """What became of a class, in a line and one for each thing to look at."""
    images = counted(found.images, "image")
    now = "all" if found.recognised == found.images else f"{found.recognised} of them"
    said = (
        f"{found.name}: {'would be ' if dry else ''}enrolled as class {found.id} from {images}; "
        f"{now} recognised then; nearest is {found.nearest}"
    )
    taken = ", ".join(f"{count} as {name}" for name, count in found.taken_for.items())
    if found.looks_like is not None:
        said += f"\n  looks like {found.looks_like}: recognised before were {taken}"
    elif taken:
        said += f"\n  recognised before: {taken}"
    if found.unlike:
        said += f"\n  unlike the rest: {', '.join(found.unlike)}"
    return said


def _changes(before: Roster, after: Roster) -> Iterator[str]:
    """What is different, a line a class."""
    for id in range(max(len(before), len(after))):
        old, new = (
            roster[id] if id < len(roster) and roster[id].alive else None
            for roster in (before, after)
        )
        if old is None and new is not None:
            yield f"{new.name} is a class again"
        elif old is not None and new is None:
            yield f"{old.name} is no class any more"
        elif old is not None and new is not None:
            if old.name != new.name:
                yield f"{old.name} is {new.name} now"
            if old.images != new.images:
                yield f"{new.name} is of {counted(new.images or 0, 'image')}, not of {old.images}"
