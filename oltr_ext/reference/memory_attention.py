from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import widen


def memory_attention(
    x: Tensor, keys: Tensor, key_bias: Tensor, memory: Tensor, *, memory_grad: bool
) -> Tensor:
    """softmax(x keys' + key_bias) memory, through the whole (B, C) attention."""
    wide, k, b, m = widen(x, keys, key_bias, memory if memory_grad else memory.detach())
    return (torch.softmax(wide @ k.t() + b, dim=1) @ m).to(x.dtype)
