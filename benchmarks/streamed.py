"""Ops over a bank in a file, beside a plain read of the same file and beside other ways to it.

    python benchmarks/streamed.py [--rounds 5] [--folder .] [--threads 1]

Writes results/streamed.json and results/streamed.md. Rates are medians of rounds in turn. Cold: the
file's pages were dropped from the page cache before (POSIX_FADV_DONTNEED) and counted (mincore);
memory is the high-water mark of resident memory beyond what was there before. The same op on the
bank in memory, where nothing is read, and the bare multiply-adds of the processor say what of the
rest is arithmetic.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peaks
import torch
from machine import machine
from peak_memory import ENVIRONMENT, status
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from oltr_ext import ops

RESULTS = Path(__file__).parent / "results"
CLASSES, WIDTH = 400_000, 256
NPY, SAFETENSORS = "bank.npy", "bank.safetensors"
Run = Callable[[], Any]


def write(folder: Path) -> None:
    torch.manual_seed(0)
    values = torch.randn(CLASSES, WIDTH)
    np.save(folder / NPY, values.numpy())
    save_file({"bank": values}, str(folder / SAFETENSORS))
    for name in (NPY, SAFETENSORS):
        with (folder / name).open("r+b") as file:
            os.fsync(file.fileno())


def read(path: Path, size: int) -> None:
    """Into one buffer, from the beginning to the end."""
    buffer = memoryview(mmap.mmap(-1, size))
    file, place = os.open(path, os.O_RDONLY), 0
    while count := os.preadv(file, [buffer], place):
        place += count
    os.close(file)


def drop(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def resident(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        pages = (len(view) + mmap.PAGESIZE - 1) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        start = ctypes.c_char.from_buffer(view)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(view)), found)
        del start
        assert not failed, os.strerror(ctypes.get_errno())
        return float((np.frombuffer(found, np.uint8) & 1).mean())


def eager(x: Tensor, bank: Tensor) -> Tensor:
    """Nearest class by the formula of products, as one writes it."""
    return (bank.square().sum(1) - 2 * (x @ bank.t())).argmin(1)


def runs(folder: Path) -> dict[str, tuple[Path | None, Run]]:
    npy, safetensors = folder / NPY, folder / SAFETENSORS
    rows = {batch: torch.randn(batch, WIDTH) for batch in (1, 16, 64)}
    target = torch.randint(CLASSES, (16,))
    streamed = ops.StreamedBank(npy)

    def mapped() -> Tensor:
        return torch.from_numpy(np.load(npy, mmap_mode="c"))

    def opened() -> Tensor:
        with safe_open(safetensors, "pt") as file:
            return file.get_tensor("bank")

    found: dict[str, tuple[Path | None, Run]] = {
        "plain read, 1 MB at a time": (npy, lambda: read(npy, 1 << 20)),
        "plain read, 8 MB at a time": (npy, lambda: read(npy, 8 << 20)),
    }
    for batch, x in rows.items():
        found[f"nearest_centroid, streamed, B = {batch}"] = (
            npy,
            lambda x=x: ops.nearest_centroid(x, streamed),
        )
    in_memory = torch.from_numpy(np.load(npy))
    for batch, x in rows.items():
        found[f"nearest_centroid in memory, B = {batch}"] = (
            None,
            lambda x=x: ops.nearest_centroid(x, in_memory),
        )
    x = rows[16]
    found |= {
        "cosine_cross_entropy, streamed, B = 16": (
            npy,
            lambda: ops.cosine_cross_entropy(x, streamed, target),
        ),
        "nearest_centroid on np.load(mmap_mode), B = 16": (
            npy,
            lambda: ops.nearest_centroid(x, mapped()),
        ),
        "eager on np.load(mmap_mode), B = 16": (npy, lambda: eager(x, mapped())),
        "eager on safe_open, B = 16": (safetensors, lambda: eager(x, opened())),
    }
    return found


def peak(run: Run) -> int:
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    run()
    return max(0, status("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        write(Path(name))
        found = runs(Path(name))
        times: dict[tuple[str, str], list[float]] = {}
        left = 0.0
        for _ in range(args.rounds):
            for what, (path, run) in found.items():
                for state in ("cold", "warm"):
                    if state == "cold":
                        if path is None:
                            continue
                        drop(path)
                        left = max(left, resident(path))
                    begin = time.perf_counter()
                    run()
                    times.setdefault((what, state), []).append(time.perf_counter() - begin)
        load.append(os.getloadavg()[0])
        size = CLASSES * WIDTH * 4
        rows = [
            {
                "what": what,
                **{state: size / statistics.median(times[what, state]) for state in states},
                "best": {state: size / min(times[what, state]) for state in states},
                "peak": peak(run),
            }
            for what, (path, run) in found.items()
            for states in [("warm",) if path is None else ("cold", "warm")]
        ]
    about = {
        "machine": machine(), "rounds": args.rounds, "bytes": size, "load": load, "rows": rows,
        "resident_when_cold": left, "cores": os.cpu_count(), "threads": args.threads,
        "fma_gflops": peaks.fp32_gflops(),
    }  # fmt: skip
    (RESULTS / "streamed.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "streamed.md").write_text(markdown(about))
    print((RESULTS / "streamed.md").read_text())


def markdown(about: dict[str, Any]) -> str:
    rows = about["rows"]
    plain = {state: max(row[state] for row in rows[:2]) for state in ("cold", "warm")}
    begin, end = about["load"]
    lines = [
        "# A bank in a file",
        "",
        f"{CLASSES:,} x {WIDTH} float32, {about['bytes'] / 1e6:.0f} MB, on {about['cores']} cores "
        f"shared with other work (load average {begin:.1f} at the beginning, {end:.1f} at the "
        f"end), {about['threads']} thread(s); medians of "
        f"{about['rounds']} rounds in turn, in GB/s of the file, and as a share of the faster "
        f"plain read. When cold, at most {about['resident_when_cold']:.1%} of the file was in the "
        "page cache. Memory: resident, beyond what was there before.",
        "",
        "| | cold | | warm | | memory, MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [
            f"{row[s] / 1e9:.2f} | {row[s] / plain[s]:.0%}" if s in row else "- | -"
            for s in ("cold", "warm")
        ]
        lines.append(f"| {row['what']} | {' | '.join(cells)} | {row['peak'] / 1e6:.0f} |")
    when, what = about["machine"]["date"][:10], about["machine"]["processor"]
    arithmetic = about["fma_gflops"] / 32  # of 64 rows two operations for each four bytes
    lines += [
        "",
        f"Multiply-adds of float32 run at {32 * arithmetic:.0f} GFLOP/s here: the products of 64 "
        f"rows alone pass the bank at {arithmetic:.1f} GB/s, "
        f"{arithmetic * 1e9 / plain['warm']:.0%} of the plain warm read.",
    ]
    lines += ["", f"`python benchmarks/streamed.py`, {when}, {what}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OLTR_EXT_BACKEND", "native")
    os.environ.update(ENVIRONMENT)
    main()
