"""Buffers that keep their dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def indices(values: Any) -> Tensor:
    """Whole numbers in float64, for buffers that are read by rounding.

    ``torch.optim.swa_utils.AveragedModel(use_buffers=True)`` averages buffers of integers with what
    is left of them cut off, so that an average of 3 and 3 may be 2, and of booleans not at all.
    """
    return torch.as_tensor(values, dtype=torch.float64)


def moved_exactly(value: Tensor, fn: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """What `fn`, as `nn.Module._apply` takes it, makes of a buffer, but in `dtype`."""
    try:
        moved = fn(value)
        return moved if moved.dtype == dtype else value.to(moved.device).to(dtype)
    except TypeError:  # the device has no float64
        value = value.float()
        return value.to(fn(value).device)
