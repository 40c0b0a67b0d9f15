from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import widen


def _norm(t: Tensor) -> Tensor:
    """Row norms with a zero subgradient at zero."""
    return torch.linalg.vector_norm(t, dim=1, keepdim=True)


def cosine_logits(v: Tensor, weight: Tensor, *, scale: float) -> Tensor:
    """scale |v| / (1 + |v|) cos(v, weight_c); a zero row has zero logits and gradients."""
    wide, w = widen(v, weight)
    norm = _norm(w)
    zero = norm == 0
    direction = w / norm.masked_fill(zero, 1) * ~zero
    return (scale * (wide / (1 + _norm(wide))) @ direction.t()).to(v.dtype)
