"""Embeddings: features made once, kept as plain .npy files and read as memory maps.

A folder holds `<split>_features.npy` (N, D) and `<split>_labels.npy` (N,) for each split, and
`manifest.json`, which is written last: a folder without one is not whole.
"""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils.data import Dataset

__all__ = [
    "EmbeddingFolder",
    "Embeddings",
    "FeatureStream",
    "read_embeddings",
    "write_embeddings",
]

NEEDED, STRANGERS = ("train", "val", "test"), ("open_val", "open_test")
SPLITS = (*NEEDED, *STRANGERS)
MANIFEST, PARTIAL = "manifest.json", ".manifest.json.partial"
DTYPES = ("float32", "float16")
CHUNK = 4096  # rows of an array copied at a time
Count = Annotated[int, Field(ge=1)]
Ints = NDArray[np.int64]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rows: Count
    labels_crc32: str


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
    source: dict[str, Any] | None


@dataclass(frozen=True)
class FeatureStream:
    """Features (N, D) that are made as they are written.

    Args:
        shape: (N, D).
        start: from a row number to batches (B, D) of that row and all that follow, in order.
        batch: rows that are made together. After an interruption the writing goes on at a whole
            batch, so that the bits are those of a writing without one.
    """

    shape: tuple[int, int]
    start: Callable[[int], Iterable[ArrayLike]]
    batch: int = 1


def write_embeddings(
    folder: str | Path,
    splits: Mapping[str, tuple[ArrayLike | FeatureStream, ArrayLike | None]],
    class_names: Sequence[str] | None = None,
    *,
    dtype: str = "float32",
    test_ids: Sequence[str] | None = None,
    open_names: Sequence[str] | None = None,
    source: Mapping[str, Any] | None = None,
) -> Path:
    """Write features as a folder that `data: {kind: embeddings, root: FOLDER}` trains on.

    Features are copied piece by piece, so a memory map or a `FeatureStream` of any length will do.

    Args:
        splits: (features (N, D), labels (N,)) under "train", "val", "test" and, where there are
            images of open classes, "open_val" and "open_test", whose labels are not looked at and
            may be None. Labels count from 0; in "val" and "test" -1 is an open image too.
        class_names: of labels 0, 1, ...; default "class 0" and so on to the largest of "train".
        dtype: of the files, "float32" or "float16".
        test_ids: what to call each image of "test", then of "open_test".
        open_names: true name of each image of "open_test".
        source: JSON-able, how the features were made. With one, a writing that was interrupted
            goes on where it stopped, and one that is done already is left as it is.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: splits, shapes, labels or names that do not fit; a feature that is not finite
            in `dtype`; a folder that holds other embeddings.
    """
    if not set(NEEDED) <= set(splits) <= set(SPLITS):
        raise ValueError(
            f"write_embeddings: expected splits {', '.join(NEEDED)} and perhaps "
            f"{', '.join(STRANGERS)}, got {', '.join(splits) or 'none'}"
        )
    if dtype not in DTYPES:
        raise ValueError(f"write_embeddings: expected dtype {' or '.join(DTYPES)}, got {dtype!r}")
    streams = {name: _stream(name, features) for name, (features, _) in splits.items()}
    labels = {name: _labels(name, streams[name].shape[0], y) for name, (_, y) in splits.items()}
    widths = {name: stream.shape[1] for name, stream in streams.items()}
    if len(set(widths.values())) != 1:
        raise ValueError(f"write_embeddings: expected features of one width, got {widths}")
    if class_names is None:
        last = int(labels["train"].max())
        if last >= len(labels["train"]):
            raise ValueError(
                f"write_embeddings: label {last} with {len(labels['train'])} rows of train leaves "
                "most classes without any; labels count from 0, or give class_names"
            )
        class_names = [f"class {c}" for c in range(last + 1)]
    if len(set(class_names)) < len(class_names):
        raise ValueError("write_embeddings: expected class_names of which no two are the same")
    for name, values in labels.items():
        _check_labels(name, values, len(class_names), "write_embeddings")
    strangers = len(labels.get("open_test", ()))
    for what, names, count in (
        ("test_ids", test_ids, len(labels["test"]) + strangers),
        ("open_names", open_names, strangers),
    ):
        if names is not None and len(names) != count:
            raise ValueError(f"write_embeddings: expected {count} {what}, got {len(names)}")
    manifest = Manifest(
        dtype=dtype,  # type: ignore[arg-type]
        width=widths["train"],
        class_names=list(class_names),
        splits={
            n: Part(rows=len(y), labels_crc32=_crc(y))  # type: ignore[misc]
            for n, y in labels.items()
        },
        test_ids=None if test_ids is None else list(test_ids),
        open_names=None if open_names is None else list(open_names),
        source=None if source is None else json.loads(json.dumps(source)),
    )
    folder = Path(folder)
    done, begun = (_same(folder / name, manifest) for name in (MANIFEST, PARTIAL))
    if not done:
        if not begun:
            folder.mkdir(parents=True, exist_ok=True)
            for name in SPLITS:  # whosever: a file's length alone says how far a writing came
                (folder / f"{name}_features.npy").unlink(missing_ok=True)
            _replace(folder / PARTIAL, manifest.model_dump_json(indent=1).encode())
        for name, stream in streams.items():
            header = _header(np.dtype(np.int64), labels[name].shape)
            _replace(folder / f"{name}_labels.npy", header + labels[name].tobytes())
            _write(folder / f"{name}_features.npy", stream, np.dtype(dtype), begun)
        os.replace(folder / PARTIAL, folder / MANIFEST)
    return folder / MANIFEST


def _stream(name: str, features: ArrayLike | FeatureStream) -> FeatureStream:
    if isinstance(features, FeatureStream):
        return features
    array = features if torch.is_tensor(features) else np.asarray(features)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"write_embeddings: expected {name} features (N, D), got shape {tuple(array.shape)}"
        )

    def start(row: int) -> Iterator[ArrayLike]:
        return (array[n : n + CHUNK] for n in range(row, len(array), CHUNK))

    return FeatureStream(tuple(array.shape), start)


def _labels(name: str, rows: int, values: ArrayLike | None) -> Ints:
    if name in STRANGERS:
        return np.full(rows, -1, np.int64)  # whatever they are called where they come from
    labels = np.asarray(values)
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise ValueError(
            f"write_embeddings: expected {rows} integer labels of {name}, "
            f"got {labels.dtype} {labels.shape}"
        )
    return np.ascontiguousarray(labels, np.int64)


def _check_labels(name: str, labels: Ints, classes: int, where: str) -> None:
    low = 0 if name == "train" else -1
    wrong = np.flatnonzero((labels < low) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{where}: label {labels[wrong[0]]} of {name}, row {wrong[0]}, is out of range: "
            f"there are {classes} classes, {low} to {classes - 1}"
        )
    if name == "val" and (labels < 0).all():
        raise ValueError(f"{where}: val holds no image of a known class")


def _same(path: Path, manifest: Manifest) -> bool:
    """Whether `path` is of the same embeddings, by their source; False too where there is none."""
    if not path.exists():
        return False
    if manifest.source is None and path.name == PARTIAL:
        return False  # cannot tell whose it is: begin again
    if manifest.source is None or _read_manifest(path) != manifest:
        state = "holds" if path.name == MANIFEST else "holds the unfinished writing of"
        raise ValueError(
            f"{path.parent} {state} other embeddings; choose another folder, or remove it"
        )
    return True


def _write(path: Path, stream: FeatureStream, dtype: np.dtype[Any], resume: bool) -> None:
    """Append to a .npy file until it is whole; its length says how far an earlier call came."""
    header, (rows, width) = _header(dtype, stream.shape), stream.shape
    size = path.stat().st_size if resume and path.exists() else 0
    done = min(max(size - len(header), 0) // (width * dtype.itemsize), rows)
    if done < rows:
        done -= done % stream.batch
    with path.open("r+b" if size else "wb") as file:
        file.write(header)
        file.truncate(len(header) + done * width * dtype.itemsize)
        file.seek(0, os.SEEK_END)
        for batch in stream.start(done) if done < rows else ():
            file.write(_values(path, batch, dtype, width, done).data)
            done += len(batch)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())
    if done != rows:
        raise ValueError(f"{path}: expected {rows} rows, the stream gave {done}")


def _values(
    path: Path, batch: ArrayLike, dtype: np.dtype[Any], width: int, first: int
) -> NDArray[Any]:
    if torch.is_tensor(batch):
        batch = batch.detach().float().cpu().numpy()
    with np.errstate(over="ignore"):  # too large for float16 is infinite, and told below
        values = np.ascontiguousarray(batch, dtype)
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{path}: expected features (B, {width}), got shape {values.shape}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{path}: row {first + int(np.argmin(finite))} is not finite as {dtype.name}"
        )
    return values


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.tmp")
    partial.write_bytes(content)
    os.replace(partial, path)


def _crc(labels: Ints) -> str:
    return f"{zlib.crc32(labels.data):08x}"


@dataclass
class EmbeddingFolder:
    """What `read_embeddings` found: the arguments of `write_embeddings` again."""

    splits: dict[str, Embeddings]
    class_names: list[str]
    width: int
    test_ids: list[str] | None
    open_names: list[str] | None
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
    manifest = _read_manifest(folder / MANIFEST)
    missing = [name for name in NEEDED if name not in manifest.splits]
    if missing:
        raise ValueError(f"{folder / MANIFEST}: expected a split {missing[0]}")
    splits = {}
    for name, part in manifest.splits.items():
        file = folder / f"{name}_labels.npy"
        labels = np.array(_open(file, np.dtype(np.int64), (part.rows,)))
        if _crc(labels) != part.labels_crc32:
            raise ValueError(f"{file} is not what {MANIFEST} describes: its checksum differs")
        _check_labels(name, labels, len(manifest.class_names), str(folder))
        shape = (part.rows, manifest.width)
        splits[str(name)] = Embeddings(
            folder / f"{name}_features.npy", labels, np.dtype(manifest.dtype), shape
        )
    return EmbeddingFolder(
        splits,
        manifest.class_names,
        manifest.width,
        manifest.test_ids,
        manifest.open_names,
        manifest.source,
    )


def _read_manifest(path: Path) -> Manifest:
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


class Embeddings(Dataset[tuple[Tensor, int]]):
    """Features of one split: rows of a memory map, given as (B, D, 1, 1) like a backbone's maps.

    Args:
        file: .npy of features (N, D).
        labels: (N,), -1 for open images.
        dtype, shape: what the file must hold.

    Raises:
        FileNotFoundError: no such file. ValueError: it is truncated or holds something else; on
            reading, a row that is not finite.
    """

    seed = 0  # nothing here is random

    def __init__(
        self, file: Path, labels: Ints, dtype: np.dtype[Any], shape: tuple[int, int]
    ) -> None:
        self.file, self.labels, self.dtype, self.shape = file, labels, dtype, shape
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
