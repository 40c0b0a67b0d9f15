"""An op by instruction set: one process for each, called in turn; medians as Markdown.

    python benchmarks/by_isa.py 256x8142x512 64x100000x512 --dtypes bfloat16 high --isas amx avx512

The choice is a process's (OLTR_EXT_CPU), so no benchmark in one process can hold two side by side.
Times are those of the op as it is called, forward / both passes, in milliseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

DTYPES = ("float32", "high", "medium", "bfloat16")
ROUNDS = 15
REST = 0.02
"""Seconds in which the threads of the one before stop spinning."""


def serve(op: str, shape: str, dtype: str) -> None:
    """The process of one instruction set: a line in names a mode, the seconds of a call go out."""
    import oltr_ext._C as native
    from cases import Case, matmul_precision
    from workloads import WORKLOADS, caller

    if (wish := os.environ["OLTR_EXT_CPU"]) != (got := native.cpu_features()["isa"]):
        raise SystemExit(f"this processor has no {wish}: it runs {got}")
    B, C, D = map(int, shape.split("x"))
    case, workload = Case("full", B, C, D, dtype), WORKLOADS[op]
    inputs = workload.inputs(B, C, D, case.torch_dtype, grad=True)
    calls: dict[str, Callable[[], Any]] = {
        mode: caller(workload.ours, inputs, mode, workload.shape(B, C, D))
        for mode in ("forward", "full")
    }
    loops = {}
    with matmul_precision(dtype):
        for line in sys.stdin:
            call = calls[line.strip()]
            if line not in loops:
                call()
                begin = time.perf_counter()
                call()
                loops[line] = max(1, int(0.002 / (time.perf_counter() - begin)))
            call()  # the others have had the caches, and both cores
            begin = time.perf_counter()
            for _ in range(loops[line]):
                call()
            print((time.perf_counter() - begin) / loops[line], flush=True)


def medians(op: str, shape: str, dtype: str, isas: list[str], rounds: int) -> dict[str, str]:
    """Forward / full by instruction set, in milliseconds."""
    workers = {
        isa: subprocess.Popen(
            [sys.executable, __file__, "--serve", op, shape, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OLTR_EXT_CPU": isa, "OLTR_EXT_BACKEND": "native"},
        )
        for isa in isas
    }  # fmt: skip
    cells = dict.fromkeys(isas, "")
    for mode in ("forward", "full"):
        times: dict[str, list[float]] = {isa: [] for isa in isas}
        for _ in range(rounds + 1):
            for isa, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                time.sleep(REST)
                worker.stdin.write(f"{mode}\n")
                worker.stdin.flush()
                if not (line := worker.stdout.readline()):
                    raise SystemExit(f"{isa}: its process ended; what it said is above")
                times[isa].append(float(line))
        for isa, found in times.items():
            ms = 1e3 * statistics.median(found[1:])
            cells[isa] += (" / " if cells[isa] else "") + f"{ms:.3g}"
    for worker in workers.values():
        worker.communicate()
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="+", help="B x C x D, as 256x8142x512")
    parser.add_argument("--op", default="meta_embedding")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=DTYPES)
    parser.add_argument("--isas", nargs="+", default=["amx", "avx512_bf16", "avx512"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    print(f"| {args.op} | dtype | {' | '.join(args.isas)} |")
    print(f"| --- | --- |{' ---: |' * len(args.isas)}")
    for shape in args.shapes:
        for dtype in args.dtypes:
            cells = medians(args.op, shape, dtype, args.isas, args.rounds)
            print(f"| {shape} | {dtype} | {' | '.join(cells.values())} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
