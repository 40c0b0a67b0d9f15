from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import widen


def nearest_centroid(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """min_c |x - memory_c| over the whole (B, C) matrix of distances, and its class."""
    wide, m = widen(x, memory)
    distances = torch.cdist(wide, m, compute_mode="donot_use_mm_for_euclid_dist")
    distance, index = distances.min(dim=1)
    return distance.to(x.dtype), index
