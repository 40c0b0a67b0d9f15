"""Per-class mean features: how the visual memory starts."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import call_reference, register
from oltr_ext.ops.shard import Shard, enter
from oltr_ext.reference._common import check_labels

_OP = "class_means"


class Means(NamedTuple):
    """Class means (C, D) and the number of rows in each class (C,) int64."""

    means: Tensor
    counts: Tensor


class ClassMeans(torch.autograd.Function):
    """(x, target, num_classes) -> (means, counts)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.class_means(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad_x = torch.ops.oltr_ext.class_means_backward(grads[0].contiguous(), *ctx.saved_tensors)
        return grad_x, None, None


def _fake(x: Tensor, target: Tensor, num_classes: int) -> Any:
    return (
        x.new_empty(num_classes, x.shape[1]),
        x.new_empty(num_classes, dtype=torch.int64),
    )


def _fake_backward(grad_means: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    return grad_means.new_empty(target.shape[0], grad_means.shape[1])


register(_OP, ClassMeans, _fake, _fake_backward)


def class_means(
    x: Tensor, target: Tensor, num_classes: int, *, shard: Shard | None = None
) -> Means:
    r"""Averages the features of each class.

    .. math:: M_c = \frac{1}{n_c} \sum_{i: y_i = c} x_i

    Source: initial memory of OLTR (Liu et al., CVPR 2019, Sec. 3.2).

    Args:
        x: features (B, D); float32, float64, bfloat16 or float16. B may be 0.
        target: class of each row, (B,) int64 in [0, num_classes).
        num_classes: C, at least 1.
        shard: of the ``num_classes``; the means are then those of its classes alone.

    Returns:
        ``(means (C, D), counts (C,) int64)``; a class without rows has mean 0 and count 0. The
        gradient goes to ``x``.

    Raises:
        TypeError: not a tensor, an unsupported dtype, or a number of classes that is not whole.
        ValueError: a shape, device or number that does not fit.
        RuntimeError: a target out of range. CUDA kernels do not wait to look: there, it makes
            all means NaN.
    """
    rows, width = _check.matrix(_OP, "x", x)
    _check.labels(_OP, target, rows, x)
    if width < 1:
        raise ValueError(f"{_OP}: expected a feature width of at least 1, got 0")
    num_classes = _check.whole(_OP, "num_classes", num_classes)
    if num_classes < 1:
        raise ValueError(f"{_OP}: expected num_classes of at least 1, got {num_classes}")
    if shard is not None:
        if shard.total != num_classes:
            raise ValueError(
                f"{_OP}: expected a shard of {num_classes} classes, got one of {shard.total}"
            )
        if x.device.type == "cpu":
            check_labels(_OP, target, num_classes)
        # what other processes have goes to one class more
        means, counts = class_means(enter(shard, x), shard.local(target), shard.size + 1)
        return Means(means[:-1], counts[:-1])
    if not use_native(_OP, x):
        return Means(*call_reference(_OP, reference.class_means, x, target, num_classes))
    return Means(*torch.ops.oltr_ext.class_means(x, target, num_classes))
