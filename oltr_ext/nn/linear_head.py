"""The linear head."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from oltr_ext.nn.checks import check_own, check_sizes
from oltr_ext.nn.heads import Gather, HeadOutput, PriorHead, alone
from oltr_ext.nn.layout import kaiming, uniform
from oltr_ext.nn.linear_classes import LinearClasses
from oltr_ext.reference._common import wide


class LinearHead(LinearClasses, PriorHead):
    """The plain classifier: logits = x W' + b, cross-entropy.

    Args:
        feat_dim: D.
        num_classes: C.
        class_prior: class frequencies (C,) whose logarithm is added to the logits in training (a
            class of frequency 0 takes no part in cross-entropy, nor in its label smoothing):
            balanced softmax (Ren et al., NeurIPS 2020), which is the loss of logit adjustment
            (Menon et al., ICLR 2021, Eq. 10) at tau = 1; give frequencies to the power of tau for
            another. See `PriorHead`.
        criterion: over (logits (B, C), target (B,)), in place of cross-entropy.
        metric: over (features (B, D), target (B,)), added ``metric_weight`` times.
        device: of the weights.

    Raises:
        ValueError: no class or no feature, or a prior that is none.
    """

    CLASS_TENSORS: ClassVar = {
        "linear.weight": kaiming,
        "linear.bias": uniform,
        **PriorHead.CLASS_TENSORS,
    }

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        class_prior: Tensor | None = None,
        criterion: nn.Module | None = None,
        metric: nn.Module | None = None,
        metric_weight: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        check_sizes(type(self).__name__, num_classes, feat_dim)
        super().__init__(class_prior, num_classes)
        self.linear = nn.Linear(feat_dim, num_classes, device=device)
        self.criterion = criterion if criterion is not None else nn.CrossEntropyLoss()
        self.metric, self.metric_weight = metric, metric_weight

    @property
    def num_classes(self) -> int:
        return self.linear.out_features

    @property
    def origin(self) -> Tensor:
        # by name: of a layer that is parametrized, parameters are others
        both = (self.linear.weight, self.linear.bias)
        weight, bias = (self.layout.raw(t).detach() for t in both)
        return self.layout.zero_of(weight, bias)

    def learned(self, features: Tensor) -> Tensor:
        """Features (B, D) to logits (B, C) as they are trained, before any prior, of the classes
        that this process has."""
        return self.layout.linear(features, self.linear)

    def outputs(self, features: Tensor) -> HeadOutput:
        out: HeadOutput = self.layout.each(self._outputs, features)
        return out._replace(features=features)

    def _outputs(self, features: Tensor, *, whole: bool = True) -> HeadOutput:
        return HeadOutput(self.expected(self.learned(features), whole=whole))

    def loss(self, features: Tensor, target: Tensor, *, gather: Gather = alone) -> Tensor:
        """Mean loss of features (B, D) and labels (B,) int64 in [0, C)."""
        x, y = self.layout.rows(features, target)
        logits, log_prior = wide(self.learned(x)), None
        if self.class_prior is not None:
            log_prior = self.layout.raw(self.class_prior).to(logits.dtype).log()
        loss = self.layout.criterion(self.criterion, logits, y, log_prior)
        if self.metric is not None:
            rows = (x, y) if gather is alone else gather(features, target)
            loss = loss + self.metric_weight * self.metric(*rows)
        return loss

    @torch.no_grad()
    def start_at(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes over a classifier: weight (C, D) and bias (C,), which is zero by default.

        Raises:
            ValueError: another shape than this head's, or a layer that is parametrized or pruned.
        """
        check_own("LinearHead.start_at", self.linear, "weight", "bias")
        for name, value, own in (
            ("weight", weight, self.linear.weight),
            ("bias", bias, self.linear.bias),
        ):
            if value is not None and value.shape != own.shape:
                raise ValueError(
                    f"LinearHead.start_at: expected {name} of shape {tuple(own.shape)}, "
                    f"got {tuple(value.shape)}"
                )
        layout = self.layout
        layout.raw(self.linear.weight).copy_(layout.cut(weight))
        if bias is None:
            layout.raw(self.linear.bias).zero_()
        else:
            layout.raw(self.linear.bias).copy_(layout.cut(bias))
