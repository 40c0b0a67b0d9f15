"""The rule by which a class that joins gets its row of the classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

RIVALS = 2048
"""Trained classes that a new one is set against; of more, as many, evenly spaced."""
HARDEST = 32
"""Of these, those that it is most like."""
STEPS, RATE = 15, 0.2
SLACK = 0.5
"""How much higher than as likely, in logits, a new class may stand at a rival's mean before it is
pushed off: with none it gets less of its images than training again would give it."""


@dataclass(frozen=True)
class Rivals:
    """Trained classes, each by the feature of its mean, as the classifier sees them."""

    inputs: Tensor
    """(P, D) float32, what the classifier's rows are multiplied by."""
    total: Tensor
    """(P,) logsumexp of the logits over trained classes, less the bias of a new one."""
    length: float
    """Of a row of the classifier, times the scale of its logits."""
    see: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Inputs (K, D) and totals (K,) of features (K, D)."""
    typical: dict[str, Tensor]
    """What a head looked up of its trained classes, for the new ones to be alike."""

    def direction(self, features: Tensor) -> Tensor:
        """Unit rows (K, D) that tell classes with these mean features (K, D) from the rivals.

        Logistic regression of one row a class on one example of it, its mean, and one of each
        rival: its logit against the logsumexp of the trained ones, which stay as they are. The row
        starts at the mean's own direction (Qi et al., CVPR 2018), keeps the trained rows' length,
        and has their bias.
        """
        found, sign = [], self.inputs.new_ones(1 + min(HARDEST, len(self.inputs)))
        sign[1:] = -1
        for part in features.split(256):
            own, level = self.see(part)
            row = F.normalize(own, dim=1)
            near = (row @ self.inputs.t()).topk(len(sign) - 1, dim=1).indices
            # examples (K, 1 + H, D), and what each logit is to be above or below
            given = torch.cat([own[:, None], self.inputs[near]], dim=1)
            limit = torch.cat([level[:, None], self.total[near] + SLACK], dim=1)
            rate = RATE / own.norm(dim=1, keepdim=True).clamp_min(1e-12)
            for _ in range(STEPS):
                logit = self.length * torch.bmm(given, row[:, :, None])[:, :, 0]
                pull = sign * torch.sigmoid(sign * (limit - logit))
                row = F.normalize(row + rate * torch.bmm(pull[:, None], given)[:, 0], dim=1)
            found.append(row)
        return torch.cat(found)


def spaced(ids: Tensor, most: int) -> Tensor:
    """At most that many of ids (N,), evenly spaced."""
    if len(ids) <= most:
        return ids
    return ids[torch.arange(most, device=ids.device) * len(ids) // most]
