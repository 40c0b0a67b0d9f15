"""Classifiers made anew on frozen features, so that the tail gets its share.

Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020,
Section 4 (tau-normalisation, LWS, NCM); Menon et al., *Long-Tail Learning via Logit Adjustment*,
ICLR 2021, Section 4.1. Their fourth, cRT, is a fresh `LinearHead` on class-balanced batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext.nn.enroll import ClassTensor
from oltr_ext.nn.layout import WHOLE, Layout
from oltr_ext.nn.linear_head import LinearHead
from oltr_ext.nn.memory import means_over
from oltr_ext.ops.shard import largest, smallest
from oltr_ext.reference._common import wide

CHUNK = 1 << 24
"""Numbers, rows times classes, that are held at a time, so that N x C never are."""


def tau_normalise(weight: Tensor, tau: float) -> Tensor:
    """``w_c / ||w_c||^tau``: Kang et al., Section 4.

    Classes with many images have long weights; tau = 0 leaves them, tau = 1 makes all as long.

    Args:
        weight: (C, D).
        tau: usually in [0, 1].

    Returns:
        (C, D); a zero row stays zero.

    Raises:
        ValueError: a weight of another number of dimensions.
    """
    if weight.dim() != 2:
        raise ValueError(f"tau_normalise: expected weight (C, D), got {tuple(weight.shape)}")
    norm = wide(weight).norm(dim=1, keepdim=True).clamp_min(1e-12)
    return (wide(weight) / norm**tau).to(weight.dtype)


def best_tau(
    weight: Tensor,
    features: Tensor,
    target: Tensor,
    candidates: Iterable[float],
    worth: Tensor | None = None,
    layout: Layout = WHOLE,
) -> float:
    """The tau that gets most of the given rows right, the smallest of equals.

    The paper chooses it on validation data.

    Args:
        weight: (C, D). features: (N, D). target: (N,), -1 = open, which does not count.
        worth: (C,) of a row of each class; all alike by default. Where classes are not as frequent
            in these rows as they are expected to be, what a class is expected over what it has.
        layout: where the classes are; of a shard, `weight` has its own rows, and every process is
            given the same features.

    Raises:
        ValueError: no candidate, no class, no row of a class that counts, or another number of
            weights than of worths.
    """
    total = len(weight) if layout.shard is None else layout.shard.total
    if total == 0 or (worth is not None and tuple(worth.shape) != (total,)):
        worths = "no worth" if worth is None else f"a worth {tuple(worth.shape)}"
        raise ValueError(
            f"best_tau: expected weight (C >= 1, D) and worth (C,), got {tuple(weight.shape)} and "
            f"{worths}"
        )
    known, step = target >= 0, max(1, CHUNK // total)

    def answer(logits: Tensor) -> Tensor:
        if layout.shard is None:
            return logits.argmax(1)
        none = logits.new_full((len(logits), 1), -torch.inf)  # of a shard that is empty
        value, label = torch.cat([logits, none], dim=1).max(1)
        here = value == largest(layout.shard, value)
        return smallest(layout.shard, torch.where(here, label + layout.shard.start, total))

    def count_right(scaled: Tensor) -> float:
        label = torch.cat([answer(part @ scaled.t()) for part in features.split(step)])
        right = target[(label == target) & known]
        if worth is None:
            return len(right)
        counts = right.bincount(minlength=total).to(worth.device, worth.dtype)
        return float(counts @ worth)

    right = {tau: count_right(tau_normalise(weight, tau)) for tau in sorted(candidates)}
    counting = known if worth is None else known & (worth.to(target.device)[target] > 0)
    if not right or not counting.any():
        raise ValueError(
            f"best_tau: expected candidates and rows of known classes that count, got {len(right)} "
            f"and {int(counting.sum())}"
        )
    return max(right, key=lambda tau: right[tau])


def class_directions(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, layout: Layout = WHOLE
) -> Tensor:
    """Class means of unit length: a linear classifier's weights for the nearest class mean.

    Kang et al. take the class whose mean is nearest by cosine, or by the distance to the mean of
    unit length, ``||x||^2 - 2 x.m + 1``. Both name the class with the largest x.m.

    Args:
        batches: features (B, D) and labels (B,) in [0, num_classes), together the training set.
        layout: where the classes are; of a shard, the result has its own rows.

    Returns:
        (C, D) float32; zero for a class without images.

    Raises:
        ValueError: no feature at all, or features and labels of shapes that do not fit. TypeError:
            labels that are no integers. RuntimeError: a label out of range.
    """
    return F.normalize(means_over(batches, num_classes, layout).means, dim=1).float()


def logit_adjusted_bias(bias: Tensor, prior: Tensor, tau: float = 1.0) -> Tensor:
    """``b_c - tau log prior_c``: a linear classifier with its logits adjusted after training.

    Menon et al., Eq. 9: predict ``argmax_c f_c(x) - tau log prior_c``.

    Args:
        bias: (C,). prior: (C,) class frequencies, all positive.

    Raises:
        ValueError: a frequency that is not positive, which no finite bias makes up for.
    """
    _check_prior("logit_adjusted_bias", prior)
    return bias - tau * prior.log()


class LWSHead(LinearHead):
    """Learnable weight scaling: ``f_c w_c x`` with w frozen and f trained, from 1.

    Kang et al., Section 4. Start it with :meth:`LinearHead.start_at`, without a bias, as there.
    """

    CLASS_TENSORS: ClassVar = {**LinearHead.CLASS_TENSORS, "scales": 1.0}

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        class_prior: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(feat_dim, num_classes, class_prior=class_prior, device=device)
        self.linear.requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(num_classes, device=device))

    def learned(self, features: Tensor) -> Tensor:
        return self.layout.own(self.scales) * super().learned(features)

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        return [*super()._class_tensors(what), ClassTensor(self, "scales")]

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        return [*super()._rows_of(mean, count), torch.ones_like(mean[:, 0])]

    def _rows(self) -> tuple[Tensor, Tensor]:
        return self.linear.weight * self.scales[:, None], self.linear.bias * self.scales


def prior_share(counts: Tensor, prior: Tensor) -> float:
    """The power t of the prior that makes counts of images most likely.

    With class frequencies ``prior^t / sum prior^t``, 0 makes all classes as likely and 1 is the
    prior. The likelihood has one maximum, where ``log prior`` has the mean that the counts give it;
    it is looked for in [-2, 2].

    Args:
        counts: (C,) images of each class, of validation data say.
        prior: (C,) class frequencies, all positive.

    Raises:
        ValueError: no image, shapes that differ, a count below zero, or a frequency that is not
            positive: a class that cannot be met has no likelihood.
    """
    _check_prior("prior_share", prior)
    if not (torch.isfinite(counts).all() and (counts >= 0).all()):
        raise ValueError(
            f"prior_share: expected counts from 0, got {counts.min()} to {counts.max()}"
        )
    if counts.shape != prior.shape or counts.sum() <= 0:
        raise ValueError(
            f"prior_share: expected images of some class and as many counts as frequencies, got "
            f"{int(counts.sum())} images in {tuple(counts.shape)} for {tuple(prior.shape)}"
        )
    log_prior = prior.double().log()
    if log_prior.max() - log_prior.min() < 1e-6:
        return 0.0  # any t is as good
    seen = (counts.double() @ log_prior / counts.sum()).item()
    low, high = -2.0, 2.0
    for _ in range(50):
        t = (low + high) / 2
        expected = (torch.softmax(t * log_prior, dim=0) @ log_prior).item()
        low, high = (t, high) if expected < seen else (low, t)
    return round((low + high) / 2, 6) + 0.0  # no -0.0


def _check_prior(where: str, prior: Tensor) -> None:
    wrong = int((~(torch.isfinite(prior) & (prior > 0))).sum())
    if wrong:
        raise ValueError(
            f"{where}: expected positive, finite class frequencies, got {wrong} of {len(prior)} "
            "that are not; count a class without images as part of one"
        )
