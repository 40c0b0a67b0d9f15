"""What a call costs before it computes anything: forward passes of 2 rows, 3 classes, 16 features.

Beside ours, the op's eager formula and one torch call, addmm, as the least that a call can cost.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case
from harness import Settings, ceilings, interleave, record
from peers import PEERS
from workloads import WORKLOADS

LOOPS = 500


def _repeat(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], None]:
    def loop() -> None:
        for _ in range(LOOPS):
            function(*args, **kwargs)

    return loop


@pytest.mark.quick
@pytest.mark.parametrize("op", WORKLOADS)
def test_overhead(benchmark, settings: Settings, op: str):
    case = Case("forward", 2, 3, 16)
    inputs = WORKLOADS[op].inputs(*case[1:4], torch.float32, grad=False)
    eager = next(name for name in PEERS[op] if name.startswith("eager"))
    x, weight, bias = torch.randn(2, 16), torch.randn(3, 16), torch.randn(3)
    found = interleave(
        benchmark,
        _repeat(WORKLOADS[op].ours, **inputs),
        {
            eager: _repeat(PEERS[op][eager].call, **inputs),
            "addmm alone": _repeat(torch.addmm, bias, x, weight.t()),
        },
        ceilings(op, case),
        min(settings.budget, 2.0),
        LOOPS,
    )
    record(benchmark, op, case, found, baselines=["addmm alone"])
    benchmark.group = "overhead"
