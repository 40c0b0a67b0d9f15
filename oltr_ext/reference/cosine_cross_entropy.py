from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.reference._common import check_labels, widen
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
    """(loss a row of the whole (B, C) logits, 0 where the target is ignore_index; rows counted)."""
    op = "cosine_cross_entropy"
    check_labels(op, target, weight.shape[0], ignore_index)
    logits = cosine_logits(*widen(v, weight), scale=scale)
    possible = torch.ones(weight.shape[0], dtype=torch.bool, device=v.device)
    if log_prior is not None:
        if not torch.compiler.is_compiling() and (log_prior.isnan() | log_prior.isposinf()).any():
            raise RuntimeError(f"{op}: expected class_prior to be finite and not negative")
        logits = logits + log_prior
        possible = log_prior.isfinite()
    counted = target != ignore_index
    picked = logits.gather(1, torch.where(counted, target, 0).unsqueeze(1)).squeeze(1)
    loss = logits.logsumexp(dim=1) - (1 - label_smoothing) * picked
    if label_smoothing > 0:
        mean = torch.where(possible, logits, 0).sum(dim=1) / possible.sum()
        loss = loss - label_smoothing * mean
    return torch.where(counted, loss, torch.zeros_like(loss)), counted.sum()
