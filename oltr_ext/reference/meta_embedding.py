from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import widen
from oltr_ext.reference.memory_attention import memory_attention
from oltr_ext.reference.nearest_centroid import nearest_centroid


def meta_embedding(
    x: Tensor,
    memory: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    *,
    scale: float,
    eps: float,
    memory_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """scale / max(d, eps) (x + tanh(x Ws' + bs) m) and its parts (m, e, d, nearest class)."""
    wide, centroids, k, b, w_s, b_s = widen(
        x, memory, keys, key_bias, selector_weight, selector_bias
    )
    if not memory_grad:
        centroids = centroids.detach()
    recalled = memory_attention(wide, k, b, centroids, memory_grad=memory_grad)
    distance, nearest = nearest_centroid(wide, centroids)
    embedding, selector, distance = joined(wide, recalled, distance, w_s, b_s, scale, eps)
    out = (embedding, recalled, selector)
    return (*(t.to(x.dtype) for t in out), distance, nearest)  # type: ignore[return-value]


def joined(
    x: Tensor,
    recalled: Tensor,
    distance: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The embedding of what was recalled and how far it is, the gate, and the floored distance."""
    selector = torch.tanh(x @ selector_weight.t() + selector_bias)
    # where, not clamp: at the floor itself the gradient is zero too.
    distance = torch.where(distance <= eps, torch.full_like(distance, eps), distance)
    # scale / distance, and more so its gradient, may overflow where this does not.
    return scale * ((x + selector * recalled) / distance.unsqueeze(1)), selector, distance
