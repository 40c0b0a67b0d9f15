"""Files of tensors in the safetensors format, written and read in pieces.

`safetensors` itself writes and reads a file whole. Here it gives the order and the names of dtypes,
by files of empty tensors, and each tensor's bytes go to their place one piece after the other.
"""

from __future__ import annotations

import copy
import json
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as make_safetensors
from torch import Tensor

from oltr_ext.engine.pieces import as_bytes, pieces, steps

__all__ = ["TensorFile", "checksum", "write"]

METADATA = "__metadata__"
Put = Callable[[str, memoryview], object]


class _Reader:
    """A file that is open until nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("rb")
        weakref.finalize(self, self.file.close)

    def into(self, place: int, data: memoryview) -> bool:
        """Whether there were as many bytes."""
        self.file.seek(place)
        return self.file.readinto(data) == len(data)


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file, of which each is read, on the CPU, when it is asked for. They are
    those of the file that was opened, also where another takes its place meanwhile.

    Attributes:
        like: tensors of their shapes and dtypes on "meta".
        metadata: of the file.

    Raises:
        ValueError, TypeError, AttributeError, LookupError, RuntimeError, SafetensorError: not such
            a file, or not all of one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._reader = path, _Reader(path)
        file = self._reader.file
        length = file.seek(0, 2)
        file.seek(0)
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= length - 8:
            raise ValueError(f"{length} bytes, with a header of {size}")
        header = json.loads(file.read(size))
        self.metadata: dict[str, str] = header.pop(METADATA, {})
        hollow = {
            name: {"dtype": entry["dtype"], "shape": [0], "data_offsets": [0, 0]}
            for name, entry in header.items()
        }
        dtypes = parse_safetensors(_with_size(json.dumps(hollow).encode()))
        self.like: dict[str, Tensor] = {
            name: torch.empty(entry["shape"], dtype=dtypes[name].dtype, device="meta")
            for name, entry in header.items()
        }
        self._places = {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items()}
        end = 8 + size
        for name in sorted(header, key=lambda name: tuple(header[name]["data_offsets"])):
            begin, stop = (8 + size + offset for offset in header[name]["data_offsets"])
            if begin != end or stop - begin != self.like[name].nbytes:
                raise ValueError(f"{name} is not where it should be")
            end = stop
        if end != length:
            raise ValueError(f"{length} bytes where {end} were expected")

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __contains__(self, name: object) -> bool:  # a Mapping would read it
        return name in self.like

    def __len__(self) -> int:
        return len(self.like)

    def __getitem__(self, name: str) -> Tensor:
        whole = torch.empty_like(self.like[name], device="cpu")
        self.into(name, whole)
        return whole

    def named(self, names: Mapping[str, str]) -> TensorFile:
        """Some of the tensors, by their names here, under others."""
        view = copy.copy(self)
        view.like = {new: self.like[name] for name, new in names.items()}
        view._places = {new: self._places[name] for name, new in names.items()}
        return view

    def pieces(self, name: str, first: int = 0, last: int | None = None) -> Iterator[Tensor]:
        """Rows from `first` to `last`, as `oltr_ext.engine.pieces.pieces` gives them.

        Raises:
            ValueError: the file is cut off by now.
        """
        like = self.like[name]
        row = like.nbytes // max(1, len(like)) if like.dim() else like.nbytes
        for start, stop in steps(like, first, last):
            piece = torch.empty(stop - start, *like.shape[1:], dtype=like.dtype, device="cpu")
            if not self._reader.into(self._places[name] + start * row, as_bytes(piece)):
                raise ValueError(f"{self.path} was cut off while it was read")
            yield piece

    def into(self, name: str, target: Tensor, first: int = 0) -> None:
        """Fill a tensor (N, ...), of any device, strides and floating dtype, from row `first`."""
        rows = target.reshape(1) if target.dim() == 0 else target
        start = 0
        for piece in self.pieces(name, first, first + len(rows)):
            rows[start : start + len(piece)].copy_(piece)
            start += len(piece)


def checksum(text: str, tensors: Mapping[str, Tensor], put: Put = lambda *_: None) -> int:
    """Of a text and of tensors' names, dtypes, shapes and bytes, in the order of the names. Where
    processes share tensors, every process calls it, and process 0 gets what it is.

    Args:
        put: gets names and bytes, piece by piece.
    """
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        if isinstance(tensors, TensorFile):
            like, parts = tensors.like[name], tensors.pieces(name)
        else:
            like, parts = tensors[name], pieces(tensors[name])
        crc = zlib.crc32(f"{name} {like.dtype} {tuple(like.shape)}".encode(), crc)
        for piece in parts:
            data = as_bytes(piece)
            crc = zlib.crc32(data, crc)
            put(name, data)
    return crc


def write(
    file: BinaryIO, tensors: Mapping[str, Tensor], text: str, key: str, say: Callable[[int], str]
) -> None:
    """The bytes that `safetensors` would write, with one entry of metadata, which goes last.

    Args:
        text: what the checksum begins with.
        say: the checksum to that entry, always as long.
    """
    hollow = {name: torch.empty(0, dtype=t.dtype, device="cpu") for name, t in tensors.items()}
    made = make_safetensors(hollow, metadata={key: say(0)})
    header: dict[str, Any] = json.loads(made[8 : 8 + int.from_bytes(made[:8], "little")])
    places, end = {}, 0
    for name, entry in header.items():
        if name != METADATA:
            size = tensors[name].numel() * tensors[name].dtype.itemsize
            places[name] = end
            entry |= {"shape": list(tensors[name].shape), "data_offsets": [end, end + size]}
            end += size
    begin = len(_spelt(header))

    def put(name: str, data: memoryview) -> None:
        file.seek(begin + places[name])
        file.write(data)
        places[name] += len(data)

    header[METADATA][key] = say(checksum(text, tensors, put))
    file.seek(0)
    file.write(_spelt(header))


def _spelt(header: Mapping[str, Any]) -> bytes:
    """As `safetensors` writes it: without spaces, to a whole number of words."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return _with_size(text + b" " * (-len(text) % 8))


def _with_size(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header
