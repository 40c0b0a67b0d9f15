"""Tensors in pieces of bounded size: of those whose rows processes share, none is ever whole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from oltr_ext.engine import distributed
from oltr_ext.nn.layout import is_dtensor
from oltr_ext.ops import Shard

__all__ = ["PIECE", "as_bytes", "first_here", "from_lead", "here", "pieces", "steps"]

PIECE = 1 << 26
"""Bytes of a piece; of a row that is longer, the row."""


def here(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, to be read or written in place."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local.detach()


def first_here(tensor: Tensor) -> int:
    """Which row of the whole the first of `here` is."""
    if not is_dtensor(tensor):
        return 0
    mesh = tensor.device_mesh  # type: ignore[attr-defined]
    return Shard.cut(len(tensor), mesh.size(), mesh.get_local_rank())[0]


def steps(like: Tensor, first: int = 0, last: int | None = None) -> Iterator[tuple[int, int]]:
    """First rows of pieces of a tensor, from `first` to `last`, and those after their last; of one
    without dimensions, that of its number."""
    if like.dim() == 0:
        yield 0, 1
        return
    last = len(like) if last is None else last
    row = like.shape[1:].numel() * like.dtype.itemsize
    size = max(1, PIECE // max(1, row))
    for start in range(first, last, size):
        yield start, min(last, start + size)


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """Contiguous pieces (rows, ...) on the CPU, in order. Of a tensor whose rows processes share,
    each of them iterates over it, and process 0 alone gets the pieces: it is sent those of the
    others, one at a time."""
    if not is_dtensor(tensor):
        rows = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
        for first, last in steps(tensor):
            yield rows[first:last].cpu().contiguous()
        return
    members = tensor.device_mesh.mesh.tolist()  # type: ignore[attr-defined]
    if 0 not in members:  # who has the same classes as one of these
        return
    local, me = here(tensor), distributed.rank()
    for number, owner in enumerate(members):
        start, stop = Shard.cut(len(tensor), len(members), number)
        for first, last in steps(tensor, start, stop):
            if owner == me:
                piece = local[first - start : last - start].cpu().contiguous()
                if me != 0:
                    dist.send(_flat(piece), 0)
            elif me == 0:
                piece = torch.empty(last - first, *tensor.shape[1:], dtype=tensor.dtype)
                dist.recv(_flat(piece), owner)
            if me == 0:
                yield piece


def as_bytes(piece: Tensor) -> memoryview:
    """Of a contiguous tensor on the CPU, to be read or written."""
    return _flat(piece).numpy().data


def from_lead(text: str) -> str:
    """What process 0 has to say, in every process."""
    if distributed.world() == 1:
        return text
    said = text.encode()
    size = torch.tensor(len(said))
    dist.broadcast(size, 0)
    data = torch.empty(int(size), dtype=torch.uint8)
    if distributed.lead():
        as_bytes(data)[:] = said
    dist.broadcast(data, 0)
    return bytes(as_bytes(data)).decode()


def _flat(piece: Tensor) -> Tensor:
    return piece.reshape(-1).view(torch.uint8)
