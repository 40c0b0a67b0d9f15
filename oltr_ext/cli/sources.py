"""Files that an import reads, as a command names them."""

from __future__ import annotations

import argparse
import glob
import re
from pathlib import Path
from typing import Any

from oltr_ext.config.paths import path_of

__all__ = ["Sources", "sources_of"]

SPLITS = ("train", "val", "test")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def sources_of(text: str) -> list[tuple[str | None, Path]]:
    """`[SPLIT=]PATH` as split and path.

    A path that is not there may be a pattern, of which no shell sees those behind a split, or have
    a range as WebDataset writes it: ``{000..012}``.
    """
    split, equals, path = text.partition("=")
    if not equals or split not in SPLITS:
        split, path = "", text
    whole = path_of(path)
    found = [whole] if whole.exists() else [Path(each) for each in _matches(str(whole))]
    return [(split or None, each) for each in found or [whole]]


def _matches(pattern: str) -> list[str]:
    found = RANGE.search(pattern)
    if found is None:
        return sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    first, last = found.groups()
    before, after = pattern[: found.start()], pattern[found.end() :]
    numbers = (f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1))
    return [each for n in numbers for each in _matches(f"{before}{n}{after}")]


class Sources(argparse.Action):
    """One list of what `sources_of` makes of each argument."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        setattr(namespace, self.dest, [each for some in values for each in some])
