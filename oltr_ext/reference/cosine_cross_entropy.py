from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import check_labels, reads_values, widen
from oltr_ext.reference.cosine_logits import cosine_logits


def cosine_cross_entropy(
    v: Tensor,
    weight: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    scale: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """(loss a row of the whole (B, C) logits, 0 where the target is ignore_index; rows counted).

    Raises:
        RuntimeError: a target outside [0, C) that is not ignore_index, or a prior not finite.
    """
    check_labels("cosine_cross_entropy", target, weight.shape[0], ignore_index)
    logits = cosine_logits(*widen(v, weight), scale=scale)
    return cross_entropy_of(logits, target, log_prior, label_smoothing, ignore_index)


def cross_entropy_of(
    logits: Tensor,
    target: Tensor,
    log_prior: Tensor | None,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """The same of logits (B, C)."""
    possible = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    if log_prior is not None:
        if reads_values(log_prior) and (log_prior.isnan() | log_prior.isposinf()).any():
            raise RuntimeError(
                "cosine_cross_entropy: expected class_prior to be finite and not negative"
            )
        logits = logits + log_prior
        possible = log_prior.isfinite()
    counted = target != ignore_index
    picked = logits.gather(1, torch.where(counted, target, 0).unsqueeze(1)).squeeze(1)
    loss = logits.logsumexp(dim=1) - (1 - label_smoothing) * picked
    if label_smoothing > 0:
        mean = torch.where(possible, logits, 0).sum(dim=1) / possible.sum()
        loss = loss - label_smoothing * mean
    return torch.where(counted, loss, torch.zeros_like(loss)), counted.sum()
