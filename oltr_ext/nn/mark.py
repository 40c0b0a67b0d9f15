"""Whether tensors that something was derived from are still what they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

SMALL = 1 << 20
"""Bytes that are compared at each call."""
_steps = 0  # of optimizers, of which fused ones leave no trace in what they write


def mark(tensors: Iterable[Tensor], *, trained: bool = False) -> list[Any] | None:
    """Another one as soon as a tensor is another, lies elsewhere or was written in place.

    Not for what is written through ``.data`` or by a collective of `torch.distributed`, which
    leave no trace, and only while the tensors live: keep them. None where torch does not say, as
    for those made in inference mode.

    Args:
        trained: also another one after each step of any optimizer, but in a compiled graph.
    """
    try:
        state: list[Any] = [(id(t), t.data_ptr(), t._version) for t in tensors]
    except RuntimeError:
        return None
    return [*state, _steps] if trained else state


def mark_values(tensor: Tensor) -> Any:
    """`mark`, but of a small one on the CPU, where no device is waited for, its numbers."""
    if not tensor.is_cpu or tensor.nbytes > SMALL:
        return mark([tensor])
    try:
        return tensor.numpy().tobytes()
    except (RuntimeError, TypeError):  # it has none, as while graphs are traced
        return None


def _stepped(*_: Any) -> None:
    global _steps
    if not torch.compiler.is_compiling():  # a graph would be made anew for each number
        _steps += 1


register_optimizer_step_post_hook(_stepped)
