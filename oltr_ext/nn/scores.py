"""Scores that tell the known from the unknown; higher means known."""

from __future__ import annotations

import torch
from torch import Tensor

LOGIT_SCORES = ("max_softmax", "max_logit", "energy")
DISTANCE_SCORES = ("nearest_distance", "reachability")
SCORES = LOGIT_SCORES + DISTANCE_SCORES


def open_score(
    name: str,
    logits: Tensor,
    distance: Tensor | None = None,
    *,
    scale: float = 10.0,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """One score per row.

    Args:
        name: ``max_softmax`` in (0, 1]; ``max_logit``; ``energy`` = T logsumexp(logits / T) (Liu et
            al. 2020, Eq. 4, with its sign turned); ``nearest_distance`` = -distance;
            ``reachability`` = scale / max(distance, eps).
        logits: (B, C) over the known classes.
        distance: (B,) to the nearest centroid, for the last two.
        scale: of the reachability.
        temperature: T of the energy.
        eps: floor of the distance.

    Returns:
        (B,) in the dtype of its input.

    Raises:
        ValueError: an unknown name, or a distance score without a distance.
    """
    if name in DISTANCE_SCORES and distance is None:
        raise ValueError(f"open_score: {name} needs a head with a memory of centroids")
    if name == "max_softmax":
        return (logits.amax(dim=1) - logits.logsumexp(dim=1)).exp()
    if name == "max_logit":
        return logits.amax(dim=1)
    if name == "energy":
        return temperature * (logits / temperature).logsumexp(dim=1)
    if name == "nearest_distance" and distance is not None:
        return -distance
    if name == "reachability" and distance is not None:
        return scale / torch.clamp(distance, min=eps)
    raise ValueError(f"open_score: expected one of {', '.join(SCORES)}, got {name!r}")
