"""Instructions that the Arm kernels run, counted under qemu; no speed is measured.

    make arm-test && python benchmarks/arm_instructions.py > benchmarks/results/arm_instructions.md

Needs what `make arm-test` built, qemu-aarch64 with plugins (Debian's has them) and a C++ compiler
for the counter. Counts are exact and the same on every machine with the same compiler.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUN_OP = ROOT / "build" / "arm" / "run_op"
# Op, and the multiply-adds that it cannot do without: floors.py's operations, halved.
WORK = {
    "meta_embedding": {
        "forward": lambda b, c, d: 3 * b * c * d + b * d * d,
        "full": lambda b, c, d: 8 * b * c * d + 3 * b * d * d,
    },
    "cosine_cross_entropy": {
        "forward": lambda b, c, d: b * c * d,
        "full": lambda b, c, d: 4 * b * c * d,
    },
    "nearest_centroid": {"forward": lambda b, c, d: b * c * d},
}
SIZES = ((128, 1000, 256), (8, 1000, 256))
KERNELS = (
    ("float32", ("generic", "neon")),
    ("bfloat16", ("generic", "neon", "neon_bf16")),
)


def count(plugin: Path, *arguments: str) -> Counter[str]:
    run = subprocess.run(
        ["qemu-aarch64", "-cpu", "max", "-plugin", str(plugin), str(RUN_OP), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found: Counter[str] = Counter()
    for line in run.stderr.splitlines():
        kind, number = line.split()
        found[kind] += int(number)
    return found


def first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def main() -> None:
    if not RUN_OP.exists():
        raise SystemExit(f"arm_instructions: {RUN_OP} is missing; make arm-test builds it")
    print("# Instructions on 64-bit Arm\n")
    print(
        "Counted by a plugin of qemu over one call on one thread, less what the same program runs\n"
        "without the call; written by `arm_instructions.py`. **No speed was measured**: an\n"
        "instruction of one kind may take longer than one of another. `generic` is what this\n"
        "package ran on Arm before; the compiler turns it into NEON instructions too, for 16\n"
        "registers. Multiplications are `fmla`, `bfdot` and `bfmmla`: 4, 8 and 16 multiply-adds\n"
        "each in these types.\n"
    )
    print(f"{first_line('aarch64-linux-gnu-g++', '--version')}, -O3; ", end="")
    print(f"{first_line('qemu-aarch64', '--version')}.\n")
    print(
        "| op, B x C x D | type | kernels | instructions, millions | for a multiply-add "
        "| of generic | multiplications, millions |"
    )
    print("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        plugin = Path(folder) / "count.so"
        source = ROOT / "benchmarks" / "qemu_count.cpp"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", plugin], check=True)
        for op, passes in WORK.items():
            for mode, work in passes.items():
                for size in SIZES:
                    shape = [str(n) for n in size]
                    for dtype, tables in KERNELS:
                        base = count(plugin, op, "none", dtype, *shape, mode)
                        generic = 0
                        for table in tables:
                            found = count(plugin, op, table, dtype, *shape, mode)
                            found.subtract(base)
                            generic = generic or found["all"]
                            products = found["fmla"] + found["bfdot"] + found["bfmmla"]
                            print(
                                f"| `{op}` {mode}, {' x '.join(shape)} | {dtype} | {table} "
                                f"| {found['all'] / 1e6:.2f} | {found['all'] / work(*size):.3f} "
                                f"| {found['all'] / generic:.2f} | {products / 1e6:.2f} |",
                                flush=True,
                            )


if __name__ == "__main__":
    main()
