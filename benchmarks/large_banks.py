"""A training step of the memory head over very large banks, on two processes of one thread.

    python benchmarks/large_banks.py [--banks 10000000x64:bfloat16 2000000x256:float32]

Each process holds half of the classes: memory, keys, bias and classifier in float32 (the masters),
and in bfloat16 a copy of each that the ops read where the bank is bfloat16; a step is forward,
backward (cross-entropy and centroid loss) and SGD, of each bank as soon as its gradient is there.
Writes results/large_banks.json and .md. Time is the slower process's median, memory the sum of both
high-water marks of resident memory. A bank that would need more than is free is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import machine
from peak_memory import ENVIRONMENT, available, status
from torch import Tensor

from oltr_ext import ops

RESULTS = Path(__file__).parent / "results"
B, PROCESSES, RATE = 64, 2, 0.1
BANKS = ("10000000x64:bfloat16", "2000000x256:float32")
SPARE = 3 << 29


def parsed(text: str) -> tuple[int, int, torch.dtype]:
    sizes, dtype = text.split(":")
    classes, width = map(int, sizes.split("x"))
    return classes, width, getattr(torch, dtype)


def need(classes: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of masters, their copies and the one gradient that there is at a time."""
    size = dtype.itemsize
    copies = 3 * size if size < 4 else 0
    return classes * width * (3 * 4 + copies + size) + PROCESSES * (1 << 29)


def updated(master: Tensor, bank: Tensor) -> None:
    """The SGD update of a bank as soon as its gradient is there, which then goes."""
    assert bank.grad is not None
    with torch.no_grad():
        parts = (t.split(1 << 18) for t in (master, bank, bank.grad))
        for whole, copy, slope in zip(*parts, strict=True):
            whole.sub_(slope, alpha=RATE)
            if copy.data_ptr() != whole.data_ptr():
                copy.copy_(whole)
    bank.grad = None


def step(shard: ops.Shard, x: Tensor, target: Tensor, banks: list[Tensor]) -> float:
    """The loss, before the step that it makes. The centroid loss has a pass of its own, for
    centroids can change once nothing else needs them."""
    memory, keys, bias, weight, gate, gate_bias = banks
    v = ops.meta_embedding(x, memory.detach(), keys, bias, gate, gate_bias, shard=shard)
    loss = ops.cosine_cross_entropy(v, weight, target, shard=shard)
    loss.backward()
    pull = 0.01 * ops.disc_centroids_loss(x, target, memory, shard=shard)
    pull.backward()
    return float((loss + pull).detach())


def member(rank: int, bank: str, rounds: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    classes, width, dtype = parsed(bank)
    shard = ops.Shard.of(classes)
    torch.manual_seed(rank)
    memory, keys, weight = (
        torch.empty(shard.size, width).uniform_(-(width**-0.5), width**-0.5) for _ in range(3)
    )
    torch.manual_seed(0)
    gate = torch.randn(width, width).div_(width**0.5)
    masters = [memory, keys, torch.zeros(shard.size), weight, gate, torch.zeros(width)]
    banks = [master.detach().to(dtype).requires_grad_() for master in masters]
    for master, bank_ in zip(masters[:4], banks, strict=False):  # the gate is needed to the end
        bank_.register_post_accumulate_grad_hook(partial(updated, master))
    x, target = torch.randn(B, width).to(dtype), torch.randint(classes, (B,))
    times, losses = [], []
    for _ in range(rounds + 1):
        dist.barrier()
        begin = time.perf_counter()
        losses.append(step(shard, x, target, banks))
        for n in (4, 5):
            updated(masters[n], banks[n])
        times.append(time.perf_counter() - begin)
    results.put((rank, times[1:], losses, status("VmHWM")))
    dist.barrier()
    dist.destroy_process_group()


def together(bank: str, rounds: int) -> dict[str, Any]:
    context = mp.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        members = [
            context.Process(target=member, args=(n, bank, rounds, f"{folder}/store", results))
            for n in range(PROCESSES)
        ]
        for process in members:
            process.start()
        found = [results.get(timeout=600) for _ in members]
        for process in members:
            process.join()
    each = zip(*(times for _, times, _, _ in found), strict=True)
    assert found[0][2] == found[1][2], "the processes differ in their losses"
    return {
        "bank": bank,
        "seconds": statistics.median(max(pair) for pair in each),
        "peak": sum(peak for *_, peak in found),
        "losses": found[0][2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banks", nargs="+", default=BANKS)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    rows, load = [], [os.getloadavg()[0]]
    for bank in args.banks:
        needed, free = need(*parsed(bank)), available()
        if needed + SPARE > free:
            rows.append({"bank": bank, "needed": needed, "free": free})
        else:
            rows.append({**together(bank, args.rounds), "needed": needed, "free": free})
    load.append(os.getloadavg()[0])
    about = {
        "machine": machine(), "rounds": args.rounds, "batch": B, "load": load,
        "cores": os.cpu_count(), "rows": rows,
    }  # fmt: skip
    (RESULTS / "large_banks.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "large_banks.md").write_text(markdown(about))
    print((RESULTS / "large_banks.md").read_text())


def markdown(about: dict[str, Any]) -> str:
    begin, end = about["load"]
    lines = [
        "# A training step over very large banks",
        "",
        f"Forward, backward and SGD of the memory head's ops, batch {about['batch']}, float32 "
        f"masters, on {PROCESSES} gloo processes of one thread and {about['cores']} cores shared "
        f"with other work (load average {begin:.1f} to {end:.1f}); the slower process, median of "
        f"{about['rounds']} steps after a first. Peak: resident memory of both processes, all of "
        "it, torch itself included. Expected: of masters, copies, one gradient and 1 GB.",
        "",
        "| bank | s | peak, GB | expected, GB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in about["rows"]:
        found = (
            f"{row['seconds']:.1f} | {row['peak'] / 1e9:.1f}"
            if "seconds" in row
            else f"not run: {row['free'] / 1e9:.1f} GB were free |"
        )
        lines.append(f"| {row['bank']} | {found} | {row['needed'] / 1e9:.1f} |")
    when, what = about["machine"]["date"][:10], about["machine"]["processor"]
    lines += ["", f"`python benchmarks/large_banks.py`, {when}, {what}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OLTR_EXT_BACKEND", "native")
    os.environ.update(ENVIRONMENT)
    main()
