"""Image folders described by list files, one `path label` a line: the published split format."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from oltr_ext._tables import opened
from oltr_ext.data.augment import Augment
from oltr_ext.data.decode import ImageError, read_rgb
from oltr_ext.data.samplers import mix

__all__ = [
    "TABLE",
    "UNREADABLE",
    "ImageList",
    "ListLine",
    "numbered",
    "read_classes",
    "read_list",
    "read_names",
]

T = TypeVar("T")
TABLE = "images.csv"
"""Of all images of an import, beside its lists."""
UNREADABLE = -2
"""Label in a batch of an image that stands for none."""


class ListLine(NamedTuple):
    number: int  # from 1
    path: str
    label: int | None  # None: there is none from -1 to 2**31 - 1, and `path` is the whole line


def read_list(file: Path) -> Iterator[ListLine]:
    """The lines of a list file that are not blank; any line endings, with or without a BOM.

    Raises:
        FileNotFoundError: no such file. ValueError: it is not UTF-8 text.
    """
    if not file.is_file():
        raise FileNotFoundError(f"ImageList: no list file {file}")
    for number, line in enumerate(_text(file).split("\n"), 1):
        words = line.rsplit(maxsplit=1)  # a path may hold spaces
        if not words:
            continue
        try:
            label = int(words[1])
        except (ValueError, IndexError):
            label = -2
        if -1 <= label < 2**31:
            yield ListLine(number, words[0].strip(), label)
        else:
            yield ListLine(number, line.strip(), None)


def read_names(file: Path) -> list[str]:
    """Class names, one a line that is not blank, with or without a BOM.

    A name that is there again, such as ImageNet's second "crane", gets a number: "crane (2)".

    Raises:
        FileNotFoundError: no such file. ValueError: it is not UTF-8 text.
    """
    if not file.is_file():
        raise FileNotFoundError(f"class_names: no file {file}")
    return numbered(filter(None, map(str.strip, _text(file).split("\n"))))


def read_classes(file: Path) -> dict[str, str]:
    """Class by path, of the table of all images that an import leaves beside its lists; empty where
    there is none, or a table of something else.

    Raises:
        ValueError: it is not UTF-8 text.
    """
    if not file.is_file():
        return {}
    with opened(file) as lines:
        rows = csv.DictReader(lines)
        if not {"path", "class"} <= set(rows.fieldnames or ()):
            return {}
        return {row["path"]: row["class"] for row in rows if row["class"]}


def numbered(given: Iterable[str]) -> list[str]:
    """Names of which no two are the same, in order: the second "crane" is "crane (2)"."""
    names: dict[str, None] = {}
    for line in given:
        name, number = line, 1
        while name in names:
            number += 1
            name = f"{line} ({number})"
        names[name] = None
    return list(names)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not UTF-8 text") from None


class ImageList(Dataset[tuple[Tensor, int]]):
    """Images named in a list file, decoded and transformed on demand.

    Args:
        path_file: text file of `path label` lines; blank lines are left out. The path may hold
            spaces; the label is the last word: an int from 0, or -1 for an open image.
        root: folder the paths are relative to; default the list file's own folder.
        transform: PIL image (RGB) -> uint8 (3, H, W).
        augment: what whoever trains on them does to the batches.
        seed: of random transforms, which are a pure function of (seed, position in the stream).
        max_bad: images that may turn out damaged, no image, or too long for the transform.
        substitute: what a batch holds in the place of such an image. True, for training: the next
            readable image of its class in the list, going round, so that batches keep their size
            and classes. False, for validation and test: a black one with the label `UNREADABLE`,
            to be thrown away, for each image may be judged once; see `leave_out`.

    Attributes:
        bad: (N,) bool, images found unreadable so far. Loader processes share it.
        names: N true names, "" where not known; None where none is.
        crowded: what whoever loads them says of too little shared memory.

    Raises:
        FileNotFoundError: no list file, or an image it names is not there (file and line given).
        ValueError: not text, an empty list, or a line that is not `path label` (file and line
            given); on reading, more than `max_bad` unreadable images, or a class with no other.
    """

    def __init__(
        self,
        path_file: str | Path,
        root: str | Path | None,
        transform: Callable[[Image.Image], Tensor],
        *,
        augment: Augment | None = None,
        seed: int = 0,
        max_bad: int = 0,
        substitute: bool = False,
    ) -> None:
        self.file = Path(path_file)
        self.root = Path(root) if root is not None else self.file.parent
        self.transform, self.augment = transform, augment
        self.seed, self.max_bad, self.substitute = seed, max_bad, substitute
        paths: list[str] = []
        labels: list[int] = []
        self.lines: list[int] = []
        for line in read_list(self.file):
            if line.label is None:
                raise ValueError(
                    f"{self.file}:{line.number}: expected `path label` with an integer label "
                    f"from 0 (or -1 for open), got {line.path!r}"
                )
            paths.append(line.path)
            labels.append(line.label)
            self.lines.append(line.number)
            if not (self.root / line.path).is_file():
                raise FileNotFoundError(
                    f"{self.file}:{line.number}: no image {self.root / line.path}"
                )
        if not paths:
            raise ValueError(f"ImageList: {self.file} lists no images")
        self.paths = paths
        self.labels: NDArray[np.int64] = np.array(labels, np.int64)
        self.bad = torch.zeros(len(paths), dtype=torch.bool).share_memory_()
        self.names: list[str] | None = None
        self.left_out: list[str] = []
        self.crowded: str | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """The RGB image as stored, upright, before any transform."""
        return self._or_named(index, read_rgb)

    def _or_named(self, index: int, read: Callable[[Path], T]) -> T:
        path = self.root / self.paths[index]
        try:
            return read(path)
        except ImageError as error:
            raise ImageError(
                f"{self.file}:{self.lines[index]}: cannot read image {path}: {error}"
            ) from None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = int(index)
        label = int(self.labels[index])
        pixels = self._read(index)
        if pixels is None and self.substitute:
            pixels = self._next_of_class(index)
        if pixels is None:
            return self.transform(Image.new("RGB", (8, 8))), UNREADABLE
        return pixels, label

    def _read(self, index: int) -> Tensor | None:
        """The transformed image, or None for an unreadable one that may be."""

        def pixels(path: Path) -> Tensor:
            return self.transform(read_rgb(path))

        if self.max_bad == 0:
            return self._or_named(index, pixels)
        if not self.bad[index]:
            try:
                return self._or_named(index, pixels)
            except ImageError:
                self.bad[index] = True
        self.check()
        return None

    def _next_of_class(self, index: int) -> Tensor:
        own = np.flatnonzero(self.labels == self.labels[index])
        for other in np.roll(own, -np.searchsorted(own, index)):
            pixels = self._read(int(other))
            if pixels is not None:
                return pixels
        raise ValueError(f"{self.file}: no image of class {self.labels[index]} can be read")

    def __getitems__(self, keys: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Batch: uint8 images (B, 3, H, W) and labels (B,) for rows of (position, index), or
        indices."""
        keys = np.asarray(keys)
        if keys.ndim == 1:
            images, labels = zip(*(self[n] for n in keys), strict=True)
        else:
            seeds = mix(self.seed, keys[:, 0]) >> np.uint64(1)
            # torchvision draws from torch's global generator, so lend it one for each image
            with torch.random.fork_rng(devices=[]):
                images, labels = zip(*map(self._drawn, seeds, keys[:, 1]), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def _drawn(self, seed: np.uint64, index: int) -> tuple[Tensor, int]:
        torch.default_generator.manual_seed(int(seed))
        return self[index]

    def check(self) -> None:
        """Raises ValueError where more images are unreadable than may be."""
        if int(self.bad.sum()) + len(self.left_out) > self.max_bad:
            raise ValueError(f"{self.problem()}; data.max_bad_images = {self.max_bad}")

    def problem(self) -> str | None:
        """How many images could not be read so far, and which is the first; None if none."""
        names = [*self.left_out, *(self.paths[n] for n in self.bad.nonzero().flatten().tolist())]
        if not names:
            return None
        total = len(self.paths) + len(self.left_out)
        return f"{self.file}: {len(names)} of {total} images cannot be read, the first {names[0]}"

    def leave_out(self, rows: Sequence[int]) -> None:
        """Takes unreadable images off the list.

        Raises:
            ValueError: more than may be, or all of them.
        """
        self.bad[list(rows)] = True  # by whichever process they were found
        self.check()
        kept = np.setdiff1d(np.arange(len(self)), rows)
        if len(kept) == 0:
            raise ValueError(f"{self.file}: none of its images can be read")
        self.left_out += [self.paths[n] for n in rows]
        self.keep(kept)

    def keep(self, rows: ArrayLike) -> None:
        """Takes all images but these rows (indices, or a bool mask) off the list."""
        kept = np.arange(len(self))[np.asarray(rows)]
        self.paths = [self.paths[n] for n in kept]
        self.lines = [self.lines[n] for n in kept]
        self.labels = self.labels[kept]
        if self.names is not None:
            self.names = [self.names[n] for n in kept]
        self.bad = self.bad[kept].share_memory_()
