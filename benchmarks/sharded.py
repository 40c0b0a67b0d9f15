"""Banks over two processes, beside PyTorch's own way and beside one process of two threads.

    python benchmarks/sharded.py [--rounds 5]

Writes results/sharded.json and results/sharded.md. Times are medians of rounds in turn, the slower
process of each; memory is the high-water mark of resident memory beyond inputs
and gradients, in the process that needs most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from machine import machine
from peak_memory import ENVIRONMENT, status
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import loss_parallel

from oltr_ext import ops
from oltr_ext.ops import shard as shards

RESULTS = Path(__file__).parent / "results"
B, D, PROCESSES = 64, 512, 2
CLASSES = (100_000, 400_000)
Step = Callable[[], list[Tensor]]


def bank(classes: int) -> Tensor:
    return torch.randn(classes, D).div_(D**0.5)


def entropy_ours(shard: ops.Shard, v: Tensor, target: Tensor, weight: Tensor) -> Step:
    def step() -> list[Tensor]:
        loss = ops.cosine_cross_entropy(v, weight, target, shard=shard)
        return list(torch.autograd.grad(loss, (v, weight)))

    return step


def entropy_peer(shard: ops.Shard, v: Tensor, target: Tensor, weight: Tensor) -> Step:
    """The eager formula on DTensors under `loss_parallel`."""
    mesh = init_device_mesh("cpu", (PROCESSES,))
    whole = DTensor.from_local(
        weight.detach(), mesh, [Shard(0)], shape=(shard.total, D), stride=(D, 1)
    ).requires_grad_()
    rows = DTensor.from_local(v.detach(), mesh, [Replicate()]).requires_grad_()

    def step() -> list[Tensor]:
        with loss_parallel():
            squashed = rows / (1 + torch.linalg.vector_norm(rows, dim=1, keepdim=True))
            logits = 16 * squashed @ F.normalize(whole, dim=1).t()
            loss = F.cross_entropy(logits, target)
            return [g.to_local() for g in torch.autograd.grad(loss, (rows, whole))]  # type: ignore[attr-defined]

    return step


def head(shard: ops.Shard | None, x: Tensor, target: Tensor, banks: list[Tensor]) -> Step:
    """A training step of the memory head's ops, without the centroid loss."""
    memory, keys, bias, weight, gate, gate_bias = banks

    def step() -> list[Tensor]:
        v = ops.meta_embedding(x, memory, keys, bias, gate, gate_bias, shard=shard)
        loss = ops.cosine_cross_entropy(v, weight, target, shard=shard)
        return list(torch.autograd.grad(loss, (x, keys, bias, weight, gate, gate_bias)))

    return step


def head_banks(shard: ops.Shard | None, classes: int) -> list[Tensor]:
    torch.manual_seed(1)
    here = slice(None) if shard is None else slice(shard.start, shard.stop)
    banks = [bank(classes)[here].clone() for _ in range(3)]
    memory, keys, weight = banks
    gate = torch.randn(D, D).div_(D**0.5)
    rest = [keys, torch.zeros(len(keys)), weight, gate, torch.zeros(D)]
    return [memory, *(t.requires_grad_() for t in rest)]


def counted(step: Step) -> dict[str, int]:
    """Bytes that a process gives to collectives in one step."""
    sent, reduce = 0, shards._reduce

    def watched(shard: ops.Shard, value: Tensor, how: str) -> Tensor:
        nonlocal sent
        sent += value.numel() * max(4, value.element_size())
        return reduce(shard, value, how)

    shards._reduce = watched
    try:
        step()
    finally:
        shards._reduce = reduce
    return {"bytes": sent}


def peak(step: Step) -> int:
    step()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = step()
    return max(0, status("VmHWM") - before - sum(t.nbytes for t in result))


def member(rank: int, rounds: int, store: str, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES)
    found: dict[str, Any] = {}
    for classes in CLASSES:
        shard = ops.Shard.of(classes)
        torch.manual_seed(0)
        v, target = torch.randn(B, D).requires_grad_(), torch.randint(classes, (B,))
        weight = bank(classes)[shard.start : shard.stop].clone().requires_grad_()
        steps = {
            "ours": entropy_ours(shard, v, target, weight),
            "loss_parallel": entropy_peer(shard, v, target, weight),
        }
        found[f"entropy {classes}"] = {
            "times": in_turn(steps, rounds),
            "peak": {name: peak(step) for name, step in steps.items()},
            **counted(steps["ours"]),
        }
        del weight, steps
        step = head(shard, v, target, head_banks(shard, classes))
        found[f"head {classes}"] = {"times": in_turn({"sharded": step}, rounds), **counted(step)}
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def in_turn(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            if dist.is_initialized():
                dist.barrier()
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
    return times


def alone(rounds: int) -> dict[str, list[float]]:
    """One process, two threads."""
    torch.set_num_threads(PROCESSES)
    times = {}
    for classes in CLASSES:
        torch.manual_seed(0)
        v, target = torch.randn(B, D).requires_grad_(), torch.randint(classes, (B,))
        step = head(None, v, target, head_banks(None, classes))
        times[f"head {classes}"] = in_turn({"whole": step}, rounds)["whole"]
    return times


def together(rounds: int, folder: Path) -> list[dict[str, Any]]:
    context = mp.get_context("spawn")
    results = context.Queue()
    store = folder / "store"
    store.unlink(missing_ok=True)
    members = [
        context.Process(target=member, args=(rank, rounds, str(store), results))
        for rank in range(PROCESSES)
    ]
    for process in members:
        process.start()
    found = dict(results.get() for _ in members)
    for process in members:
        process.join()
    return [found[rank] for rank in range(PROCESSES)]


def slowest(members: list[dict[str, Any]], key: str, name: str) -> float:
    rounds = zip(*(m[key]["times"][name] for m in members), strict=True)
    return statistics.median(max(each) for each in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as store:
        members = together(rounds, Path(store))
    one = alone(rounds)
    rows = []
    for classes in CLASSES:
        key = f"entropy {classes}"
        for name in ("ours", "loss_parallel"):
            rows.append(
                {
                    "what": f"cosine cross-entropy, {name}",
                    "classes": classes,
                    "seconds": slowest(members, key, name),
                    "peak": max(m[key]["peak"][name] for m in members),
                    "bytes": members[0][key]["bytes"] if name == "ours" else None,
                }
            )
        key = f"head {classes}"
        sharded = slowest(members, key, "sharded")
        rows.append(
            {
                "what": "memory head, two processes of one thread",
                "classes": classes,
                "seconds": sharded,
                "bytes": members[0][key]["bytes"],
            }
        )
        rows.append(
            {
                "what": "memory head, one process of two threads",
                "classes": classes,
                "seconds": statistics.median(one[key]),
            }
        )
    about = {"machine": machine(), "rounds": rounds, "batch": B, "width": D, "rows": rows}
    (RESULTS / "sharded.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "sharded.md").write_text(markdown(about))
    print((RESULTS / "sharded.md").read_text())


def markdown(about: dict[str, Any]) -> str:
    def cell(value: float | None, unit: float) -> str:
        return "" if value is None else f"{value / unit:.0f}"

    lines = [
        "# A bank over two processes",
        "",
        f"Forward and backward, batch {B}, width {D}, float32, gloo on one machine of two cores; "
        f"medians of {about['rounds']} rounds in turn, the slower process of each. Memory: beyond "
        "inputs and gradients, of the process that needs most. Bytes: what a process gives to "
        "collectives in a step. `loss_parallel` is PyTorch's, on the eager formula with DTensors.",
        "",
        "| | classes | ms | memory, MB | bytes, kB |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in about["rows"]:
        lines.append(
            f"| {row['what']} | {row['classes']:,} | {row['seconds'] * 1e3:.0f} | "
            f"{cell(row.get('peak'), 1e6)} | {cell(row.get('bytes'), 1e3)} |"
        )
    when, what = about["machine"]["date"][:10], about["machine"]["processor"]
    lines += ["", f"`python benchmarks/sharded.py`, {when}, {what}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OLTR_EXT_BACKEND", "native")
    os.environ.update(ENVIRONMENT)
    main()
