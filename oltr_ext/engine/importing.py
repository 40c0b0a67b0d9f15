"""Other people's formats to a folder that `oltr train` takes: lists, words and a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oltr_ext._words import counted
from oltr_ext.data.importing import Imported, Notes, Plan, Record, describe, import_records
from oltr_ext.data.importing.cifar import CifarLT, write_cifar
from oltr_ext.report import write_class_counts

__all__ = ["import_cifar", "import_set"]

Reader = Callable[[Notes], Iterator[Record]]


def import_set(
    read: Reader,
    out: str | Path,
    *,
    root: str | Path | None,
    about: Mapping[str, Any],
    plan: Plan | None = None,
    workers: int = 4,
) -> Imported:
    """`oltr data from-...` as a function: what a reader gives, in a folder of its own.

    Args:
        read: gives records, and notes what it passes over.
        root: what files are listed relative to; None where all images come as bytes.
        about: JSON-able; where a folder holds an import of something else, that is an error.

    Raises:
        ValueError, FileNotFoundError: see `import_records` and the readers.
    """
    notes = Notes()
    made = import_records(
        read(notes),
        out,
        root=root,
        about=about,
        plan=plan or Plan(),
        notes=notes,
        describe=describe,
        workers=workers,
    )
    opened = {part: list(found.values()) for part, found in made.opened.items()}
    _draw(made.folder, made.counts, opened)
    return made


def import_cifar(name: str, root: str | Path, out: str | Path, **how: Any) -> CifarLT:
    """`oltr data from-cifar` as a function; arguments and errors are those of `write_cifar`."""
    made = write_cifar(name, root, out, **how)
    _draw(made.folder, made.counts, {name: [count] for name, count in made.opened.items()})
    return made


def _draw(
    folder: Path, counts: Mapping[str, Sequence[int]], opened: Mapping[str, Sequence[int]]
) -> None:
    picture, train = folder / "report.png", counts["train"]
    if not picture.exists():
        title = f"{counted(sum(train), 'training image')} of {counted(len(train), 'class')}"
        write_class_counts(picture, counts, opened, title=title)
