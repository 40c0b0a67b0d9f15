"""What readers of other people's formats give: one image each, and what they passed over."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "GIVEN_SPLITS",
    "NO_CLASS",
    "Notes",
    "Record",
    "some",
    "split_of",
    "split_of_file",
    "tidy",
]

GIVEN_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How sources call their splits."""

NO_CLASS = "-1"
"""As a label, of lists and of every source: the image is of no known class."""

EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Record:
    """An image as its source has it.

    Args:
        name: what the source calls it, for whoever reads the report.
        label: name of its class; None or `NO_CLASS` where the source has none for it.
        content: its file, which stays where it is; or its bytes, which are kept.
        observation: images of one observation are judged as one, and stay in one split.
        group: what else stays in one split, such as a place, a person or a film.
        split: train, val or test, where the source says.
    """

    name: str
    label: str | None
    content: Path | bytes
    observation: str | None = None
    group: str | None = None
    split: str | None = None


class Notes:
    """What a reader passed over, counted by its reason, with the first few of each by name."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self.said: list[str] = []
        self.broken: list[tuple[str, str]] = []  # files of the source, and why

    def say(self, line: str) -> None:
        """Of how the source was read."""
        self.said.append(tidy(line))

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        some = self.first.setdefault(reason, [])
        if len(some) < EXAMPLES and name not in some:
            some.append(name)

    def lines(self) -> Iterator[str]:
        for reason, count in self.counts.items():
            more = ", ..." if count > len(self.first[reason]) else ""
            yield f"{reason}: {count:,} ({', '.join(map(tidy, self.first[reason]))}{more})"


def tidy(text: str) -> str:
    """Text in a line: runs of white space one space, accents composed, none that cannot print."""
    if text.isascii() and text.isprintable() and "  " not in text and text == text.strip():
        return text  # nearly all there is
    line = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def some(items: Iterable[str], most: int = 5) -> str:
    """The first few, in a line."""
    named = list(items)
    return ", ".join(map(tidy, named[:most])) + (", ..." if len(named) > most else "")


def split_of(text: str) -> str | None:
    """train, val or test of a source's own word; None for any other."""
    return GIVEN_SPLITS.get(text.strip().lower())


def split_of_file(file: Path, folder: Path) -> str | None:
    """By the first word of its name, else by the nearest folder within `folder` that says one."""
    words = (re.split(r"[-_.]", file.name)[0], *reversed(file.relative_to(folder).parts[:-1]))
    return next((split for split in map(split_of, words) if split), None)
