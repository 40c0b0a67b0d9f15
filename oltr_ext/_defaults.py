"""Torch's defaults are for what the user makes; what we build and draw goes by our own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

__all__ = ["DTYPE", "own_defaults", "own_dtype"]

DTYPE = torch.float32
"""Of all that is built and drawn here, whatever torch's default is."""


class _Own:
    """Blocks of `own_dtype` that are under way, in all threads."""

    def __init__(self) -> None:
        self.lock, self.blocks, self.before = threading.Lock(), 0, DTYPE


_OWN = _Own()


@contextmanager
def own_dtype() -> Iterator[None]:
    """`DTYPE` is torch's default for the block, which layers and random draws go by. It is one for
    all threads: the first that comes remembers the user's, the last that leaves brings it back."""
    with _OWN.lock:
        if _OWN.blocks == 0:
            _OWN.before = torch.get_default_dtype()
        _OWN.blocks += 1
        torch.set_default_dtype(DTYPE)
    try:
        yield
    finally:
        with _OWN.lock:
            _OWN.blocks -= 1
            if _OWN.blocks == 0:
                torch.set_default_dtype(_OWN.before)


@contextmanager
def own_defaults() -> Iterator[None]:
    """`own_dtype`, and the CPU as torch's default device: what goes elsewhere is sent there."""
    cpu = torch.device("cpu")
    with own_dtype(), nullcontext() if torch.get_default_device() == cpu else cpu:
        yield
