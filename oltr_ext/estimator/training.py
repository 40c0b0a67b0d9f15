"""How an `OLTRHead` learns on features that stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from oltr_ext.nn import OLTRHead

__all__ = ["LEAST", "Plan", "class_statistics", "extended", "part_of", "started", "train"]

LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
LEAST = 1e-30
"""Share of a class, whose logarithm is a number in any dtype."""
WORK = 50_000
"""Rows that `epochs="auto"` passes over."""


@dataclass(frozen=True)
class Plan:
    """How often to pass over how large batches."""

    epochs: int
    batch_size: int

    @staticmethod
    def of(rows: int, epochs: int | str, batch_size: int) -> Plan:
        """`auto` passes 30 times over what is one batch, which takes a step a pass, and 24 times
        over more, less often over many rows."""
        if isinstance(epochs, str):
            epochs = 30 if rows <= batch_size else max(4, min(24, round(WORK / rows)))
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
    """A head that stands at class means (C, D), memory and classifier, without recall: on features
    that stand still, a gate that learned to open took most of the time, and rows held out were
    told apart no better for it.

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
            without=("memory", "selector"),
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
        weight = old.classifier.cosnorm_classifier.weight
        head.classifier.cosnorm_classifier.weight[:first] = weight
    return head


def part_of(old: OLTRHead, keep: Tensor, means: Tensor, total: Tensor) -> OLTRHead:
    """`started` on some of the classes of an older head, with what that has learned of them."""
    weight = old.classifier.cosnorm_classifier.weight
    head = started(means, total, weight.dtype, float(old.prior_share))
    with torch.no_grad():
        head.classifier.cosnorm_classifier.weight.copy_(weight[keep])
        head.memory.centroids.copy_(old.memory.centroids[keep])
        assert head.class_prior is not None and old.class_prior is not None
        head.class_prior.copy_(old.class_prior[keep])  # what is left scores what it scored
    return head


def train(
    head: OLTRHead,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    plan: Plan,
    generator: torch.Generator,
    *,
    tick: Callable[[float], None] = lambda _: None,
) -> None:
    """Passes over rows (N, D) with labels and weights (N,), in place; the rate falls to zero.

    One batch for all is taken as it is, without a draw.

    Args:
        tick: gets the loss of each step.
    """
    classifier, prior = head.classifier.cosnorm_classifier, head.class_prior
    assert prior is not None
    with torch.no_grad():  # features and memory stand still, so embeddings do
        embed, memory = head.classifier.embed, head.memory
        embeddings = torch.cat(
            [embed(rows, memory.centroids, memory.present).embedding for rows in x.split(8192)]
        )
    sgd = torch.optim.SGD(
        [classifier.weight], lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True
    )
    alike = bool((weight == weight[0]).all())
    worths = (weight / weight.mean()).to(x.dtype)
    log_prior = prior.to(x.dtype).log()
    batches, steps, step = plan.batches(len(x)), plan.steps(len(x)), 0
    for _ in range(plan.epochs):
        order = torch.randperm(len(x), generator=generator) if batches > 1 else None
        for number in range(batches):
            v, label, worth = embeddings, y, worths
            if order is not None:
                of_batch = order[number * plan.batch_size : (number + 1) * plan.batch_size]
                v, label, worth = v[of_batch], y[of_batch], worths[of_batch]
            for group in sgd.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            sgd.zero_grad()
            if alike:
                loss = classifier.loss(v, label, class_prior=prior)
            else:
                each = F.cross_entropy(classifier(v) + log_prior, label, reduction="none")
                loss = (worth * each).mean()
            loss.backward()
            sgd.step()
            step += 1
            tick(float(loss.detach()))
