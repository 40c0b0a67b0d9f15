"""How a linear head's classes change."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oltr_ext.nn.enroll import ClassTensor, Enrolling
from oltr_ext.nn.rivals import RIVALS, Rivals, spaced


class LinearClasses(Enrolling):
    """`Enrolling` for logits that are products with rows: of features as they come, whose class
    means the bank knows."""

    linear: nn.Linear
    class_prior: Tensor | None

    def learned(self, features: Tensor) -> Tensor:
        """Logits (B, C) of features (B, D) as they are trained, before any prior."""
        raise NotImplementedError

    @property
    def feat_dim(self) -> int:
        return self.linear.in_features

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        own = ("class_prior",) if self.class_prior is not None else ()
        linear = [ClassTensor(self.linear, name) for name in ("weight", "bias")]
        return [*linear, *(ClassTensor(self, name) for name in own)]

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        rivals = self.rivals()
        bias = rivals.typical["bias"].expand(len(mean))
        return [rivals.length * rivals.direction(mean), bias, *self._prior_of(len(mean))]

    def _make_rivals(self) -> Rivals:
        first, means = self.num_trained, self.bank.trained_means()
        if means is None:
            raise ValueError(
                f"{type(self).__name__}.enroll: a linear classifier alone does not know where its "
                "classes are: expected a bank that knows (head.bank.fit), got none"
            )
        bias = self.linear.bias[:first].float().median()

        def see(x: Tensor) -> tuple[Tensor, Tensor]:
            logits = self.learned(x.to(self.linear.weight.dtype)).float()
            return x, logits[:, :first].logsumexp(dim=1) - bias

        inputs, total = see(means[spaced(torch.arange(len(means)), RIVALS)])
        return Rivals(inputs, total, float(self._lengths()[:first].median()), see, {"bias": bias})

    def _lengths(self) -> Tensor:
        """(C,) of the rows that features are multiplied by."""
        return self.linear.weight.float().norm(dim=1)
