"""Image folders described by list files, one `path label` a line: the published split format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from oltr_ext.data.samplers import mix

__all__ = ["ImageList", "ListLine", "read_list"]


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
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"ImageList: {file} is not UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), 1):
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


class ImageList(Dataset[tuple[Tensor, int]]):
    """Images named in a list file, decoded and transformed on demand.

    Args:
        path_file: text file of `path label` lines; blank lines are left out. The path may hold
            spaces; the label is the last word: an int from 0, or -1 for an open image.
        root: folder the paths are relative to; default the list file's own folder.
        transform: PIL image (RGB) -> Tensor (C, H, W).
        seed: of random transforms, which are a pure function of (seed, position in the stream).

    Raises:
        FileNotFoundError: no list file, or an image it names is not there (file and line given).
        ValueError: not text, an empty list, or a line that is not `path label` (file and line
            given); on reading, an image that is truncated or no image.
    """

    def __init__(
        self,
        path_file: str | Path,
        root: str | Path | None,
        transform: Callable[[Image.Image], Tensor],
        *,
        seed: int = 0,
    ) -> None:
        self.file = Path(path_file)
        self.root = Path(root) if root is not None else self.file.parent
        self.transform = transform
        self.seed = seed
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

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Image.Image:
        """The RGB image as stored, before any transform."""
        path = self.root / self.paths[index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{self.file}:{self.lines[index]}: cannot read image {path}: {error}"
            ) from None

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.image(int(index))), int(self.labels[index])

    def __getitems__(self, keys: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Batch: images (B, C, H, W) and labels (B,) for rows of (position, index), or indices."""
        images: list[Any] = []
        for key in np.asarray(keys):
            if key.ndim == 0:
                images.append(self[key][0])
                continue
            # torchvision draws from torch's global generator, so lend it one for this image
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(mix(self.seed, key[0])) >> 1)
                images.append(self[key[1]][0])
        index = keys if keys.ndim == 1 else keys[:, 1]
        return torch.stack(images), torch.from_numpy(self.labels[index])
