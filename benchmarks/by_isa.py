"""An op by instruction set, or by checkout: one process for each, called in turn, as Markdown.

    python benchmarks/by_isa.py 256x8142x512 64x100000x512 --dtypes bfloat16 high --isas amx avx512
    python benchmarks/by_isa.py 256x8142x512 --trees ../before .

Either is a process's choice (OLTR_EXT_CPU, PYTHONPATH), so no benchmark in one process can hold two
side by side. Times are those of the op as it is called, forward / both passes, in milliseconds:
medians and, in brackets, the quickest. Each checkout has its extension built in place.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DTYPES = ("float32", "high", "medium", "bfloat16")
ROUNDS = 15
REST = 0.02
"""Seconds in which the threads of the one before stop spinning."""


def serve(op: str, shape: str, dtype: str) -> None:
    """The process of one column: a line in names a mode, the seconds of a call go out."""
    import oltr_ext._C as native
    from awake import ready
    from cases import Case, matmul_precision
    from workloads import WORKLOADS, caller

    got = native.cpu_features()["isa"]
    if (wish := os.environ.get("OLTR_EXT_CPU", got)) != got:
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
            ready()
            call()  # the others have had the caches
            begin = time.perf_counter()
            for _ in range(loops[line]):
                call()
            print((time.perf_counter() - begin) / loops[line], flush=True)


def in_turn(
    workers: Mapping[str, subprocess.Popen[str]], wish: str, rounds: int
) -> dict[str, list[float]]:
    """Milliseconds by worker: each is sent the line `wish` and answers in seconds."""
    found: dict[str, list[float]] = {name: [] for name in workers}
    for n in range(rounds):
        for name, worker in list(workers.items())[:: -1 if n % 2 else 1]:
            assert worker.stdin is not None and worker.stdout is not None
            time.sleep(REST)
            worker.stdin.write(f"{wish}\n")
            worker.stdin.flush()
            if not (line := worker.stdout.readline()):
                raise SystemExit(f"{name}: its process ended; what it said is above")
            found[name].append(1e3 * float(line))
    return found


def times(
    op: str, shape: str, dtype: str, columns: Mapping[str, dict[str, str]], rounds: int
) -> dict[str, str]:
    """Forward / full by column, whose process has these variables: medians (quickest), in ms."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", op, shape, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **variables, "OLTR_EXT_BACKEND": "native"},
        )
        for name, variables in columns.items()
    }  # fmt: skip
    cells = dict.fromkeys(columns, "")
    for mode in ("forward", "full"):
        for name, ms in in_turn(workers, mode, rounds + 1).items():
            median, least = statistics.median(ms[1:]), min(ms[1:])
            cells[name] += (" / " if cells[name] else "") + f"{median:.3g} ({least:.3g})"
    for worker in workers.values():
        worker.communicate()
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shapes", nargs="+", help="B x C x D, as 256x8142x512")
    parser.add_argument("--op", default="meta_embedding")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], choices=DTYPES)
    parser.add_argument("--isas", nargs="+", default=["amx", "avx512_bf16", "avx512"])
    parser.add_argument("--trees", nargs="+", type=Path, help="checkouts, in place of --isas")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    if args.trees is None:
        columns = {isa: {"OLTR_EXT_CPU": isa} for isa in args.isas}
    else:
        # An editable install lends what is lacking (findings/editable-mixed-checkouts.sh).
        for tree in args.trees:
            for part in ("_C", "_oltr_cpu"):
                if not list((tree / "oltr_ext").glob(f"{part}.*")):
                    parser.error(
                        f"--trees: expected an extension built in place, no {part} in {tree}"
                    )
        columns = {str(t): {"PYTHONPATH": str(t.resolve())} for t in args.trees}
    print(f"| {args.op} | dtype | {' | '.join(columns)} |")
    print(f"| --- | --- |{' ---: |' * len(columns)}")
    for shape in args.shapes:
        for dtype in args.dtypes:
            cells = times(args.op, shape, dtype, columns, args.rounds)
            print(f"| {shape} | {dtype} | {' | '.join(cells.values())} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
