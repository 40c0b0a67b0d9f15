"""A bank of class vectors that passes by in blocks: out of a file, or out of host memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oltr_ext.ops._check import FLOATS
from oltr_ext.ops.streamed.ahead import on_device, read_ahead
from oltr_ext.ops.streamed.files import Place, locate
from oltr_ext.ops.streamed.mapped import forget, leased, mapped

__all__ = ["StreamedBank"]

BLOCK = 1 << 25
"""Bytes of a block that is mapped, large enough that what it costs beside them does not show."""
COPIED = 1 << 23
"""Of one that a thread reads, of which there are three."""


class StreamedBank:
    """Class vectors (C, D) that are read in order, block by block, each time an op asks for them.

    Ops take one in place of the tensor, and give what they give for the tensor. A file is mapped
    while a pass lasts, and what has passed is given back, so that the process holds one block.
    Meanwhile it is under a lease (see `oltr_ext.ops.streamed.mapped`), for a mapped file that
    another process cuts off would end this one. Where the system gives none, and for a GPU, a
    thread reads ahead into three blocks, and a file that was cut off is an error all the same.

    Read-only. Features get gradients, by a second pass; a bank gets none.

    Args:
        source: a .safetensors or .npy file (little-endian, C order), or a tensor (C, D) in host
            memory, pinned where blocks go to a GPU.
        key: of the tensor in a .safetensors file; None: its only matrix.
        device: where ops get blocks. On "cuda", copies to it run beside the computing.
        block: classes a block; None: as many as make 32 MB, 8 where they are
            read by a thread.

    Attributes:
        shape: (C, D).
        dtype: float32, float64, bfloat16 or float16.
        device: of the blocks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file of another kind, truncated or damaged; no such key; an array of other
            dtype, byte order, order of axes or number of dimensions; a tensor of another kind.
    """

    requires_grad = False

    def __init__(
        self,
        source: str | Path | Tensor,
        key: str | None = None,
        *,
        device: str | torch.device = "cpu",
        block: int | None = None,
    ) -> None:
        if block is not None and block < 1:
            raise ValueError(f"StreamedBank: expected a block of at least 1 class, got {block}")
        self.device = torch.device(device)
        self._block = block
        self._rows: Tensor | None = None
        self._tensor: Tensor | None = None
        self._maps = False
        self.path: Path | None = None
        self.key = key
        if isinstance(source, Tensor):
            if source.dim() != 2 or source.device.type != "cpu" or key is not None:
                raise ValueError(
                    "StreamedBank: expected a tensor (C, D) in host memory and no key, got "
                    f"{tuple(source.shape)} on {source.device} and {key!r}"
                )
            if source.dtype not in FLOATS:
                raise ValueError(
                    "StreamedBank: expected float32, float64, bfloat16 or float16, got "
                    f"{source.dtype}"
                )
            if source.requires_grad:
                raise ValueError(f"StreamedBank: {NO_GRADIENT}: detach the tensor")
            self._tensor = source.contiguous()
            self._place = Place(0, (source.shape[0], source.shape[1]), source.dtype)
            return
        self.path = Path(source)
        if not self.path.is_file():
            raise FileNotFoundError(f"StreamedBank: no file {self.path}")
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._place = locate(self.path, self._file, key)
        self._state = self._now()
        aligned = self._place.offset % self.dtype.itemsize == 0
        with leased(self._file) as held:
            self._maps = held is not None and aligned and self.device.type == "cpu"

    @property
    def shape(self) -> torch.Size:
        classes, width = self._place.shape
        return torch.Size((classes if self._rows is None else len(self._rows), width))

    @property
    def dtype(self) -> torch.dtype:
        return self._place.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that a pass reads."""
        classes, width = self._place.shape
        return classes * width * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        what = "a tensor" if self.path is None else str(self.path)
        if self.key is not None:
            what += f": {self.key}"
        return f"StreamedBank({what}, {tuple(self.shape)}, {self.dtype}, device={self.device})"

    def only(self, classes: Tensor) -> StreamedBank:
        """The bank of these classes (K,) int64, in ascending order; a pass still reads all bytes.

        Raises:
            ValueError: not in ascending order, or no classes of this bank.
        """
        classes = classes.cpu()
        fits = classes.dim() == 1 and bool((classes[1:] > classes[:-1]).all())
        if not fits or (len(classes) and not 0 <= int(classes[0]) <= int(classes[-1]) < len(self)):
            raise ValueError(f"StreamedBank.only: expected ascending classes below {len(self)}")
        part = object.__new__(StreamedBank)
        part.__dict__.update(self.__dict__, _whole=self)  # whose end closes the file
        part._rows = classes if self._rows is None else self._rows[classes]
        return part

    def at(self, classes: Tensor) -> Tensor:
        """Rows (K, D) of some classes (K,) int64 in any order, read one by one.

        Raises:
            ValueError: no vector, or a class below 0 or beyond the bank's last.
        """
        if classes.dim() != 1:
            raise ValueError(
                f"StreamedBank.at: expected classes (K,), got shape {tuple(classes.shape)}"
            )
        if ((classes < 0) | (classes >= len(self))).any():
            raise ValueError(
                f"StreamedBank.at: expected classes in [0, {len(self)}), got "
                f"{int(classes.min())} to {int(classes.max())}"
            )
        found = classes.cpu() if self._rows is None else self._rows[classes.cpu()]
        if self._tensor is not None:
            return self._tensor[found].to(self.device)
        out = torch.empty(len(found), self.shape[1], dtype=self.dtype, device="cpu")
        for row, index in zip(out, found.tolist(), strict=True):
            self._read(_bytes(row), index)
        return out.to(self.device)

    @contextmanager
    def blocks(self, block: int | None = None) -> Iterator[Iterator[tuple[int, Tensor]]]:
        """A pass: first class and rows (n, D) of each block, in order. A block's memory is that of
        a later one: it holds until the next is asked for."""
        rows = block or self.block_rows()
        with ExitStack() as stack:
            yield self._pass(rows, stack)

    def block_rows(self) -> int:
        """Classes of a block."""
        row = max(1, self.shape[1] * self.dtype.itemsize)
        return self._block or max(1, (BLOCK if self._maps else COPIED) // row)

    def _pass(self, rows: int, stack: ExitStack) -> Iterator[tuple[int, Tensor]]:
        starts = range(0, self._place.shape[0], rows)
        whole: Iterator[Tensor]
        if self._tensor is not None:
            tensor = self._tensor
            whole = (tensor[start : start + rows] for start in starts)
        else:
            held = stack.enter_context(leased(self._file))
            self._unchanged()
            if held is not None and self._maps and self.nbytes:
                whole = self._mapped(starts, rows, held)
            else:
                whole = self._copied(starts, rows, stack)
        selected = self._selected(zip(starts, whole, strict=True))
        for start, part in on_device(selected, self.device):
            if len(part):
                yield start, part
        if self._tensor is None:
            self._unchanged()

    def _mapped(self, starts: range, rows: int, held: Callable[[], bool]) -> Iterator[Tensor]:
        """Blocks where they lie in the file."""
        tensor = mapped(self._file, *self._place)
        for start in starts:
            if not held():
                raise ValueError(
                    f"{self.path}: expected the file as it was opened while it is in use, got "
                    "someone who writes to it"
                )
            part = tensor[start : start + rows]
            yield part
            forget(part)

    def _copied(self, starts: range, rows: int, stack: ExitStack) -> Iterator[Tensor]:
        """Blocks that a thread reads ahead."""
        classes, width = self._place.shape
        shape, pinned = (min(rows, classes), width), self.device.type == "cuda"
        buffers = [
            torch.empty(shape, dtype=self.dtype, device="cpu", pin_memory=pinned) for _ in range(3)
        ]

        def fill(number: int, buffer: Tensor) -> Tensor:
            start = starts[number]
            part = buffer[: min(rows, classes - start)]
            self._read(_bytes(part), start)
            return part

        return read_ahead(len(starts), fill, buffers, self.device, stack)

    def _selected(self, blocks: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """Where only some classes are asked for: these of each block, counted among them."""
        for start, part in blocks:
            if self._rows is None:
                yield start, part
                continue
            bounds = torch.tensor([start, start + len(part)], device="cpu")
            first, last = torch.searchsorted(self._rows, bounds).tolist()
            yield first, part[self._rows[first:last] - start]

    def _read(self, out: memoryview, start: int) -> None:
        offset = self._place.offset + start * self.shape[1] * self.dtype.itemsize
        done = 0
        while done < len(out):
            count = os.preadv(self._file, [out[done:]], offset + done)
            if count == 0:
                raise ValueError(
                    f"{self.path}: expected {len(out):,} bytes from {offset:,} on, got {done:,}: "
                    "it was cut off while in use"
                )
            done += count

    def _now(self) -> tuple[int, int]:
        found = os.fstat(self._file)
        return found.st_size, found.st_mtime_ns

    def _unchanged(self) -> None:
        now = self._now()
        if now != self._state:
            raise ValueError(
                f"{self.path}: expected the file as it was opened, of {self._state[0]:,} bytes, "
                f"got one of {now[0]:,} that was written to since: open it anew"
            )

    def __reduce__(self) -> Any:
        raise TypeError("StreamedBank: cannot be pickled or copied; open its file anew")


@contextmanager
def blocks_of(bank: Tensor | StreamedBank, rows: int) -> Iterator[Iterator[tuple[int, Tensor]]]:
    """First class and rows of each block of a bank, wherever it is.

    Args:
        rows: of a block of a tensor; a streamed bank has its own.
    """
    if isinstance(bank, StreamedBank):
        with bank.blocks() as blocks:
            yield blocks
    else:
        yield ((start, bank[start : start + rows]) for start in range(0, len(bank), rows))


NO_GRADIENT = "a streamed bank is read-only and gets no gradient"


def _bytes(t: Tensor) -> memoryview:
    return memoryview(t.view(torch.uint8).numpy().reshape(-1).data)


def rows_of(bank: Any, classes: Tensor) -> Any:
    """Some classes (K,) int64 of a tensor, or of a streamed bank, which are in ascending order."""
    return bank.only(classes) if isinstance(bank, StreamedBank) else bank[classes]


@contextmanager
def together(banks: Sequence[StreamedBank]) -> Iterator[Iterator[tuple[int, tuple[Tensor, ...]]]]:
    """A pass over banks of the same classes side by side, in the same blocks."""
    rows = min(bank.block_rows() for bank in banks)
    with ExitStack() as stack:
        passes = [stack.enter_context(bank.blocks(rows)) for bank in banks]
        yield (
            (parts[0][0], tuple(part for _, part in parts)) for parts in zip(*passes, strict=True)
        )
