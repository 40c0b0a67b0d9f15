"""Embeddings: features made once, kept as plain .npy files and read as memory maps.

A folder holds `<split>_features.npy` (N, D) and `<split>_labels.npy` (N,) for each split, and
`manifest.json`, which is written last: a folder without one is not whole.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from oltr_ext._words import counted

__all__ = [
    "EmbeddingFolder",
    "Embeddings",
    "Manifest",
    "Part",
    "check_labels",
    "labels_crc",
    "read_embeddings",
    "read_manifest",
]

NEEDED, STRANGERS = ("train", "val", "test"), ("open_val", "open_test")
SPLITS = (*NEEDED, *STRANGERS)
MANIFEST, PARTIAL = "manifest.json", ".manifest.json.partial"
Count = Annotated[int, Field(ge=1)]
Ints = NDArray[np.int64]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: Count
    labels_crc32: str
    features_crc32: str | None = None  # of the rows; none while they are written, nor in old files


class Manifest(BaseModel):
    """What a folder holds; the fields of `write_embeddings`."""

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    dtype: Literal["float32", "float16"]
    width: Count
    class_names: Annotated[list[str], Field(min_length=1)]
    splits: dict[Literal["train", "val", "test", "open_val", "open_test"], Part]
    test_ids: list[str] | None
    open_names: list[str] | None
    open_sets: list[str] | None = None
    source: dict[str, Any] | None

    def text(self) -> bytes:
        """As the file holds it; what only some have is left out, for earlier versions."""
        without = {"open_sets"} if self.open_sets is None else set()
        return self.model_dump_json(indent=1, exclude=without).encode()


def labels_crc(labels: Ints) -> str:
    return f"{zlib.crc32(labels.data):08x}"


@dataclass
class EmbeddingFolder:
    """What `read_embeddings` found: the arguments of `write_embeddings` again."""

    splits: dict[str, Embeddings]
    class_names: list[str]
    width: int
    test_ids: list[str] | None
    open_names: list[str] | None
    open_sets: list[str] | None
    source: dict[str, Any] | None


def read_embeddings(folder: str | Path) -> EmbeddingFolder:
    """Open a folder of embeddings; only the labels are read into memory.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: a writing that was not finished, a file that is truncated, or files, labels and
            manifest that do not fit one another.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        if (folder / PARTIAL).exists():
            raise ValueError(f"{folder} is not finished: run what writes it again")
        raise FileNotFoundError(f"no embeddings in {folder}: it has no {MANIFEST}")
    manifest = read_manifest(folder / MANIFEST)
    missing = [name for name in NEEDED if name not in manifest.splits]
    if missing:
        raise ValueError(f"{folder / MANIFEST}: expected a split {missing[0]}")
    splits = {}
    for name, part in manifest.splits.items():
        file = folder / f"{name}_labels.npy"
        labels = np.array(_open(file, np.dtype(np.int64), (part.rows,)))
        if labels_crc(labels) != part.labels_crc32:
            raise ValueError(f"{file} is not what {MANIFEST} describes: its checksum differs")
        check_labels(name, labels, len(manifest.class_names), str(folder))
        shape = (part.rows, manifest.width)
        splits[str(name)] = Embeddings(
            folder / f"{name}_features.npy",
            labels,
            np.dtype(manifest.dtype),
            shape,
            part.features_crc32,
        )
    return EmbeddingFolder(
        splits,
        manifest.class_names,
        manifest.width,
        manifest.test_ids,
        manifest.open_names,
        manifest.open_sets,
        manifest.source,
    )


def read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no manifest of embeddings: {where}: {first['msg']}") from None


def _open(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is truncated or damaged: {error}") from None
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(
            f"{path}: the manifest says {dtype.name} {shape}, the file holds "
            f"{array.dtype.name} {array.shape}"
        )
    return np.asarray(array)  # a plain view of the map: gathering rows through memmap is slower


def check_labels(name: str, labels: Ints, classes: int, where: str) -> None:
    low = 0 if name == "train" else -1
    wrong = np.flatnonzero((labels < low) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{where}: label {labels[wrong[0]]} of {name}, row {wrong[0]}, is out of range: "
            f"there are {counted(classes, 'class')}, {low} to {classes - 1}"
        )
    if name == "val" and (labels < 0).all():
        raise ValueError(f"{where}: val holds no image of a known class")


class Embeddings(Dataset[tuple[Tensor, int]]):
    """Features of one split: rows of a memory map, given as (B, D, 1, 1) like a backbone's maps.

    Args:
        file: .npy of features (N, D).
        labels: (N,), -1 for open images.
        dtype, shape: what the file must hold.
        checksum: of its rows, where known; not compared with them.

    Attributes:
        names: N true names, "" where not known; None where none is.

    Raises:
        FileNotFoundError: no such file. ValueError: it is truncated or holds something else; on
            reading, a row that is not finite.
    """

    seed, augment = 0, None  # nothing here is random

    def __init__(
        self,
        file: Path,
        labels: Ints,
        dtype: np.dtype[Any],
        shape: tuple[int, int],
        checksum: str | None = None,
    ) -> None:
        self.file, self.labels, self.dtype, self.shape = file, labels, dtype, shape
        self.checksum = checksum
        self.names: list[str] | None = None
        self.features = _open(file, dtype, shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "features": None}  # a map must not travel to a loader process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.features = _open(self.file, self.dtype, self.shape)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        rows, labels = self.__getitems__(np.array([int(index)]))
        return rows[0], int(labels[0])

    def __getitems__(self, keys: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Batch: features (B, D, 1, 1) float32 and labels (B,) for rows of (position, index), or
        indices."""
        index = keys if keys.ndim == 1 else keys[:, 1]
        rows = torch.from_numpy(self.features[index]).float()
        finite = np.isfinite(rows.numpy())  # ten times as fast as torch's
        if not finite.all():
            bad = index[int(np.argmin(finite.all(axis=1)))]
            raise ValueError(f"{self.file}: row {bad} is not finite")
        return rows[:, :, None, None], torch.from_numpy(self.labels[index])
