"""The machine's ceilings: arithmetic and reading, from the bare loops of fma_peak.cpp."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
from pathlib import Path

import torch

SECONDS = 0.02
SOURCE = Path(__file__).with_name("fma_peak.cpp")
# A read of so much comes from memory on any machine; more would only take longer.
MOST_BYTES, LEAST_BYTES = 256 << 20, 1 << 18


@functools.cache
def _library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fma_peak.so"
        subprocess.run(
            [os.environ.get("CXX", "c++"), "-O3", "-march=native", "-std=c++17", "-shared",
             "-fPIC", "-pthread", str(SOURCE), "-o", str(path)],
            check=True,
        )  # fmt: skip
        library = ctypes.CDLL(str(path))
    number, integer, pointer, size = (
        ctypes.c_double, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    )  # fmt: skip
    for name, arguments in {
        "fma_gflops": (integer, number),
        "bf16_gflops": (integer, number),
        "read_gbytes": (pointer, size, integer, number),
    }.items():
        function = getattr(library, name)
        function.restype, function.argtypes = number, arguments
    return library


def fp32_gflops() -> float:
    """GFLOP/s of float32 multiply-adds on all of torch's threads; a multiply-add counts two."""
    return float(_library().fma_gflops(torch.get_num_threads(), SECONDS))


def bf16_gflops() -> float:
    """GFLOP/s of bfloat16 products summed in float32; 0 where the processor has none."""
    return float(_library().bf16_gflops(torch.get_num_threads(), SECONDS))


def buffer(size: float) -> torch.Tensor:
    """A buffer to read as large as a working set of ``size`` bytes, within reason."""
    return torch.ones(int(min(max(size, LEAST_BYTES), MOST_BYTES)) // 4)


def read_gbytes(data: torch.Tensor) -> float:
    """GB/s of all of torch's threads reading a float32 buffer again and again."""
    arguments = data.data_ptr(), data.numel(), torch.get_num_threads(), SECONDS
    return float(_library().read_gbytes(*arguments))
