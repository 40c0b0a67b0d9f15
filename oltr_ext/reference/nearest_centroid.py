from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import reads_values, widen


def nearest_centroid(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """min_c |x - memory_c| over the whole (B, C) matrix of distances, and its class."""
    wide, m = widen(x, memory)
    index = _nearest(wide.detach(), m.detach())
    gap = wide - m.index_select(0, index)  # the gradient of m[index] has other bits each time
    least, most, up = _range(gap.dtype)
    size = gap.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.ones_like(size).masked_fill(size < least, up).masked_fill(size > most, 1 / up)
    distance = torch.linalg.vector_norm(gap * scale, dim=1) / scale.squeeze(1)
    return distance.to(x.dtype), index


def _range(dtype: torch.dtype) -> tuple[float, float, float]:
    """Between which lengths squares do not leave the dtype's range, and a power of two that brings
    smaller ones there, as its inverse does larger ones."""
    if dtype == torch.float64:
        return 2.0**-300, 2.0**300, 2.0**600
    return 2.0**-40, 2.0**40, 2.0**90


def _nearest(x: Tensor, m: Tensor) -> Tensor:
    """Class (B,) of the smallest distance."""

    def distances(a: Tensor, b: Tensor, p: float = 2.0) -> Tensor:
        return torch.cdist(a, b, p=p, compute_mode="donot_use_mm_for_euclid_dist")

    least, most, up = _range(x.dtype)
    plain = distances(x, m)
    found, index = plain.min(dim=1)
    if reads_values(x, m) and ((found > least) & (found < most) | found.isnan()).all():
        return index
    if x.dtype == torch.float32 and x.device.type == "cpu":  # whose float64 is half as fast
        return distances(x.double(), m.double()).argmin(dim=1)
    # By the scale that suits the nearest, by its largest coordinate.
    size = distances(x, m, torch.inf)
    low = size.amin(dim=1, keepdim=True)
    finite = torch.finfo(x.dtype).max
    small = distances((x * up).clamp(-finite, finite), (m * up).clamp(-finite, finite))
    small = torch.where(size < least, small, plain * up)
    large = distances(x / up, m / up)
    return torch.where(low < least, small, torch.where(low > most, large, plain)).argmin(dim=1)
