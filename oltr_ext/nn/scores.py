"""Scores that tell the known from the unknown; higher means known."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from oltr_ext.nn.parted import PartedLogits

LOGIT_SCORES = ("max_softmax", "max_logit", "energy")
ENTROPY_SCORES = ("gen",)
DISTANCE_SCORES = ("nearest_distance", "reachability")
UNKNOWN_SCORES = ("openmax",)
FEATURE_SCORES = ("mahalanobis", "nearest_feature", "relative_mahalanobis", "knn", "vim")
SUMMED = ("max_logit", "mahalanobis", "nearest_feature", "relative_mahalanobis")
"""What sums are made of; `FeatureBank` keeps a mean and a deviation of each: only append."""
SUM_SCORES = {
    "+".join(parts): parts
    for parts in (
        *(("max_logit", name) for name in SUMMED[1:]),
        ("max_logit", "relative_mahalanobis", "nearest_feature"),
    )
}
BANK_SCORES = (*FEATURE_SCORES, *SUM_SCORES)  # see `FeatureBank`
HEAD_SCORES = LOGIT_SCORES + DISTANCE_SCORES + UNKNOWN_SCORES + ENTROPY_SCORES
SCORES = (  # heads store an index: only append
    *LOGIT_SCORES,
    *DISTANCE_SCORES,
    *UNKNOWN_SCORES,
    "mahalanobis",
    "nearest_feature",
    "max_logit+mahalanobis",
    "max_logit+nearest_feature",
    *ENTROPY_SCORES,
    "relative_mahalanobis",
    "knn",
    "vim",
    "max_logit+relative_mahalanobis",
    "max_logit+relative_mahalanobis+nearest_feature",
)

GAMMA, TOP = 0.1, 100
"""Of `gen`, as its paper has them."""

CHUNK = 1 << 19
"""Logits that `logit_scores` works on at a time: near a processor's cache, and below the size at
which malloc takes fresh pages for every temporary."""


def logit_scores(
    logits: Tensor | PartedLogits, *, temperature: float = 1.0, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All of `LOGIT_SCORES`, in one pass and without another tensor of the logits' size.

    Args:
        logits: (B, C >= 1).
        temperature: see `open_score`.
        dtype: to compute in; that of the logits by default.

    Returns:
        (B,) under each name, as `open_score` gives it.

    Raises:
        ValueError: logits of another shape.
    """
    _check_logits("logit_scores", logits)
    if isinstance(logits, PartedLogits):
        top, total = logits.amax(dim=1), logits.log_total
        energy = total
        if temperature != 1:
            raise ValueError("logit_scores: expected a temperature of 1 for logits in parts")
        values = ((top - total).exp(), top, energy)
        return dict(zip(LOGIT_SCORES, (v.to(dtype or v.dtype) for v in values), strict=True))
    rows, parts = max(1, CHUNK // logits.shape[1]), []
    # a compiled graph is made for a number of parts
    for part in (logits,) if torch.compiler.is_compiling() else logits.split(rows):
        part = part.to(dtype or logits.dtype)
        top, total = part.amax(dim=1), part.logsumexp(dim=1)
        energy = total
        if temperature != 1:
            energy = temperature * (part / temperature).logsumexp(dim=1)
        parts.append(torch.stack([(top - total).exp(), top, energy]))
    return dict(zip(LOGIT_SCORES, torch.cat(parts, dim=1), strict=True))


def entropy_score(logits: Tensor | PartedLogits, *, gamma: float = GAMMA, top: int = TOP) -> Tensor:
    """``gen``: generalised entropy with its sign turned (Liu et al., CVPR 2023, Eq. 2 and 4).

    ``-sum p^gamma (1 - p)^gamma`` over the ``top`` largest probabilities p. Near p = 1 the power
    magnifies what is left to the others, so that is summed, never subtracted from 1.

    Args:
        logits: (B, C >= 1).
        top: M of the paper; all where there are fewer.

    Returns:
        (B,) in the dtype of the logits.

    Raises:
        ValueError: logits of another shape, or a ``top`` below 1.
    """
    _check_logits("entropy_score", logits)
    if top < 1:
        raise ValueError(f"entropy_score: expected top of at least 1, got {top}")
    if isinstance(logits, PartedLogits):
        largest, rest = logits.largest(top)[0], logits.log_rest[:, None]
        return _entropy(largest, rest, logits.log_total[:, None], gamma)
    rows, parts = max(1, CHUNK // logits.shape[1]), []
    for part in (logits,) if torch.compiler.is_compiling() else logits.split(rows):
        total = part.logsumexp(dim=1, keepdim=True)
        largest, at = part.topk(min(top, part.shape[1]), dim=1)
        rest = part.scatter(1, at[:, :1], -torch.inf).logsumexp(dim=1, keepdim=True)
        parts.append(_entropy(largest, rest, total, gamma))
    return torch.cat(parts)


def _entropy(largest: Tensor, rest: Tensor, total: Tensor, gamma: float) -> Tensor:
    """Of the largest logits (B, M); the logsumexp of all but the first, and of all, (B, 1)."""
    log_p = largest - total
    log_q = torch.cat([rest - total, torch.log1p(-log_p[:, 1:].exp())], dim=1)
    return -(gamma * (log_p + log_q)).exp().sum(dim=1)


def open_score(
    name: str,
    logits: Tensor,
    distance: Tensor | None = None,
    unknown: Tensor | None = None,
    *,
    scale: float = 10.0,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """One score per row.

    Args:
        name: ``max_softmax`` in (0, 1]; ``max_logit``; ``energy`` = T logsumexp(logits / T) (Liu et
            al. 2020, Eq. 4, with its sign turned); ``nearest_distance`` = -distance;
            ``reachability`` = scale / max(distance, eps); ``openmax`` = 1 - unknown (Bendale &
            Boult 2016); ``gen``, see `entropy_score`.
        logits: (B, C >= 1) over the known classes.
        distance: (B,) to the nearest centroid, for the two scores of distance.
        unknown: (B,) probability of "unknown" that the head itself gives, for ``openmax``.
        scale: of the reachability.
        temperature: T of the energy.
        eps: floor of the distance.

    Returns:
        (B,) in the dtype of its input.

    Raises:
        ValueError: an unknown name, logits of another shape, a distance score without a distance,
            or ``openmax`` without that probability.
    """
    _check_logits("open_score", logits)
    if name in DISTANCE_SCORES and distance is None:
        raise ValueError(f"open_score: {name} needs a head with a memory of centroids")
    if name in UNKNOWN_SCORES and unknown is None:
        raise ValueError(f"open_score: {name} needs a head that gives a probability of unknown")
    if name not in HEAD_SCORES:
        raise ValueError(f"open_score: expected one of {', '.join(HEAD_SCORES)}, got {name!r}")
    found = all_scores(
        logits, distance, unknown, names=(name,), scale=scale, temperature=temperature, eps=eps
    )
    given = distance if name in DISTANCE_SCORES else unknown if name in UNKNOWN_SCORES else logits
    assert given is not None
    return found[name].to(given.dtype)


def all_scores(
    logits: Tensor | PartedLogits,
    distance: Tensor | None = None,
    unknown: Tensor | None = None,
    *,
    names: Iterable[str] = HEAD_SCORES,
    scale: float = 10.0,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> dict[str, Tensor]:
    """Every score that there is an input for: calibrated, compared with thresholds and judged.

    Args: as of `open_score`, and
        names: scores that cost something, ``gen``, are left out unless named.

    Returns:
        (B,) float64 under each name; float32 on MPS, which has no other. In float32, max softmax is
        1 as soon as the other classes share less than 3e-8.

    Raises:
        ValueError: logits of another shape.
    """
    _check_logits("all_scores", logits)
    dtype = torch.float32 if logits.device.type == "mps" else torch.float64
    entropies = set(ENTROPY_SCORES) & set(names)
    if isinstance(logits, PartedLogits) and entropies:
        logits.largest(TOP)  # so that one pass is enough
    scores = logit_scores(logits, temperature=temperature, dtype=dtype)
    if distance is not None:
        for name in DISTANCE_SCORES:
            far = distance.to(dtype)
            scores[name] = -far if name == "nearest_distance" else scale / far.clamp(min=eps)
    if unknown is not None:
        for name in UNKNOWN_SCORES:
            scores[name] = 1 - unknown.to(dtype)
    for name in entropies:
        wide = logits if isinstance(logits, PartedLogits) else logits.to(dtype)
        scores[name] = entropy_score(wide)
    return scores


def _check_logits(where: str, logits: Tensor | PartedLogits) -> None:
    if len(logits.shape) != 2 or logits.shape[1] == 0:
        raise ValueError(f"{where}: expected logits (B, C >= 1), got {tuple(logits.shape)}")
