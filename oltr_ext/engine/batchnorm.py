"""BatchNorm with the statistics of the whole batch where it is spread over processes.

torch's SyncBatchNorm does the same on GPUs only. This one runs on any device.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from oltr_ext.engine.distributed import all_gather, world

__all__ = ["GlobalBatchNorm", "synchronise"]


def synchronise(module: nn.Module) -> None:
    """Put a `GlobalBatchNorm` in the place of every BatchNorm below `module`.

    It takes over their tensors, so state dicts and optimizers stay as they are.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            synchronise(child)


class GlobalBatchNorm(_BatchNorm):
    """Another BatchNorm's parameters and statistics, with batches that all processes share.

    Every process must bring as many rows, and all of them or none be in training mode. In eval
    mode it is the other BatchNorm. An activation that the other has inside comes along.
    """

    def __init__(self, other: _BatchNorm) -> None:
        super().__init__(0, other.eps, other.momentum, affine=False, track_running_stats=False)
        self.num_features = other.num_features
        self.affine, self.track_running_stats = other.affine, other.track_running_stats
        self.weight, self.bias = other.weight, other.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(other, name))
        # timm's have their activation inside
        self.drop, self.act = (getattr(other, n, None) or nn.Identity() for n in ("drop", "act"))
        self.train(other.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"GlobalBatchNorm: expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.act(self.drop(super().forward(x)))
        self._check_input_dim(x)
        y, mean, var = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, var, x.numel() // x.shape[1] * world())
        return self.act(self.drop(y))

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), part)
        unbiased = var * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var), part)


class _Normalise(torch.autograd.Function):
    """(x, weight, bias, eps) -> (normalised x, mean, variance), statistics of all processes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        over = [d for d in range(x.dim()) if d != 1]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        var, mean = torch.var_mean(wide, over, correction=0)
        means, variances = all_gather(torch.stack([mean, var])).unbind(dim=1)
        mean = means.mean(dim=0)
        var = (variances + (means - mean).square()).mean(dim=0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, grad: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, var = ctx.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # as if mean and variance were constants; then what changes with them
        direct, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack([grad_weight, grad_bias])
        if world() > 1:
            dist.all_reduce(sums)
        sums = sums / (x.numel() // x.shape[1] * world())
        inverse = (var + ctx.eps).rsqrt()
        shape = (1, -1, *[1] * (x.dim() - 2))
        slope, shift = (
            v.view(shape) for v in (scale * inverse * inverse * sums[0], scale * inverse * sums[1])
        )
        grad_x = direct - ((x - mean.view(shape)) * slope + shift)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        return grad_x.to(x.dtype), grad_weight, grad_bias, None
