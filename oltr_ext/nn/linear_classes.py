"""How a linear head's classes change."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext.nn.enroll import ClassTensor, Enrolling
from oltr_ext.nn.rivals import RIVALS, Rivals, spaced


class LinearClasses(Enrolling):
    """`Enrolling` for logits that are products with rows: of features as they come, whose class
    means the bank knows."""

    linear: nn.Linear
    class_prior: Tensor | None

    @property
    def feat_dim(self) -> int:
        return self.linear.in_features

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        own = ("class_prior",) if self.class_prior is not None else ()
        linear = [ClassTensor(self.linear, name) for name in ("weight", "bias")]
        return [*linear, *(ClassTensor(self, name) for name in own)]

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        rivals = self.rivals()
        typical = [value.expand(len(mean)) for value in rivals.typical.values()]
        return [rivals.length * rivals.direction(mean), *typical]

    def _make_rivals(self) -> Rivals:
        first, means = self.num_trained, self.bank.trained_means()
        if means is None:
            raise ValueError(
                f"{type(self).__name__}.enroll: a linear classifier alone does not know where its "
                "classes are: expected a bank that knows (head.bank.fit), got none"
            )
        gone = torch.tensor(self._removed_ids(), dtype=torch.int64, device="cpu")
        living = torch.arange(first, device="cpu")
        living = living[~torch.isin(living, gone)]
        if len(living) == 0:
            raise ValueError(
                f"{type(self).__name__}.enroll: expected a trained class to set new ones against, "
                "got none: all were removed"
            )
        kept = spaced(living, RIVALS).to(means.device)
        weight, bias = (part.float()[kept] for part in self._rows())
        usual = bias.median()
        more = math.log(len(living) / len(kept)) - usual  # as in a memory's rivals

        def see(x: Tensor) -> tuple[Tensor, Tensor]:
            return x, F.linear(x, weight, bias).logsumexp(dim=1) + more

        inputs, total = see(means[spaced(torch.arange(len(means), device=means.device), RIVALS)])
        length = float(weight.norm(dim=1).median())
        typical = {"bias": usual}
        if self.class_prior is not None:
            typical["prior"] = self.class_prior[kept].median()
        return Rivals(inputs, total, length, see, typical)

    def _rows(self) -> tuple[Tensor, Tensor]:
        """(C, D) that features are multiplied by, and (C,) what is added."""
        return self.linear.weight, self.linear.bias
