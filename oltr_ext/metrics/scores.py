"""The scores of oltr_ext.nn.scores over a whole test set, checked; higher means known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from oltr_ext.nn.scores import HEAD_SCORES, all_scores

from .arrays import FloatArray, as_scores, to_numpy

SCORE_NAMES = HEAD_SCORES


def open_scores(
    logits: Any,
    distance: Any | None = None,
    unknown: Any | None = None,
    *,
    scale: float = 10.0,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> dict[str, FloatArray]:
    """Every score of a batch; higher means known.

    Args:
        logits: (B, C) logits over the known classes.
        distance: (B,) Euclidean distance to the nearest centroid, if the head has a memory.
        unknown: (B,) probability of "unknown", if the head itself gives one.
        scale: s of the reachability r = s / d (OLTR, Eq. 3; 10 in the paper's code).
        temperature: T of the energy score T * logsumexp(logits / T) (Liu et al. 2020, Eq. 4,
            with its sign turned). The other scores do not use it.
        eps: smallest distance, so that an image equal to a centroid has a finite reachability.

    Returns:
        float64 (B,) arrays under "max_softmax", "max_logit", "energy" and, given distance,
        "nearest_distance" (= -distance) and "reachability" (= scale / distance). The last two
        order images alike; they differ in their thresholds. Given unknown, "openmax" too.

    Raises:
        ValueError: NaN or infinite logits or distances (single logits may be -inf: of classes that
            are no answer), wrong shapes, no class, a negative distance, a probability outside
            [0, 1], a scale, temperature or eps that is infinite or not above 0.
    """
    # a tensor is reduced where it lies: B x C logits need not leave their device
    z = logits.detach() if torch.is_tensor(logits) else torch.from_numpy(to_numpy(logits))
    if z.dim() != 2 or z.shape[1] == 0 or not z.is_floating_point():
        raise ValueError(
            f"open_scores: expected (B, C >= 1) floating-point logits, "
            f"got shape {tuple(z.shape)} of {z.dtype}"
        )
    for name, value in (("scale", scale), ("temperature", temperature), ("eps", eps)):
        if not 0 < value < math.inf:
            raise ValueError(f"open_scores: expected finite {name} > 0, got {value}")
    if distance is not None:
        d = as_scores(distance, "open_scores: distance")
        if d.shape != (len(z),) or not ((d >= 0) & (d < np.inf)).all():
            raise ValueError(
                f"open_scores: expected {len(z)} finite distances >= 0, got shape {d.shape} "
                f"from {d.min(initial=np.inf)} to {d.max(initial=-np.inf)}"
            )
        distance = torch.from_numpy(d)
    if unknown is not None:
        p = as_scores(unknown, "open_scores: unknown")
        if p.shape != (len(z),) or (p < 0).any() or (p > 1).any():
            raise ValueError(
                f"open_scores: expected {len(z)} probabilities of unknown in [0, 1], "
                f"got shape {p.shape} from {p.min(initial=np.inf)} to {p.max(initial=-np.inf)}"
            )
        unknown = torch.from_numpy(p)
    scores = all_scores(z, distance, unknown, scale=scale, temperature=temperature, eps=eps)
    bad = int((~torch.isfinite(scores["max_logit"])).sum())
    if bad:
        raise ValueError(f"open_scores: {bad} of {len(z)} rows of logits hold NaN or infinity")
    return {name: score.cpu().numpy() for name, score in scores.items()}
