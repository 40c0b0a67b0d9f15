"""Writing embeddings: piece by piece, and on from where an earlier call was interrupted."""

from __future__ import annotations

import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from oltr_ext._files import write_whole
from oltr_ext._words import counted
from oltr_ext.data.embeddings import (
    MANIFEST,
    NEEDED,
    PARTIAL,
    SPLITS,
    STRANGERS,
    Ints,
    Manifest,
    Part,
    check_labels,
    labels_crc,
    read_manifest,
)

__all__ = ["FeatureStream", "OtherEmbeddingsError", "write_embeddings"]

DTYPES = ("float32", "float16")
CHUNK = 4096  # rows of an array copied at a time


class OtherEmbeddingsError(ValueError):
    """A folder holds, or began to hold, other embeddings; their `source`, if they say one."""

    def __init__(self, message: str, source: Mapping[str, Any] | None) -> None:
        super().__init__(message)
        self.source = source


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
    open_sets: Sequence[str] | None = None,
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
        open_sets: of which set each image of "open_test" is, where it is several that are judged
            one by one: "letters", or "near/letters" in a group "near", which is averaged.
        source: JSON-able, how the features were made. With one, a writing that was interrupted
            goes on where it stopped, and one that is done already is left as it is.

    Returns:
        The path of the manifest.

    Raises:
        ValueError: splits, shapes, labels or names that do not fit; a feature that is not finite
            in `dtype`; a folder that holds other embeddings (`OtherEmbeddingsError`), or features
            or labels without a manifest.
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
                f"write_embeddings: label {last} with {counted(len(labels['train']), 'row')} of "
                "train leaves most classes without any; labels count from 0, or give class_names"
            )
        class_names = [f"class {c}" for c in range(last + 1)]
    if len(set(class_names)) < len(class_names):
        raise ValueError("write_embeddings: expected class_names of which no two are the same")
    for name, values in labels.items():
        check_labels(name, values, len(class_names), "write_embeddings")
    strangers = len(labels.get("open_test", ()))
    for what, names, count in (
        ("test_ids", test_ids, len(labels["test"]) + strangers),
        ("open_names", open_names, strangers),
        ("open_sets", open_sets, strangers),
    ):
        if names is not None and len(names) != count:
            raise ValueError(f"write_embeddings: expected {count} {what}, got {len(names)}")
    manifest = Manifest(
        dtype=dtype,  # type: ignore[arg-type]
        width=widths["train"],
        class_names=list(class_names),
        splits={
            n: Part(rows=len(y), labels_crc32=labels_crc(y))  # type: ignore[misc]
            for n, y in labels.items()
        },
        test_ids=None if test_ids is None else list(test_ids),
        open_names=None if open_names is None else list(open_names) or None,
        open_sets=None if open_sets is None else list(open_sets),
        source=None if source is None else json.loads(json.dumps(source)),
    )
    folder = Path(folder)
    done, begun = (_same(folder / name, manifest) for name in (MANIFEST, PARTIAL))
    if not done:
        if not begun:
            folder.mkdir(parents=True, exist_ok=True)
            files = [folder / f"{name}_features.npy" for name in SPLITS]
            targets = [*files, *(folder / f"{name}_labels.npy" for name in SPLITS)]
            if not (folder / PARTIAL).exists() and (there := [f for f in targets if f.exists()]):
                raise ValueError(
                    f"write_embeddings: {there[0]} is there, and no {MANIFEST} tells whose; it "
                    "would be written over: choose another folder"
                )
            for file in files:  # of a writing cut short; its length alone says how far that came
                file.unlink(missing_ok=True)
            write_whole(folder / PARTIAL, manifest.text())
        for name, part in manifest.splits.items():
            header = _header(np.dtype(np.int64), labels[name].shape)
            write_whole(folder / f"{name}_labels.npy", header + labels[name].tobytes())
            file = folder / f"{name}_features.npy"
            part.features_crc32 = _write(file, streams[name], np.dtype(dtype), begun)
        write_whole(folder / PARTIAL, manifest.text())
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
            f"write_embeddings: expected {counted(rows, 'integer label')} of {name}, "
            f"got {labels.dtype} {labels.shape}"
        )
    return np.ascontiguousarray(labels, np.int64)


def _same(path: Path, manifest: Manifest) -> bool:
    """Whether `path` is of the same embeddings, by their source; False too where there is none.

    What an older source did not say is not compared.
    """
    if not path.exists():
        return False
    if manifest.source is None and path.name == PARTIAL:
        return False  # cannot tell whose it is: begin again
    old = read_manifest(path)
    said = old.source
    old.open_names = old.open_names or None  # [] from before there was one way to say none
    for part in old.splits.values():
        part.features_crc32 = None
    if manifest.source is not None and old.source is not None:
        old.source = {**manifest.source, **old.source}
    if manifest.source is None or old != manifest:
        state = "holds" if path.name == MANIFEST else "holds the unfinished writing of"
        raise OtherEmbeddingsError(
            f"{path.parent} {state} other embeddings; choose another folder, or remove it",
            said,
        )
    return True


def _write(path: Path, stream: FeatureStream, dtype: np.dtype[Any], resume: bool) -> str:
    """Append to a .npy file until it is whole; its length says how far an earlier call came.

    Returns:
        The CRC-32 of its rows.
    """
    header, (rows, width) = _header(dtype, stream.shape), stream.shape
    size = path.stat().st_size if resume and path.exists() else 0
    done = min(max(size - len(header), 0) // (width * dtype.itemsize), rows)
    if done < rows:
        done -= done % stream.batch
    crc, row = 0, width * dtype.itemsize
    with path.open("r+b" if size else "w+b") as file:
        file.write(header)
        file.truncate(len(header) + done * row)
        while piece := file.read(CHUNK * row):  # what was there already, up to the end
            crc = zlib.crc32(piece, crc)
        for batch in stream.start(done) if done < rows else ():
            values = _values(path, batch, dtype, width, done)
            file.write(values.data)
            crc = zlib.crc32(values.data, crc)
            done += len(values)
        file.flush()
        os.fsync(file.fileno())
    if done != rows:
        raise ValueError(f"{path}: expected {counted(rows, 'row')}, the stream gave {done}")
    return f"{crc:08x}"


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
