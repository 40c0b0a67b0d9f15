from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x if x.dtype == torch.float64 else x.float()


def widen(*tensors: Tensor) -> tuple[Tensor, ...]:
    """`wide` of each."""
    return tuple(map(wide, tensors))


def check_labels(op: str, target: Tensor, classes: int, ignore_index: int | None = None) -> None:
    """Raises RuntimeError for a label outside [0, classes), as the native kernels do."""
    if not reads_values(target):
        return
    wrong = (target < 0) | (target >= classes)
    if ignore_index is not None:
        wrong &= target != ignore_index
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise RuntimeError(
            f"{op}: expected every target in [0, {classes}), got {int(target[row])} at row {row}"
        )


def reads_values(*tensors: Tensor) -> bool:
    """Whether what is computed may depend on values of these: not while a graph is traced, nor on
    what `torch.vmap` maps over."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    for t in tensors:
        while functorch.is_functorch_wrapped_tensor(t) and functorch.is_gradtrackingtensor(t):
            t = functorch.get_unwrapped(t)
        if functorch.is_functorch_wrapped_tensor(t) or t.device.type == "meta":
            return False
    return True
