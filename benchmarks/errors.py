"""How far a call is from float64, in units of the last place of its inputs' type."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from cases import Case
from torch import Tensor
from workloads import Workload, caller

from oltr_ext import use_backend

MOST = 3e9
"""The largest B C D whose distances are taken one by one in float64, which takes seconds."""


def units(got: Tensor, exact: Tensor, dtype: torch.dtype) -> float:
    """The largest error in units of the last place of the largest entry, as dtype has it: 0.5 is
    what an answer of that dtype is rounded by. NaN counts as infinite."""
    largest = exact.abs().max().item()
    exponent = math.floor(math.log2(largest)) if 0 < largest < math.inf else 0
    wrong = (got.double() - exact).abs().max().item()
    return math.inf if math.isnan(wrong) else wrong / (torch.finfo(dtype).eps * 2.0**exponent)


def answers(
    function: Callable[..., Any], workload: Workload, case: Case, dtype: torch.dtype
) -> list[Tensor]:
    """What one call gives (with "full" and "backward": gradients too), indices left out.

    The numbers are those of the case's dtype, whatever dtype they are computed in.
    """
    mode, B, C, D, _ = case
    grad = mode != "forward"
    made = workload.inputs(B, C, D, case.torch_dtype, grad=False)
    leaves = {n: made[n].to(dtype).requires_grad_(grad) for n in workload.leaves}
    shape = workload.shape(B, C, D)
    found = caller(function, {**made, **leaves}, mode, shape)()
    found = (found,) if isinstance(found, Tensor) else found
    return [t for t in found if t.is_floating_point()]


def errors(
    workload: Workload, case: Case, functions: dict[str, Callable[..., Any]]
) -> dict[str, float]:
    """The largest error of each function over all that it gives; nothing for the largest banks."""
    if case.B * case.C * case.D > MOST:
        return {}
    with use_backend("reference"):
        exact = answers(workload.ours, workload, case, torch.float64)
    found = {}
    for name, function in functions.items():
        got = answers(function, workload, case, case.torch_dtype)
        found[name] = max(units(g, e, case.torch_dtype) for g, e in zip(got, exact, strict=True))
    return found
