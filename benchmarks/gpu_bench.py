"""The ops on a GPU against their peers: CUDA events, cold inputs, medians of rounds in turn.

`make gpu-check` runs this on a machine with a GPU and nothing else: torch alone is needed. Before
each call the L2 cache is overwritten. Each round calls every function once; medians over rounds are
compared. What is measured is saved as it comes, and what takes long to tune comes last.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import floors
import torch
import torch.nn.functional as F
from peers import PEERS
from torch import Tensor
from workloads import WORKLOADS, caller

DEVICE = "cuda"
ROUNDS = 11
SECONDS = 480
"""No further peer is compiled after that long."""
MOST_BYTES = 24e9
"""A peer that needs a larger tensor is not run, and its row says so."""

# (op, mode, B, C, D, goal in microseconds where there is one), bfloat16.
CASES = [
    ("meta_embedding", "forward", 256, 1000, 512, 45),
    ("meta_embedding", "backward", 256, 1000, 512, 90),
    ("meta_embedding", "forward", 256, 8142, 2048, 50),
    ("meta_embedding", "backward", 256, 8142, 2048, 95),
    ("meta_embedding", "forward", 512, 100_000, 512, 280),
    ("meta_embedding", "backward", 512, 100_000, 512, 550),
    ("meta_embedding", "forward", 1024, 1_000_000, 512, 5600),
    ("meta_embedding", "backward", 1024, 1_000_000, 512, 11_000),
    ("meta_embedding", "forward", 64, 1_000_000, 512, 890),
    ("meta_embedding", "forward", 64, 1_000_000, 128, None),
    ("memory_attention", "forward", 512, 100_000, 512, None),
    ("nearest_centroid", "forward", 512, 100_000, 512, None),
    ("cosine_logits", "forward", 512, 100_000, 512, None),
    ("cosine_cross_entropy", "forward", 512, 100_000, 512, None),
    ("cosine_cross_entropy", "full", 512, 100_000, 512, None),
    ("cosine_cross_entropy", "full", 1024, 1_000_000, 512, None),
    ("disc_centroids_loss", "full", 1024, 1_000_000, 512, None),
    ("class_means", "forward", 100_000, 1000, 512, None),
]

# Ops with a forward pass in one kernel, up to a width of 512.
FUSED = ("meta_embedding", "memory_attention", "nearest_centroid", "cosine_cross_entropy")

# Tuning takes a minute a case.
COMPILED = [
    ("meta_embedding", "forward", 512, 100_000, 512),
    ("cosine_cross_entropy", "full", 512, 100_000, 512),
    ("meta_embedding", "forward", 256, 8142, 2048),
]


def _said(error: Exception) -> str:
    return (
        f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
    )


def host_seconds(call: Callable[[], Any]) -> float:
    """How long the CPU is busy with a call."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    result = call()
    end = time.perf_counter()
    torch.cuda.synchronize()
    del result
    return end - begin


def microseconds(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict:
    """Median, and spread between quartiles, of every function, in turn and on cold inputs."""
    cold = torch.empty(2 * l2_bytes(), dtype=torch.uint8, device=DEVICE)
    wait = {}
    for name, call in calls.items():
        call()
        # Cycles of a clock below 2 GHz: the launches are queued before the first of them runs.
        wait[name] = int(2e9 * (1.5 * host_seconds(call) + 5e-5))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            cold.zero_()
            torch.cuda._sleep(wait[name])
            begin.record()
            result = call()
            end.record()
            end.synchronize()
            del result
            times[name].append(1e3 * begin.elapsed_time(end))
    quarters = {n: statistics.quantiles(t, n=4) for n, t in times.items()}
    return {n: {"median_us": q[1], "iqr_us": q[2] - q[0]} for n, q in quarters.items()}


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def settle() -> None:
    """Nothing left to run, no memory kept."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that was taken during a call, results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def products_alone(x: Tensor, memory: Tensor, keys: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    """What the meta-embedding's forward asks of the library, in chunks as ours; nothing else."""
    chunk = max(128, (24 << 20) // (10 * x.shape[0] + 4 * x.shape[1]) // 128 * 128)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for first in range(0, memory.shape[0], chunk):
        part = memory[first : first + chunk]
        weights = x @ keys[first : first + chunk].t()
        x @ part.t()
        out += weights @ part
    return out, x @ rest["selector_weight"].t()


def peers_of(op: str, mode: str, B: int, C: int, D: int) -> Iterator[tuple[str, Any]]:
    """(name, function, or the reason why not)."""
    for name, peer in PEERS[op].items():
        size = 2 * {"": 0, "BC": 2 * B * C, "BCD": B * C * D}[peer.needs]
        if lacks := peer.lacks(mode, torch.bfloat16):
            yield name, lacks
        elif size > MOST_BYTES:
            yield name, f"needs {size / 1e9:.0f} GB for one tensor"
        else:
            yield name, peer.call
    if op == "meta_embedding" and mode == "forward":
        yield "products alone", products_alone


def peaks() -> dict[str, float]:
    """TFLOP/s of a large bfloat16 product, and GB/s of a copy, read and written."""
    n = 8192
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(1 << 28, device=DEVICE)
    target = torch.empty_like(source)
    found = microseconds({"product": lambda: a @ b, "copy": lambda: target.copy_(source)})
    return {
        "bf16_tflops": 2 * n**3 / found["product"]["median_us"] / 1e6,
        "copy_gbytes": 2 * source.numel() * 4 / found["copy"]["median_us"] / 1e3,
    }


def graphed(call: Callable[[], Any]) -> Callable[[], None]:
    """The call as a CUDA graph's replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def inputs_of(op: str, mode: str, B: int, C: int, D: int) -> dict[str, Any]:
    """A workload's inputs in bfloat16, drawn on the GPU."""
    with torch.device(DEVICE):
        return WORKLOADS[op].inputs(B, C, D, torch.bfloat16, mode != "forward")


def by_chunks(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with nothing fused."""

    def run() -> Any:
        os.environ["OLTR_EXT_CUDA_FUSED"] = "0"
        try:
            return call()
        finally:
            del os.environ["OLTR_EXT_CUDA_FUSED"]

    return run


def measure(op: str, mode: str, B: int, C: int, D: int, ceilings: dict[str, float]) -> dict:
    """One case: ours and every peer that can run."""
    workload, inputs, element = WORKLOADS[op], inputs_of(op, mode, B, C, D), 2
    shape = workload.shape(B, C, D)
    calls = {"ours": caller(workload.ours, inputs, mode, shape)}
    unavailable: dict[str, str] = {}

    def add(name: str, make: Callable[[], Callable[[], Any]]) -> None:
        try:
            call = make()
            call()
            settle()
            calls[name] = call
        except Exception as error:  # a peer's failure is a finding
            unavailable[name] = _said(error)
            settle()

    for name, function in peers_of(op, mode, B, C, D):
        if isinstance(function, str):
            unavailable[name] = function
        else:
            add(name, partial(caller, function, inputs, mode, shape))
    if mode != "backward" and op in FUSED and D <= 512:
        add("ours, by chunks", lambda: by_chunks(calls["ours"]))
    if mode == "forward" and (C <= 10_000 or C >= 1_000_000):
        add("ours, graph", lambda: graphed(calls["ours"]))
    peak = peak_bytes(calls["ours"])
    found = microseconds(calls)
    least = floors.floor(op, mode, B, C, D, element)
    floor_us = 1e6 * least.seconds(1e3 * ceilings["bf16_tflops"], ceilings["copy_gbytes"])
    ours = found["ours"]["median_us"]
    rivals = {n: f["median_us"] for n, f in found.items() if not n.startswith(("ours", "products"))}
    best_peer = min(rivals, key=lambda n: rivals[n], default=None)
    return {
        "op": op, "mode": mode, "B": B, "C": C, "D": D, "dtype": "bfloat16",
        "times": found, "unavailable": unavailable, "floor_us": floor_us,
        "share_of_floor": floor_us / ours, "best_peer": best_peer,
        "ratio": rivals[best_peer] / ours if best_peer else None, "peak_mb": peak / 2**20,
    }  # fmt: skip


def compiled(op: str, mode: str, B: int, C: int, D: int) -> dict:
    """Ours, and the fastest eager way as torch.compile tunes it."""
    workload, inputs = WORKLOADS[op], inputs_of(op, mode, B, C, D)
    shape = workload.shape(B, C, D)
    eager = {
        name: caller(function, inputs, mode, shape)
        for name, function in peers_of(op, mode, B, C, D)
        if name.startswith("eager") and not isinstance(function, str)
    }
    times = microseconds(eager, rounds=3)
    best = min(eager, key=lambda n: times[n]["median_us"])
    torch._dynamo.reset()
    tuned = torch.compile(PEERS[op][best].call, dynamic=False, mode="max-autotune-no-cudagraphs")
    calls = {
        "ours": caller(workload.ours, inputs, mode, shape),
        f"compiled {best.removeprefix('eager ')}": caller(tuned, inputs, mode, shape),
    }
    return {"op": op, "mode": mode, "B": B, "C": C, "D": D, "times": microseconds(calls)}


def training_step(B: int = 1024, C: int = 1_000_000, D: int = 512) -> dict:
    """The head's whole step on bfloat16 copies of float32 banks, SGD with momentum."""
    from oltr_ext import ops

    settle()
    banks = {n: torch.randn(C, D, device=DEVICE) / D**0.5 for n in ("keys", "weight", "memory")}
    bias, square = torch.zeros(C, device=DEVICE), torch.randn(D, D, device=DEVICE) / D**0.5
    parameters = [banks["keys"], bias, square, banks["weight"], banks["memory"]]
    for p in parameters:
        p.requires_grad_()
    gate_bias = torch.zeros(D, device=DEVICE, requires_grad=True)
    optimizer = torch.optim.SGD([*parameters, gate_bias], lr=1e-3, momentum=0.9, fused=True)
    x = torch.randn(B, D, device=DEVICE, dtype=torch.bfloat16)
    target = torch.randint(C, (B,), device=DEVICE)

    def step() -> None:
        keys, b, w_s, weight, memory = (p.bfloat16() for p in parameters)
        v = ops.meta_embedding(x, memory.detach(), keys, b, w_s, gate_bias.bfloat16())
        loss = ops.cosine_cross_entropy(v, weight, target)
        loss = loss + 0.01 * ops.disc_centroids_loss(x, target, memory)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()  # momentum is there from now on
    held = (
        4 * sum(3 * p.numel() for p in (*parameters, gate_bias)) / 2**30
    )  # with gradients, momenta
    peak = peak_bytes(step) / 2**30
    found = microseconds({"ours": step}, rounds=5)["ours"]
    return {"B": B, "C": C, "D": D, **found, "held_gb": held, "peak_beyond_gb": peak}


def chunk_sizes(
    shapes: tuple = ((256, 8142, 2048), (512, 100_000, 512), (64, 1_000_000, 512)),
) -> list[dict]:
    """Time by bytes of a chunk of classes: few large ones leave L2, many small ones launch."""
    rows = []
    workload = WORKLOADS["meta_embedding"]
    for B, C, D in shapes:
        inputs = inputs_of("meta_embedding", "full", B, C, D)
        calls = {
            m: by_chunks(caller(workload.ours, inputs, m, workload.shape(B, C, D)))
            for m in ("forward", "full")
        }
        for megabytes in (12, 24, 48, 96, 192):
            os.environ["OLTR_EXT_CUDA_CHUNK_MB"] = str(megabytes)
            try:
                found = microseconds(calls, rounds=5)
            finally:
                del os.environ["OLTR_EXT_CUDA_CHUNK_MB"]
            rows.append({"B": B, "C": C, "D": D, "chunk_mb": megabytes, **found})
        del inputs, calls
        settle()
    return rows


def accuracy(B: int = 256, C: int = 8142, D: int = 512) -> list[dict]:
    """Error against float64, over the largest value, for every dtype and precision."""
    from oltr_ext import ops

    generator = torch.Generator(DEVICE).manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE, dtype=torch.float64)

    x, memory, keys, bias = rand(B, D), rand(C, D), rand(C, D) / D**0.5, rand(C)
    near = memory[:B] + 1e-2 * F.normalize(rand(B, D)) * memory[:B].norm(dim=1, keepdim=True)
    rows = []
    for dtype, precision in [
        (torch.float32, "highest"), (torch.float32, "high"), (torch.float32, "medium"),
        (torch.bfloat16, "highest"), (torch.float16, "highest"),
    ]:  # fmt: skip
        torch.set_float32_matmul_precision(precision)
        a = [t.to(dtype) for t in (x, keys, bias, memory)]
        wide = [t.double() for t in a]
        want = torch.softmax(torch.addmm(wide[2], wide[0], wide[1].t()), 1) @ wide[3]
        attention = (ops.memory_attention(*a).double() - want).abs().max() / want.abs().max()
        close = near.to(dtype)
        distance, index = ops.nearest_centroid(close, a[3])
        true = (close.double() - a[3][index].double()).norm(dim=1)
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."), "precision": precision,
                "attention": attention.item(),
                "near_distance": ((distance.double() - true).abs() / true).max().item(),
                "nearest_found": (index == torch.arange(B, device=DEVICE)).float().mean().item(),
            }
        )  # fmt: skip
    torch.set_float32_matmul_precision("highest")
    return rows


def run(save: Callable[[dict], None]) -> None:
    """Everything, as plain data; `save` is given all of it so far, again and again."""
    deadline = time.monotonic() + SECONDS
    found: dict[str, Any] = {}

    def keep(name: str, make: Callable[[], Any]) -> None:
        settle()
        try:
            found[name] = make()
        except Exception as error:  # the other figures are worth having
            found[name] = {"error": _said(error)}
        print(name, found[name], flush=True)
        save(found)

    found["peaks"] = peaks()
    for op, mode, B, C, D, goal in CASES:
        case = partial(measure, op, mode, B, C, D, found["peaks"])
        keep(f"{op} {mode} {B}x{C}x{D}", lambda c=case, g=goal: {**c(), "goal_us": g})
    keep("training_step", training_step)
    keep("accuracy", accuracy)
    keep("chunks", chunk_sizes)
    for op, mode, B, C, D in COMPILED:
        if time.monotonic() < deadline:
            keep(f"{op} {mode} {B}x{C}x{D}, compiled", partial(compiled, op, mode, B, C, D))
