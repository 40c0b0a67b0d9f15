from __future__ import annotations

import torch
from torch import Tensor


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Half precision to float32; float32 and float64 as they are."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def check_labels(op: str, target: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raises RuntimeError for a label outside [0, classes), as the native kernels do."""
    if torch.compiler.is_compiling() or target.device.type == "meta":
        return
    wrong = (target < 0) | (target >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise RuntimeError(
            f"{op}: expected every target in [0, {classes}), got {int(target[row])} at row {row}"
        )


def reads_values(t: Tensor) -> bool:
    """Whether what is computed may depend on values: not while a graph is traced or mapped."""
    if torch.compiler.is_compiling() or t.device.type == "meta":
        return False
    return torch._C._functorch.peek_interpreter_stack() is None
