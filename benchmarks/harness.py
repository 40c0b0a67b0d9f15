"""Times ours and its peers in turn, beside the machine's ceilings, and records all of it.

Speeds drift on a shared machine, so nothing is timed alone: a round is A B C A B C ..., the bare
loops of the same moment included, and only medians over rounds are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import floors
import peak_memory
import peaks
import pytest
import torch
from awake import REST, WAKE, ready
from cases import Case, matmul_precision
from errors import errors
from machine import watch_others
from peers import PEERS
from workloads import WORKLOADS, caller

LEAST_ROUNDS, MOST_ROUNDS = 5, 21


@dataclass(frozen=True)
class Settings:
    """The options of one run; see conftest.py."""

    budget: float
    smoke: bool = False
    compile: bool = False
    memory: bool = False


def seconds(call: Callable[[], Any]) -> float:
    """One call, timed, with both processors awake."""
    ready()
    begin = time.perf_counter()
    result = call()
    end = time.perf_counter()
    del result  # freed outside the time, for every one alike
    return end - begin


def _summary(times: list[float], loops: int) -> dict[str, Any]:
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "median_s": statistics.median(times) / loops,
        "iqr_s": (high - low) / loops,
        "rounds": len(times),
    }


def interleave(
    benchmark: Any,
    ours: Callable[[], Any],
    peers: dict[str, Callable[[], Any]],
    ceilings: dict[str, Callable[[], float]],
    budget: float,
    loops: int = 1,
) -> dict[str, Any]:
    """Runs pytest-benchmark's rounds of ``ours`` with every peer and ceiling once in each.

    Args:
        benchmark: the fixture; it times ``ours``, in between the peers.
        peers: calls by name. One so slow that rounds of it would break the budget, and at least
            five times as slow as another, is timed once.
        ceilings: functions that measure for themselves, such as a FLOP rate.
        budget: seconds; five rounds are made in any case.
        loops: how many times a function calls what it measures.

    Returns:
        ``ours`` and ``peers`` (median, interquartile range, rounds; seconds a call), ``ceilings``
        (highest), and ``others_cpu``, the share of the processors that other processes took.
    """
    every = {"": ours, **peers}
    for call in (*every.values(), *ceilings.values()):
        call()  # compiles, loads, allocates: all of it before anybody watches
    guess = {name: seconds(call) for name, call in every.items()}
    slow = {n for n, t in guess.items() if n and t > budget / 10 and t > 5 * min(guess.values())}
    length = sum(t + REST + WAKE for n, t in guess.items() if n not in slow)
    length += len(ceilings) * peaks.SECONDS
    rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(budget / length)))

    times: dict[str, list[float]] = {name: [] for name in peers}
    rates: dict[str, list[float]] = {name: [] for name in ceilings}

    result: list[Any] = []  # freed outside the time, as in seconds()

    def others() -> None:
        result.clear()
        for name, measure in ceilings.items():
            rates[name].append(measure())
        for name, call in peers.items():
            if name not in slow:
                times[name].append(seconds(call))
        ready()

    share = watch_others()
    # The set-up of the warm-up round is timed as well; its numbers are dropped.
    benchmark.pedantic(lambda: result.append(ours()), setup=others, rounds=rounds, warmup_rounds=1)
    others_cpu = share()
    for name in slow:
        times[name] = [0.0, guess[name]]
    return {
        "ours": _summary(list(benchmark.stats.stats.data), loops),
        "peers": {name: _summary(found[1:], loops) for name, found in times.items()},
        # The highest: whatever disturbs a bare loop lowers it, and would flatter the share.
        "ceilings": {name: max(found[1:]) for name, found in rates.items()},
        "others_cpu": others_cpu,
    }


def record(
    benchmark: Any, op: str, case: Case, found: dict[str, Any], baselines: Iterable[str] = ()
) -> None:
    """Writes the findings into ``benchmark.extra_info``, which reaches the JSON.

    Args:
        baselines: peers that do less than ours does, and so cannot be the best peer.
    """
    least = floors.floor(op, case.mode, case.B, case.C, case.D, case.torch_dtype.itemsize)
    ours, ceilings = found["ours"]["median_s"], found["ceilings"]
    peak = floors.rate(case.dtype, ceilings)
    rivals = {n: p["median_s"] for n, p in found["peers"].items() if n not in set(baselines)}
    best = min(rivals, key=lambda name: rivals[name], default=None)
    least_s = least.seconds(peak, ceilings["read_gbytes"])
    benchmark.group = op
    benchmark.extra_info.update(
        {
            "op": op,
            **case._asdict(),
            "threads": torch.get_num_threads(),
            **found,
            "floor_flops": least.flops,
            "floor_bytes": least.bytes,
            "floor_s": least_s,
            "bound": "arithmetic" if least.flops / (1e9 * peak) >= least_s else "memory",
            "gflops": least.flops / ours / 1e9,
            "share_of_peak": least.flops / ours / 1e9 / peak,
            "share_of_floor": least_s / ours,
            "best_peer": best,
            "ratio": rivals[best] / ours if best else None,
            "baselines": {n: ours / found["peers"][n]["median_s"] for n in baselines},
        }
    )


def ceilings(op: str, case: Case) -> dict[str, Callable[[], float]]:
    """The bare loops; the read is as large as the case's bytes, so that caches serve both."""
    least = floors.floor(op, case.mode, case.B, case.C, case.D, case.torch_dtype.itemsize)
    data = peaks.buffer(least.bytes)
    return {
        "fp32_gflops": peaks.fp32_gflops,
        "bf16_gflops": peaks.bf16_gflops,
        "read_gbytes": lambda: peaks.read_gbytes(data),
    }


def require_memory(case: Case, banks: int) -> None:
    """Skips a case whose banks, their gradients and one peer's would not fit into memory."""
    need = banks * case.C * case.D * 4 * (1 if case.mode == "forward" else 3)
    free = peak_memory.available()
    if need > 0.8 * free:
        pytest.skip(f"needs {need / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free")


def measure(benchmark: Any, settings: Settings, op: str, case: Case) -> None:
    """One op against all of its peers."""
    case = case.small() if settings.smoke else case
    mode, B, C, D, _ = case
    workload = WORKLOADS[op]
    require_memory(case, 2)
    missing, functions = {}, {}
    for name, peer in PEERS[op].items():
        why = peer.why_not(mode, B, C, D, case.torch_dtype)
        if why:
            missing[name] = why
        else:
            functions[name] = peer.call
    inputs = workload.inputs(B, C, D, case.torch_dtype, mode != "forward")

    def prepared(function: Callable[..., Any]) -> Callable[[], Any]:
        return caller(function, inputs, mode, workload.shape(B, C, D))

    with matmul_precision(case.dtype):
        calls = {name: prepared(function) for name, function in functions.items()}
        if settings.compile and mode != "backward":
            eager = [name for name in calls if name.startswith("eager")]
            best = min(eager, key=lambda name: (calls[name](), seconds(calls[name]))[1])
            torch._dynamo.reset()  # each case is compiled for its own shape
            compiled = torch.compile(functions[best], dynamic=False)
            calls[f"compiled {best.removeprefix('eager').strip()}".strip()] = prepared(compiled)
        found = interleave(
            benchmark, prepared(workload.ours), calls, ceilings(op, case), settings.budget
        )
        quick = [name for name in functions if found["peers"][name]["rounds"] > 1]
        held = {"": workload.ours, **{name: functions[name] for name in quick}}
        wrong = errors(workload, case, held)
    memory = {}
    if settings.memory:
        del inputs, calls
        memory = {name: peak_memory.measure(op, case, name) for name in ("", *quick)}
    found |= {"unavailable": missing, "memory": memory, "errors": wrong}
    record(benchmark, op, case, found)
