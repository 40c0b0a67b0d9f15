"""What each pass computes of one block, by the kernels or in pure PyTorch: both give a block's
partial state, and a block's part of the features' gradient from the state of the whole bank."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops._register import precision
from oltr_ext.reference._common import widen


class Kernels:
    """Native ops. Their backwards make gradients of the block too, which nobody asked for: there
    is no kernel without."""

    def __init__(self, device: torch.device) -> None:
        self.how = precision(device.type)

    def nearest(self, x: Tensor, memory: Tensor) -> Any:
        return torch.ops.oltr_ext.nearest_centroid(x, memory, self.how)

    def recall(self, x: Tensor, keys: Tensor, bias: Tensor, memory: Tensor) -> Any:
        return torch.ops.oltr_ext.memory_attention(x, keys, bias, memory, False, self.how)

    def recall_back(self, grad: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
        """`rest`: keys, bias, memory, what was recalled, lse."""
        found = torch.ops.oltr_ext.memory_attention_backward(grad, x, *rest, False, self.how)
        return found[0]

    def entropy(self, v: Tensor, weight: Tensor, *rest: Any) -> Any:
        """`rest`: target, log_prior, scale, label_smoothing, others."""
        *settings, others = rest
        return torch.ops.oltr_ext.cosine_cross_entropy(v, weight, *settings, -1, others, self.how)[
            :2
        ]

    def entropy_back(
        self, grad: Tensor, lse: Tensor, v: Tensor, weight: Tensor, *rest: Any
    ) -> Tensor:
        target, log_prior, scale, smoothing, others = rest
        found = torch.ops.oltr_ext.cosine_cross_entropy_backward(
            grad, v, weight, target, log_prior, lse, scale, smoothing, -1, others, self.how
        )
        return found[0]

    def logits(self, v: Tensor, weight: Tensor, scale: float) -> Tensor:
        return torch.ops.oltr_ext.cosine_logits(v, weight, scale, self.how)

    def logits_back(self, grad: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
        found = torch.ops.oltr_ext.cosine_logits_backward(grad, v, weight, scale, self.how)
        return found[0]


class Formulas:
    """The same through the B x C of a block."""

    def nearest(self, x: Tensor, memory: Tensor) -> Any:
        return reference.nearest_centroid(x, memory)

    def recall(self, x: Tensor, keys: Tensor, bias: Tensor, memory: Tensor) -> Any:
        wide, k, b, m = widen(x, keys, bias, memory)
        logits = wide @ k.t() + b
        return torch.softmax(logits, dim=1) @ m, logits.logsumexp(dim=1)

    def recall_back(self, grad: Tensor, x: Tensor, *rest: Tensor) -> Tensor:
        g, wide, k, b, m, out, lse = widen(grad, x, *rest)
        weight = (wide @ k.t() + b - lse[:, None]).exp()
        slope = weight * (g @ m.t() - (g * out).sum(dim=1, keepdim=True))
        return slope @ k

    def entropy(self, v: Tensor, weight: Tensor, *rest: Any) -> Any:
        part, logits = self._loss(v, weight, *rest)
        return part, logits.logsumexp(dim=1)

    def _loss(self, v: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """Loss but for the lse (B,), and logits (B, n)."""
        target, log_prior, scale, smoothing, others = rest
        logits = reference.cosine_logits(*widen(v, weight), scale=scale)
        possible = torch.ones_like(logits[0], dtype=torch.bool)
        if log_prior is not None:
            logits, possible = logits + log_prior, log_prior.isfinite()
        here = (target >= 0) & (target < len(weight))
        picked = logits.gather(1, torch.where(here, target, 0)[:, None])[:, 0]
        part = torch.where(here, -(1 - smoothing) * picked, 0)
        if smoothing > 0:
            every = int(possible.sum()) + others
            part = part - smoothing * torch.where(possible, logits, 0).sum(dim=1) / every
        return part, logits

    @torch.enable_grad()
    def entropy_back(
        self, grad: Tensor, lse: Tensor, v: Tensor, weight: Tensor, *rest: Any
    ) -> Tensor:
        v = v.detach().requires_grad_()
        part, logits = self._loss(v, weight, *rest)
        share, counted = (logits - lse[:, None]).exp().detach(), rest[0] != -1
        # an impossible class has a share of 0 and a logit of -inf
        total = (part + torch.where(share == 0, 0, share * logits).sum(dim=1))[counted]
        return torch.autograd.grad(total, v, grad.to(total)[counted])[0]

    def logits(self, v: Tensor, weight: Tensor, scale: float) -> Tensor:
        return reference.cosine_logits(v, weight, scale=scale)

    @torch.enable_grad()
    def logits_back(self, grad: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
        v = v.detach().requires_grad_()
        return torch.autograd.grad(reference.cosine_logits(v, weight, scale=scale), v, grad)[0]
