"""Saving and loading a head whose classes two processes share: what each needs beside its share.

    python benchmarks/shared_files.py [--classes 200000 --width 256]

Each of two gloo processes of one thread holds half of a memory head with momentum. `streamed` is
what `oltr train` does (`engine.checkpoint`, `engine.class_shards`); `whole` what it did before: all
tensors gathered in each process, serialised at once, and read at once by each. Memory is the
high-water mark of resident memory beyond what was resident before the call. The file is written to
the folder of temporary files (TMPDIR), and removed. Writes results/shared_files.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import machine
from peak_memory import ENVIRONMENT, status
from safetensors.torch import load as parse
from safetensors.torch import save as serialise
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from oltr_ext.engine import checkpoint, class_shards
from oltr_ext.engine.pieces import first_here, here
from oltr_ext.nn import OLTRHead, shard_classes

RESULTS = Path(__file__).parent / "results"
PROCESSES = 2


def held(classes: int, width: int) -> dict[str, Tensor]:
    """A head and as many tensors as it has momentum buffers."""
    torch.manual_seed(0)
    head = OLTRHead(width, classes, device="meta")
    state = shard_classes(head, init_device_mesh("cpu", (PROCESSES,))).state_dict()
    momentum = {f"momentum.{k}": torch.ones_like(v) for k, v in head.named_parameters()}
    return {**{f"model.{k}": v for k, v in state.items()}, **momentum}


def save_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    whole = {k: class_shards.whole(v).cpu() for k, v in tensors.items()}
    if dist.get_rank() == 0:
        blob = serialise({k: v.detach().contiguous().clone() for k, v in whole.items()})
        path.write_bytes(blob)
        os.sync()


def load_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    whole = parse(path.read_bytes())
    for name, value in tensors.items():
        own, first = here(value), first_here(value)
        own.copy_(whole[name][first : first + len(own)] if own.dim() else whole[name])


def save_streamed(path: Path, tensors: dict[str, Tensor]) -> None:
    checkpoint.save(path, tensors, {})


def load_streamed(path: Path, tensors: dict[str, Tensor]) -> None:
    found, _ = checkpoint.opened(path)
    model = SimpleNamespace(state_dict=lambda: tensors, load_learned=lambda state: None)
    class_shards.load_learned(model, found)  # type: ignore[arg-type]


WAYS = {"streamed": (save_streamed, load_streamed), "whole": (save_whole, load_whole)}


def measured(call: Callable[[], None]) -> dict[str, float]:
    dist.barrier()
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = status("VmRSS"), time.perf_counter()
    call()
    seconds = time.perf_counter() - begin
    dist.barrier()
    return {"peak": max(0, status("VmHWM") - before), "seconds": seconds, "before": before}


def member(rank: int, args: argparse.Namespace, folder: str, results: Any) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    tensors, path = held(args.classes, args.width), Path(folder) / "x.safetensors"
    found: dict[str, Any] = {}
    sums = {name: here(value).double().sum() for name, value in tensors.items()}
    for way, (save, load) in WAYS.items():
        found[f"save {way}"] = measured(lambda save=save: save(path, tensors))  # type: ignore[misc]
        for value in tensors.values():
            here(value).zero_()
        found[f"load {way}"] = measured(lambda load=load: load(path, tensors))  # type: ignore[misc]
        for name, value in tensors.items():
            assert here(value).double().sum() == sums[name], name
        found["file"] = path.stat().st_size
        dist.barrier()
        if rank == 0:
            path.unlink()
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def together(args: argparse.Namespace) -> list[dict[str, Any]]:
    context = mp.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        members = [
            context.Process(target=member, args=(n, args, folder, results))
            for n in range(PROCESSES)
        ]
        for process in members:
            process.start()
        found = dict(results.get(timeout=600) for _ in members)
        for process in members:
            process.join()
    return [found[rank] for rank in range(PROCESSES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=256)
    args = parser.parse_args()
    load = [os.getloadavg()[0]]
    about = {
        "machine": machine(), "classes": args.classes, "width": args.width,
        "folder": tempfile.gettempdir(), "members": together(args),
        "load": [*load, os.getloadavg()[0]],
    }  # fmt: skip
    (RESULTS / "shared_files.json").write_text(json.dumps(about, indent=1) + "\n")
    (RESULTS / "shared_files.md").write_text(markdown(about))
    print((RESULTS / "shared_files.md").read_text())


def markdown(about: dict[str, Any]) -> str:
    zero, one = about["members"]
    begin, end = about["load"]
    lines = [
        "# A head that two processes share, to and from a file",
        "",
        f"A memory head of {about['classes']:,} classes x {about['width']}, float32, with "
        f"momentum: a file of {zero['file'] / 1e9:.2f} GB in {about['folder']}, of which each of "
        "two gloo processes of one thread holds half. Memory: the high-water mark of resident "
        "memory beyond what was resident before. `streamed` is what `oltr train` does: process 0 "
        "writes what the other "
        "sends it piece by piece, and verifies a file before each reads its rows. `whole` is what "
        "it did before, without its checksum: all gathered in each process, serialised and read at "
        f"once. One call each on {os.cpu_count()} cores shared with other work (load average "
        f"{begin:.1f} to {end:.1f}): seconds are a rough guide.",
        "",
        "| | process 0, MB | process 1, MB | s |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way in WAYS:
        for what in ("save", "load"):
            rows = [m[f"{what} {way}"] for m in (zero, one)]
            peaks = " | ".join(f"{row['peak'] / 1e6:,.0f}" for row in rows)
            lines.append(f"| {what}, {way} | {peaks} | {max(r['seconds'] for r in rows):.1f} |")
    when, what = about["machine"]["date"][:10], about["machine"]["processor"]
    lines += ["", f"`python benchmarks/shared_files.py`, {when}, {what}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("OLTR_EXT_BACKEND", "native")
    os.environ.update(ENVIRONMENT)
    main()
