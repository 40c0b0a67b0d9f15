"""Which images of a class that joins are unlike the rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["unlike"]

UNLIKE = 1.75
"""Of five icons of a class never seen with one of another class among them, it names that one about
every other time, and 1 % of the right ones (`benchmarks/results/choices.md`)."""


def unlike(features: Tensor) -> list[int]:
    """Which of the images of one class look unlike the rest, the most so first.

    Those whose mean cosine distance to the others is `UNLIKE` times the median of theirs; of fewer
    than four none, for there is no rest to speak of.

    Args:
        features: (N, D).
    """
    if len(features) < 4:
        return []
    z = F.normalize(features.double().cpu(), dim=1)
    mean = 1 - (z @ z.t()).fill_diagonal_(0).sum(dim=1) / (len(z) - 1)
    others = ~torch.eye(len(z), dtype=torch.bool)
    typical = mean.expand(len(z), -1)[others].view(len(z), -1).quantile(0.5, dim=1)
    far = mean > UNLIKE * typical.clamp_min(1e-6)  # the same image several times is like itself
    return [n for n in mean.argsort(descending=True).tolist() if far[n]]
