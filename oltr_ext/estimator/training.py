"""How an `OLTRHead` learns on features that stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oltr_ext.nn import OLTRHead

__all__ = ["Plan", "class_statistics", "extended", "started", "train"]

LR, MOMENTUM, WEIGHT_DECAY = 0.003, 0.9, 5e-4
LEAST = 1e-30
"""Share of a class, whose logarithm is a number in any dtype."""
WORK = 150_000
"""Rows that `epochs="auto"` passes over."""


@dataclass(frozen=True)
class Plan:
    """How often to pass over how large batches."""

    epochs: int
    batch_size: int

    @staticmethod
    def of(rows: int, epochs: int | str, batch_size: int) -> Plan:
        """`auto` passes 60 times over what is one batch, which takes a step a pass, and 40 times
        over more, less often over many rows."""
        if isinstance(epochs, str):
            epochs = 60 if rows <= batch_size else max(6, min(40, round(WORK / rows)))
        return Plan(epochs, min(batch_size, rows))

    def steps(self, rows: int) -> int:
        """Of whole batches."""
        return self.epochs * self.batches(rows)

    def batches(self, rows: int) -> int:
        return max(1, rows // self.batch_size)


def class_statistics(x: Tensor, y: Tensor, weight: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weighted means (C, D) and sums of weights (C,) of rows (N, D); sums run in float64."""
    total = torch.zeros(classes, dtype=torch.float64).index_add_(0, y, weight.double())
    sums = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    for rows, label, w in zip(x.split(8192), y.split(8192), weight.split(8192), strict=True):
        sums.index_add_(0, label, rows.double() * w.double()[:, None])
    return sums / total[:, None], total


def started(means: Tensor, total: Tensor, dtype: torch.dtype, prior_share: float) -> OLTRHead:
    """A head that stands at class means (C, D): memory, keys and classifier; its gate is shut.

    Args:
        total: (C,) weight of each class, whose share is the prior it learns under.
        prior_share: of that prior in what it answers; see `PriorHead`.
    """
    classes, width = means.shape
    with torch.random.fork_rng(devices=[]):  # what it draws is written over
        head = OLTRHead(
            width,
            classes,
            feature_loss_weight=0.0,  # features stand still, and so do their means
            # No label smoothing: it bounds what the largest class is ahead by, of which the prior
            # then takes its part, and on rows that are easy to part its rows go to the rarest.
            class_prior=(total / total.sum()).float().clamp_min(LEAST),
        )
    head = head.to(dtype)
    head.prior_share.fill_(prior_share)
    head.init_from(
        None, means.to(dtype), torch.arange(classes), classifier="means", selector="zero"
    )
    return head


def extended(old: OLTRHead, means: Tensor, total: Tensor, dtype: torch.dtype) -> OLTRHead:
    """`started`, with what an older head of the first classes has learned."""
    first = old.num_classes
    head = started(means, total, dtype, float(old.prior_share))
    with torch.no_grad():
        ours, theirs = head.classifier, old.classifier
        ours.fc_hallucinator.weight[:first] = theirs.fc_hallucinator.weight
        ours.fc_hallucinator.bias[:first] = theirs.fc_hallucinator.bias
        ours.fc_selector.load_state_dict(theirs.fc_selector.state_dict())
        ours.cosnorm_classifier.weight[:first] = theirs.cosnorm_classifier.weight
    return head


def train(
    head: OLTRHead,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    plan: Plan,
    generator: torch.Generator,
    *,
    rate: float = 1.0,
    tick: Callable[[float], None] = lambda _: None,
) -> None:
    """Passes over rows (N, D) with labels and weights (N,), in place; the rate falls to zero.

    One batch for all is taken as it is, without a draw.

    Args:
        rate: times the usual learning rate.
        tick: gets the loss of each step.
    """
    trained = [p for p in head.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trained, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    alike = bool((weight == weight[0]).all())
    worths = (weight / weight.mean()).to(x.dtype)
    batches, steps, step = plan.batches(len(x)), plan.steps(len(x)), 0
    for _ in range(plan.epochs):
        order = torch.randperm(len(x), generator=generator) if batches > 1 else None
        for number in range(batches):
            at = slice(None)
            rows, label, worth = x[at], y[at], worths[at]
            if order is not None:
                of_batch = order[number * plan.batch_size : (number + 1) * plan.batch_size]
                rows, label, worth = x[of_batch], y[of_batch], worths[of_batch]
            for group in sgd.param_groups:
                group["lr"] = rate * LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            sgd.zero_grad()
            loss = head.loss(rows, label) if alike else _weighted(head, rows, label, worth)
            loss.backward()
            sgd.step()
            step += 1
            tick(float(loss.detach()))


def _weighted(head: OLTRHead, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    parts = head.classifier.embed(x, head.memory.centroids, head.memory.present)
    logits = head.classifier.cosnorm_classifier(parts.embedding)
    assert head.class_prior is not None
    logits = logits + head.class_prior.to(logits.dtype).log()
    each = F.cross_entropy(logits, y, reduction="none")
    return (weight * each).mean()
