"""A file as memory, under a lease that keeps others from cutting it off meanwhile.

To touch what is mapped of a file that has shrunk ends the process (SIGBUS). Under a read lease
(Linux, on a file of one's own) whoever opens the file to write, or cuts it off, waits until the
lease is given back; that somebody waits is asked before each block.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

_SET_LEASE, _GET_LEASE = 1024, 1025  # F_SETLEASE and F_GETLEASE, for which Python has names late


@contextmanager
def leased(file: int) -> Iterator[Callable[[], bool] | None]:
    """Whether the lease stands, to ask; None where none can be had: another system, a file of
    others', or open for writing."""
    try:
        import fcntl

        own = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)  # leases are of an opening
    except (ImportError, OSError):
        yield None
        return
    try:
        try:
            # ignored unless a program asks for it; the default, SIGIO, would end the process
            fcntl.fcntl(own, getattr(fcntl, "F_SETSIG", 10), signal.SIGURG)
            fcntl.fcntl(own, _SET_LEASE, fcntl.F_RDLCK)
        except (OSError, AttributeError):
            yield None
            return
        yield lambda: fcntl.fcntl(own, _GET_LEASE) == fcntl.F_RDLCK
    finally:
        os.close(own)  # and gives it back


def mapped(file: int, offset: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix as it lies in the file, read as it is touched, ahead in order. The map is there
    as long as the tensor or a part of it; nobody may write to it."""
    begin = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    size = shape[0] * shape[1] * dtype.itemsize
    view = mmap.mmap(file, offset - begin + size, prot=mmap.PROT_READ, offset=begin)
    view.madvise(mmap.MADV_SEQUENTIAL)
    # by its address, for torch warns of a buffer that cannot be written
    address = np.frombuffer(view, np.uint8).ctypes.data
    array = (ctypes.c_ubyte * len(view)).from_address(address)
    array._view = view  # type: ignore[attr-defined]  # what lives as long
    return torch.frombuffer(array, dtype=torch.uint8)[offset - begin :].view(dtype).view(shape)


def forget(part: Tensor) -> None:
    """Take whole pages of a mapped part out of the process; the page cache keeps them."""
    page = mmap.PAGESIZE
    first = (part.data_ptr() + page - 1) // page * page
    last = (part.data_ptr() + part.nbytes) // page * page
    if last > first:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED
        )
