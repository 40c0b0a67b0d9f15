"""A pack: one .npz file with all images of a long-tailed data set, its open classes and its splits.

The larger real data sets of the package are packs, rendered on request into a cache folder (see
`oltr_ext.data.make`); a file of your own in the same format is read by its path. The arrays:

    images        (N, S, S) uint8 grey, or (N, S, S, 3) RGB; squares of at least 8 pixels a side
    class_index   (N,) integer, position in class_names
    split_index   (N,) integer, position in SPLITS
    source_index  (N,) integer, position in source_names: who drew the image
    class_names   (C,) str, the known classes first
    source_names  (S,) str
    about         () str, free text: how the file came about; may be missing

Grey ones of the package are ink bright on black, and so is what `predict` gives their models of any
image, inverted where its border is light. A model of another pack gets the image as it is, in the
pack's size and colours: it should look like the pack's.

The known classes are those of training, validation and test; all others are open.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._files import written

__all__ = ["MADE_BY", "SPLITS", "Pack", "cache_folder", "load_pack", "rank", "save_pack"]

SIZE = 32  # S of the package's own
SMALLEST = 8
SPLITS = ("train", "val", "test", "open_val", "open_test")
MADE_BY = {"glyphs-2000": "glyphs", "glyphs-18000": "glyphs", "icons-large": "icons-large"}
"""Packs of the package, and what `oltr data make` is told to make each."""

ARRAYS = ("images", "class_index", "split_index", "source_index", "class_names", "source_names")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pack:
    """N images with their classes, splits and sources, checked to hold together.

    Args:
        images: (N, S, S) uint8, grey, or (N, S, S, 3), RGB.
        class_index: (N,) int, position in `class_names`; from `num_known` on the class is open.
        split_index: (N,) int, position in `SPLITS`.
        source_index: (N,) int, position in `source_names`.
        class_names: the known classes first.
        source_names: who drew the images: faces, icon sets.
        about: how the data came about.

    Raises:
        ValueError: shapes or dtypes that do not fit, an index beyond its names, an empty split
            among train, val and test, a class that is both known and open or both open_val and
            open_test, or a known class without a training image.
    """

    images: NDArray[np.uint8]
    class_index: Ints
    split_index: Ints
    source_index: Ints
    class_names: list[str]
    source_names: list[str]
    about: str = ""

    def __post_init__(self) -> None:
        shape = self.images.shape
        square = len(shape) in (3, 4) and shape[1] == shape[2] >= SMALLEST
        if self.images.dtype != np.uint8 or not square or shape[3:] not in ((), (3,)):
            raise ValueError(
                f"expected images (N, S, S) or (N, S, S, 3) of uint8, S at least {SMALLEST}, got "
                f"{shape} of {self.images.dtype}"
            )
        limits = {
            "class_index": len(self.class_names),
            "split_index": len(SPLITS),
            "source_index": len(self.source_names),
        }
        for name, limit in limits.items():
            index = getattr(self, name)
            if index.shape != shape[:1] or index.dtype.kind not in "iu":
                raise ValueError(
                    f"expected {name} of {shape[0]} integers, got {index.shape} of {index.dtype}"
                )
            if len(index) and not 0 <= index.min() <= index.max() < limit:
                raise ValueError(
                    f"expected {name} from 0 to {limit - 1}, got {index.min()} to {index.max()}"
                )
        for name in SPLITS[:3]:
            if not len(self.rows(name)):
                raise ValueError(f"there is no {name} image")
        if len(set(self.class_names)) < len(self.class_names):
            raise ValueError("expected class_names of which no two are the same")
        self._check_classes({s: set(self.class_index[self.rows(s)].tolist()) for s in SPLITS})

    def _check_classes(self, seen: dict[str, set[int]]) -> None:
        pairs = [(s, o) for s in SPLITS[:3] for o in SPLITS[3:]] + [("open_val", "open_test")]
        for one, other in pairs:
            for label in sorted(seen[one] & seen[other]):
                raise ValueError(
                    f"class {self.class_names[label]!r} is in {one} and in {other}: "
                    "the two may share no class"
                )
        for label in range(self.num_known):
            if label not in seen["train"]:
                raise ValueError(
                    f"class {self.class_names[label]!r} has no training image, and known classes "
                    "come first"
                )

    @property
    def num_known(self) -> int:
        known = self.class_index[self.split_index < 3]
        return int(known.max()) + 1

    @property
    def size(self) -> int:
        """S, pixels a side."""
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB."""
        return 1 if self.images.ndim == 3 else 3

    @property
    def known_names(self) -> list[str]:
        """Names of labels 0 to num_known - 1."""
        return self.class_names[: self.num_known]

    @property
    def train_counts(self) -> Tensor:
        """(num_known,) int64, training images of each known class."""
        return torch.from_numpy(
            np.bincount(self.class_index[self.rows("train")], minlength=self.num_known)
        )

    def rows(self, name: str) -> Ints:
        """(n,) positions of one split. Raises ValueError for a name not in ``SPLITS``."""
        if name not in SPLITS:
            raise ValueError(f"expected a split of {', '.join(SPLITS)}, got {name!r}")
        return np.flatnonzero(self.split_index == SPLITS.index(name))

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images (n, channels, S, S) uint8, labels (n,) int64 of a split; open classes are -1."""
        rows = self.rows(name)
        label = self.class_index[rows].astype(np.int64)
        label = np.where(label < self.num_known, label, -1)
        images = torch.from_numpy(self.images[rows])
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return images.contiguous(), torch.from_numpy(label)

    def image_id(self, row: int) -> str:
        """Name of an image for readers: its source, and what it shows."""
        label, source = self.class_index[row], self.source_index[row]
        return f"{self.source_names[source]}:{self.class_names[label]}"


def rank(*words: str) -> str:
    """Order that looks random and never changes."""
    return hashlib.sha256(":".join(words).encode()).hexdigest()


def cache_folder() -> Path:
    """Where packs and downloads are kept: ``$OLTR_EXT_CACHE``, else ``~/.cache/oltr_ext``.

    Raises:
        RuntimeError: neither it nor a home folder is there.
    """
    named = os.environ.get("OLTR_EXT_CACHE")
    try:
        return Path(named).expanduser() if named else Path.home() / ".cache" / "oltr_ext"
    except RuntimeError:  # a user that the system does not know, as in a container
        raise RuntimeError(
            "there is no home folder for the cache: set OLTR_EXT_CACHE to a folder"
        ) from None


def save_pack(path: str | Path, pack: Pack) -> None:
    """Write `path` so that at any moment it is either the old file or the whole new one.

    Equal packs give equal bytes: the zip entries carry no time.
    """
    arrays: dict[str, Any] = {name: np.asarray(getattr(pack, name)) for name in ARRAYS}
    with written(Path(path)) as file:
        np.savez(file, about=np.array(pack.about), **arrays)


def load_pack(name: str) -> Pack:
    """Read a pack of the package by its name (see `MADE_BY`), or one of your own by its path.

    Raises:
        FileNotFoundError: it has not been made yet (the message says how), or no such file.
        ValueError: truncated, damaged, or not a pack; the message says what does not hold.
    """
    again = ""
    path = Path(name)
    if name in MADE_BY:
        path = cache_folder() / f"{name}.npz"
        again = f"; make it: oltr data make {MADE_BY[name]}"
    if not path.is_file():
        known = "" if again else f"; packs of the package: {', '.join(MADE_BY)}"
        raise FileNotFoundError(f"no pack {path}{again or known}")
    try:
        with np.load(path, allow_pickle=False) as file:  # reading to the end checks each CRC
            missing = [key for key in ARRAYS if key not in file.files]
            if missing:
                raise ValueError(f"it has no array {', '.join(missing)}")
            arrays: dict[str, Any] = {key: file[key] for key in ARRAYS}
            about = str(file["about"]) if "about" in file.files else ""
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}{again}") from None
    except (ValueError, TypeError, AttributeError) as error:  # the last two: a bare .npy
        raise ValueError(f"{path} is no pack: {error}{again}") from None
    names: dict[str, Any] = {
        key: [str(n) for n in np.atleast_1d(arrays.pop(key))] for key in ARRAYS[4:]
    }
    try:
        return Pack(**arrays, **names, about=about)
    except ValueError as error:
        raise ValueError(f"{path}: {error}{again}") from None
