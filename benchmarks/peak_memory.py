"""Peak memory of one call over its inputs, outputs and gradients, in a process of its own.

    python benchmarks/peak_memory.py meta_embedding ours full 256 1000 512 float32

The kernel's high-water mark of resident memory is reset just before the call, so it holds what no
allocator's statistics can: the scratch of native code and libraries. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cases import Case, matmul_precision

# glibc keeps freed blocks for later, which hides what a call needs: hand them all back.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_MAX_": "65536",  # `make bench` keeps what is freed
}
WARM_UP = (4, 64)
"""B and C of the first call: it loads code and starts threads, and leaves scratch small."""


def status(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if field in line)


def available() -> int:
    """Bytes of memory that are free; a terabyte where the system does not say."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(n.split()[1]) * 1024 for n in lines if n.startswith("MemAvailable")), 10**12)


def measure(op: str, case: Case, name: str = "") -> int | None:
    """Bytes of one call, ours for an empty name; None where it cannot be measured."""
    mode, B, C, D, dtype = case
    arguments = [op, name or "ours", mode, *map(str, (B, C, D)), dtype]
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    # KeOps writes to stdout too.
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _main(op: str, name: str, mode: str, *rest: str) -> int:
    from peers import PEERS
    from workloads import WORKLOADS, caller

    case = Case(mode, *map(int, rest[:3]), rest[3])
    workload = WORKLOADS[op]
    function = workload.ours if name == "ours" else PEERS[op][name].call

    def prepare(B: int, C: int) -> Any:
        inputs = workload.inputs(B, C, case.D, case.torch_dtype, mode != "forward")
        return caller(function, inputs, mode, workload.shape(B, C, case.D))

    with matmul_precision(case.dtype):
        prepare(*WARM_UP)()
        call = prepare(case.B, case.C)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        result = call()
        peak = status("VmHWM")
    results = [result] if isinstance(result, torch.Tensor) else result
    return peak - before - sum(t.nbytes for t in results)


if __name__ == "__main__":
    os.environ.setdefault("OLTR_EXT_BACKEND", "native")
    print(_main(*sys.argv[1:]))
