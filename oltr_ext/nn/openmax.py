"""OpenMax: how likely the class "unknown" is, from extreme distances to the class means."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from oltr_ext.nn.checks import check_labels
from oltr_ext.nn.enroll import ClassTensor
from oltr_ext.nn.heads import HeadOutput
from oltr_ext.nn.linear_head import LinearHead

TRANSLATE = 1e4
"""What libMR, the authors' library, adds to a tail before its fit. So far from zero the fit no
longer depends on the unit of the distances."""
STEEPEST = 1e8
"""Largest Weibull shape: what a tail without any spread gets."""


def fit_weibull(tail: Tensor) -> tuple[float, float]:
    """Shape and scale of the most likely two-parameter Weibull distribution of positive values.

    The shape k solves ``sum x^k ln x / sum x^k - 1/k = mean ln x``, whose left side rises with k;
    the scale is ``(mean x^k)^(1/k)``. Values without spread give the largest shape there is.

    Args:
        tail: (N >= 1,) positive values.

    Raises:
        ValueError: no value, or one that is not positive and finite.
    """
    if tail.dim() != 1 or len(tail) == 0 or not (torch.isfinite(tail) & (tail > 0)).all():
        raise ValueError(f"fit_weibull: expected one row of positive values, got {tail.tolist()}")
    shape, scale = _fit_rows(tail.double()[None]).unbind(dim=1)
    return shape.item(), scale.item()


def _fit_rows(tails: Tensor) -> Tensor:
    """Shape and scale (R, 2) of each row of tails (R, N) float64, where NaN is no value."""
    there = ~tails.isnan()
    count = there.sum(dim=1, keepdim=True).to(tails.dtype)
    logs = torch.where(there, tails.log(), -torch.inf)
    top = logs.amax(dim=1, keepdim=True)
    logs = logs - top  # the shape is the same, and no power overflows
    y = torch.where(there, logs, 0)
    mean = y.sum(dim=1, keepdim=True) / count
    low, high = torch.full_like(top, 1e-3), torch.full_like(top, STEEPEST)
    for _ in range(60):  # halves the logarithm of high / low to less than rounding
        k = (low * high).sqrt()
        power = (k * logs).exp()
        total = power.sum(dim=1, keepdim=True)
        below = (power * y).sum(dim=1, keepdim=True) / total - mean < 1 / k
        low, high = torch.where(below, k, low), torch.where(below, high, k)
    return torch.cat([k, (top + (total / count).log() / k).exp()], dim=1)


class OpenMaxHead(LinearHead):
    """A trained linear classifier that knows how far from its class mean an image may lie.

    Bendale & Boult, *Towards Open Set Deep Networks*, CVPR 2016. :meth:`fit` is Algorithm 1: per
    class the mean of the activation vectors (logits) of its rightly classified training images,
    and a Weibull distribution of the largest distances to it. Algorithm 2 then takes from the
    activations of the ``alpha`` best classes the share ``(alpha - i) / alpha * F(distance)``, for
    i = 0, 1, ..., and gives what was taken to an activation of "unknown". F is the Weibull
    distribution function, as in the paper's text and its code; line 3 of the printed Algorithm 2
    has 1 - F.

    The label stays that of the logits; the score ``openmax`` is one minus the probability of
    "unknown". Without a fit, that probability is exp(0) against the exponentials of the logits.

    Args:
        feat_dim: D.
        num_classes: C. The means are C x C.
        alpha: classes to revise, at least one; more than C are C.

    Raises:
        ValueError: no class, no feature or none to revise.
    """

    EXACT: ClassVar = {**LinearHead.EXACT, "weibull": torch.float64}

    UNSHARDED = "each one's distances are of the logits of all, its means are C x C"

    mean: Tensor
    weibull: Tensor

    def __init__(self, feat_dim: int, num_classes: int, *, alpha: int = 10) -> None:
        super().__init__(feat_dim, num_classes)
        if alpha < 1:
            raise ValueError(f"OpenMaxHead: expected alpha of at least 1, got {alpha}")
        self.alpha = min(alpha, num_classes)
        self.register_buffer("mean", torch.zeros(num_classes, num_classes))
        # shift, shape and scale of each class; never reached by a class that was not fitted
        never = torch.tensor([0.0, 1.0, 1e30], dtype=torch.float64)
        self.register_buffer("weibull", never.repeat(num_classes, 1))

    @torch.no_grad()
    def fit(self, features: Tensor, target: Tensor, *, tail: int = 20) -> None:
        """Algorithm 1.

        Args:
            features: (N, D) of the training set, as the head will see them.
            target: (N,) their labels.
            tail: how many of the largest distances of a class to fit. A class takes all it has
                when it has fewer, and all its images when none is classified right; a class
                without images is never held for unknown.

        Raises:
            ValueError: no feature, features that are not finite, labels that are no class, or a
                tail of none. The head stays as it was.
        """
        check_labels("OpenMaxHead.fit", target, self.num_classes)
        if len(target) == 0 or tail < 1:
            raise ValueError(
                f"OpenMaxHead.fit: expected features and a tail of at least 1, got {len(target)} "
                f"and {tail}"
            )
        seen, counts = target.unique(return_counts=True)
        order, most = target.argsort(stable=True), int(counts.max())
        tails = self.weibull.new_full((len(seen), min(tail, most)), torch.nan)
        means = self.mean.new_empty(len(seen), self.num_classes)
        # a class at a time: never N x C
        rows_of = order.split(counts.tolist())
        for c, mean, own, rows in zip(seen.tolist(), means, tails, rows_of, strict=True):
            logits = self.linear(features[rows]).float()
            right = logits.argmax(dim=1) == c
            chosen = logits[right] if right.any() else logits
            mean.copy_(chosen.mean(dim=0))
            distance = (chosen - mean).to(tails.dtype).norm(dim=1)
            if not distance.isfinite().all():
                raise ValueError(f"OpenMaxHead.fit: expected finite features, class {c} has others")
            largest = distance.topk(min(tail, len(distance))).values
            own[: len(largest)] = largest
        shift = TRANSLATE - tails.nan_to_num(torch.inf).amin(dim=1, keepdim=True)
        weibull = torch.cat([shift, _fit_rows(tails + shift)], dim=1)
        self.mean[seen], self.weibull[seen] = means, weibull

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        if what == "load_state_dict":
            return super()._class_tensors(what)
        raise ValueError(
            f"OpenMaxHead.{what}: it cannot change its classes: each one's distances are of the "
            "logits of all, and were measured on training images"
        )

    def outputs(self, features: Tensor) -> HeadOutput:
        logits = self.linear(features)
        return HeadOutput(logits, unknown=self.unknown(logits), features=features)

    def unknown(self, logits: Tensor) -> Tensor:
        """Algorithm 2: (B,) float64 probability of "unknown" for activations (B, C).

        A device without float64 computes in float32, good to about three digits.
        """
        wide = logits.to(self.weibull.dtype)
        best, which = wide.topk(self.alpha, dim=1)
        taken = torch.zeros_like(best)
        for i in range(self.alpha):  # a rank at a time: never B x alpha x C
            distance = (wide - self.mean[which[:, i]]).norm(dim=1)
            shift, shape, scale = self.weibull[which[:, i]].unbind(dim=1)
            outside = -torch.expm1(-(((distance + shift).clamp_min(0) / scale) ** shape))
            taken[:, i] = best[:, i] * (self.alpha - i) / self.alpha * outside
        revised = wide.scatter_add(1, which, -taken)
        everything = torch.cat([taken.sum(dim=1, keepdim=True), revised], dim=1)
        return everything.softmax(dim=1)[:, 0]

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
