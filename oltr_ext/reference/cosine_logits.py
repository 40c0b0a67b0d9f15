from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import widen


def _norm(t: Tensor) -> Tensor:
    """Row norms with a zero subgradient at zero."""
    return torch.linalg.vector_norm(t, dim=1, keepdim=True)


def cosine_logits(v: Tensor, weight: Tensor, *, scale: float) -> Tensor:
    """scale |v| / (1 + |v|) cos(v, weight_c), written so that zero rows have zero logits."""
    wide, w = widen(v, weight)
    norm = _norm(w)
    direction = w / torch.where(norm == 0, torch.ones_like(norm), norm)
    return (scale * (wide / (1 + _norm(wide))) @ direction.t()).to(v.dtype)
