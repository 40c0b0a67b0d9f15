"""What lets a bank grow under those who read it: buffers that double, and a gate for the swap."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from oltr_ext.nn.mark import mark


class Rooms:
    """Buffers twice as long as what they hold, of which tensors are views ``buffer[:n]``.

    Copies of a module begin with none: their tensors are whole, and move once they grow.

    Attributes:
        kept: what was derived from tensors, under names; copies begin without it too.
    """

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}
        self.kept: dict[str, tuple[Any, list[Tensor], Any]] = {}

    def derived(self, name: str, tensors: list[Tensor], make: Callable[[], Any]) -> Any:
        """What `make` gives, made again only where a tensor is another or has changed."""
        state, found = mark(tensors, trained=True), self.kept.get(name)
        if found is None or state is None or found[0] != state:
            found = state, tensors, make()  # with the tensors: while they live, ids are theirs
            self.kept[name] = found
        return found[2]

    def still(self, name: str, tensors: list[Tensor]) -> None:
        """These are other tensors, of which what was derived is the same."""
        if name in self.kept:
            self.kept[name] = mark(tensors, trained=True), tensors, self.kept[name][2]

    def leave(self) -> None:
        """Let go of the buffers: what is there now is whole."""
        self._buffers.clear()

    def drop_changed(self) -> None:
        """Forget what was derived of tensors that have changed since."""
        for name, (state, tensors, _) in list(self.kept.items()):
            if state is None or mark(tensors, trained=True) != state:
                self.kept.pop(name, None)

    def grown(self, key: Any, old: Tensor, rows: Tensor) -> Tensor:
        """Rows (K, ...) behind those of `old` (N, ...), as a tensor (N + K, ...).

        Where the buffer under `key` holds `old` and has room, nothing else is copied; the rows are
        written where `old` does not reach.
        """
        number = len(old) + len(rows)
        buffer = self._buffers.get(key)
        if buffer is None or not _holds(buffer, old) or len(buffer) < number:
            # zeros, for files hold whole buffers
            buffer = old.new_zeros(max(2 * len(old), number), *old.shape[1:])
            buffer[: len(old)] = old
            self._buffers[key] = buffer
        buffer[len(old) : number] = rows
        return buffer[:number]

    def __deepcopy__(self, memo: Any) -> Rooms:
        return Rooms()

    def __reduce__(self) -> tuple[Callable[[], Rooms], tuple[()]]:
        return Rooms, ()


def _holds(buffer: Tensor, part: Tensor) -> bool:
    return (
        buffer.data_ptr() == part.data_ptr()
        and (buffer.dtype, buffer.device) == (part.dtype, part.device)
        and buffer.shape[1:] == part.shape[1:]
        and part.is_contiguous()
    )


class Gate:
    """Any number of readers, or one that swaps what they read. Threads that wait to swap go first;
    a reader may read within reading. Copies are gates of their own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers, self._waiting, self._swapping = 0, 0, False
        self._depth = threading.local()
        self._changing = threading.RLock()

    @contextmanager
    def reading(self) -> Iterator[None]:
        depth = getattr(self._depth, "value", 0)
        if depth == 0:
            with self._changed:
                while self._waiting or self._swapping:
                    self._changed.wait()
                self._readers += 1
        self._depth.value = depth + 1
        try:
            yield
        finally:
            self._depth.value = depth
            if depth == 0:
                with self._changed:
                    self._readers -= 1
                    self._changed.notify_all()

    @contextmanager
    def changing(self) -> Iterator[None]:
        """One thread at a time; others read meanwhile.

        Raises:
            RuntimeError: within reading, where it would wait for itself.
        """
        if getattr(self._depth, "value", 0):
            raise RuntimeError("expected to change a head outside of reading it")
        with self._changing, torch.inference_mode(False), torch.no_grad():
            yield

    @contextmanager
    def swapping(self) -> Iterator[None]:
        """While nobody reads."""
        with self._changed:
            self._waiting += 1
            try:
                while self._readers or self._swapping:
                    self._changed.wait()
                self._swapping = True
            finally:  # a wait may be interrupted, and must not keep readers out
                self._waiting -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._swapping = False
                self._changed.notify_all()

    def __deepcopy__(self, memo: Any) -> Gate:
        return Gate()

    def __reduce__(self) -> tuple[Callable[[], Gate], tuple[()]]:
        return Gate, ()
