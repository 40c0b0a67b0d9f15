"""Where in a file a matrix lies: tensors of safetensors, arrays of .npy."""

from __future__ import annotations

import ast
import json
import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
NPY = {"f8": torch.float64, "f4": torch.float32, "f2": torch.float16}
LONGEST = 100_000_000
"""Bytes of a header, as the safetensors library has it."""


class Place(NamedTuple):
    """Of a matrix in a file."""

    offset: int
    shape: tuple[int, int]
    dtype: torch.dtype


def locate(path: Path, descriptor: int, key: str | None) -> Place:
    """Where the matrix lies.

    Raises:
        ValueError: a file of another kind, cut off or damaged; an array of another dtype, byte
            order, order of axes or number of dimensions; no such key, or several and none named.
    """
    size = os.fstat(descriptor).st_size
    head = os.pread(descriptor, 12, 0)
    if head[:6] == b"\x93NUMPY":
        if key is not None:
            raise ValueError(f"{path}: expected no key, for a .npy holds one array, got {key!r}")
        place = _npy(path, descriptor, head)
    elif path.suffix == ".safetensors" or head[8:9] == b"{":
        place = _safetensors(path, descriptor, head, size, key)
    else:
        raise ValueError(f"{path}: expected a .npy or .safetensors file, got another kind")
    end = place.offset + math.prod(place.shape) * place.dtype.itemsize
    if size < end:
        raise ValueError(
            f"{path}: expected {end:,} bytes for {place.shape[0]:,} x {place.shape[1]:,} of "
            f"{place.dtype}, got {size:,}: it is truncated"
        )
    return place


def _npy(path: Path, descriptor: int, head: bytes) -> Place:
    wide = head[6:7] != b"\x01"  # the length is of four bytes since version 2
    begin = 12 if wide else 10
    length = int.from_bytes(head[8:begin], "little")
    text = os.pread(descriptor, min(length, LONGEST), begin)
    try:
        found = ast.literal_eval(text.decode("utf-8" if wide else "latin1"))
        descr, fortran, shape = found["descr"], found["fortran_order"], found["shape"]
    except (ValueError, SyntaxError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected the header of a .npy file, got {error}") from None
    kind = descr[1:] if isinstance(descr, str) else ""
    if kind not in NPY or descr[0] not in "<=|":
        raise ValueError(
            f"{path}: expected little-endian floats of 2, 4 or 8 bytes (<f2, <f4, <f8), got {descr}"
        )
    shape = _matrix(str(path), shape)
    if fortran and min(shape) > 1:
        raise ValueError(
            f"{path}: expected rows one after another (C order), got columns (Fortran order); "
            "write np.ascontiguousarray of it"
        )
    return Place(begin + length, shape, NPY[kind])


def _safetensors(path: Path, descriptor: int, head: bytes, size: int, key: str | None) -> Place:
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
    if not 2 <= length <= min(LONGEST, size - 8):
        raise ValueError(
            f"{path}: expected the header of a safetensors file, got a length of {length:,} in "
            f"{size:,} bytes: it is truncated or damaged"
        )
    try:
        entries = json.loads(os.pread(descriptor, length, 8))
        entries.pop("__metadata__", None)
        matrices = [name for name, entry in entries.items() if len(entry["shape"]) == 2]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a safetensors header, got {error}") from None
    if key is None and len(matrices) != 1:
        raise ValueError(
            f"{path}: expected a key, for it holds {len(matrices)} matrices: "
            f"{', '.join(sorted(matrices))}"
        )
    key = matrices[0] if key is None else key
    if key not in entries:
        raise ValueError(f"{path}: expected a tensor {key!r}, got {', '.join(sorted(entries))}")
    where = f"{path}: {key}"
    try:
        kind, (first, last) = entries[key]["dtype"], entries[key]["data_offsets"]
        shape, bounds = _matrix(where, tuple(entries[key]["shape"])), (first - 0, last - 0)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: expected dtype, shape and offsets, got {error}") from None
    if kind not in SAFETENSORS:
        raise ValueError(f"{where}: expected one of {', '.join(SAFETENSORS)}, got {kind}")
    dtype = SAFETENSORS[kind]
    if not 0 <= bounds[0] <= bounds[1] or bounds[1] - bounds[0] != math.prod(shape) * (
        dtype.itemsize
    ):
        raise ValueError(
            f"{where}: expected {math.prod(shape) * dtype.itemsize:,} bytes for {shape} of {kind}, "
            f"got offsets {bounds}"
        )
    return Place(8 + length + bounds[0], shape, dtype)


def _matrix(where: str, shape: Any) -> tuple[int, int]:
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not whole or len(shape) != 2:
        raise ValueError(f"{where}: expected a matrix (C, D), got shape {shape}")
    return shape[0], shape[1]
