"""Cross-entropy of the cosine classifier without its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oltr_ext import reference
from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._register import accumulator, call_reference, precision, register
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.sharded import both, formulas
from oltr_ext.ops.sharded import native as kernels
from oltr_ext.ops.streamed import passes

_OP = "cosine_cross_entropy"
_REDUCTIONS = ("mean", "sum", "none")
_WHOLE = -1  # others: the bank is no shard


class CosineCrossEntropy(torch.autograd.Function):
    """(v, weight, target, log_prior, scale, label_smoothing, ignore_index, others, precision)
    -> (loss, lse, counted)."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return torch.ops.oltr_ext.cosine_cross_entropy(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        v, weight, target, log_prior, *ctx.settings = inputs
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.save_for_backward(v, weight, target, log_prior, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        g = torch.ops.oltr_ext.cosine_cross_entropy_backward(
            grads[0].contiguous(), *ctx.saved_tensors, *ctx.settings
        )
        return *g, None, None, None, None, None, None, None


def _fake(v: Tensor, *rest: Any) -> Any:
    statistics = accumulator(v.dtype)
    return tuple(
        v.new_empty(shape, dtype=statistics) for shape in ((v.shape[0],), (v.shape[0],), ())
    )


def _fake_backward(grad_loss: Tensor, v: Tensor, weight: Tensor, *rest: Any) -> Any:
    return v.new_empty(v.shape), v.new_empty(weight.shape)


register(_OP, CosineCrossEntropy, _fake, _fake_backward)


def cosine_cross_entropy(
    v: Tensor,
    weight: Tensor | StreamedBank,
    target: Tensor,
    *,
    scale: float = 16.0,
    class_prior: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
    shard: Shard | None = None,
) -> Tensor:
    r"""Cross-entropy of :func:`cosine_logits`, fused: no B x C is ever allocated.

    .. math:: L_i = -\log \mathrm{softmax}(z_i + \log \pi)_{y_i}

    With ``class_prior`` :math:`\pi` this is balanced softmax (Ren et al., 2020). Label smoothing
    needs no B x C either: the mean logit is one product with the mean of the normalised weights.

    Args:
        v: embeddings (B, D); float32, float64, bfloat16 or float16.
        weight: class directions (C, D), same dtype and device, or a
            :class:`StreamedBank`, which gets no gradient.
        target: class of each row, (B,) int64 in [0, C), or ``ignore_index``.
        scale: scale of the logits.
        class_prior: class frequencies (C,), counts or shares, finite and not negative; a class of
            frequency 0 takes no part in softmax and smoothing. Carries no gradient.
        label_smoothing: share of the target spread evenly over the classes, in [0, 1].
        ignore_index: target value of rows that count for nothing.
        reduction: ``"mean"`` over the rows that count (NaN if there are none, as in
            :func:`torch.nn.functional.cross_entropy`), ``"sum"`` or ``"none"``.
        shard: which classes ``weight`` and ``class_prior`` are of, where other processes hold the
            others. Targets count over all. With both a prior and smoothing it waits for the device.

    Returns:
        The loss, a scalar, or (B,) for ``"none"``; float64 for float64 inputs, else float32.

    Raises:
        TypeError: not a tensor, or a dtype that is unsupported or differs from that of ``v``.
        ValueError: a shape, device or option that does not fit.
        RuntimeError: a target out of range, or a prior that is negative or not finite. CUDA kernels
            do not wait to look: there, such a target makes the loss of its row NaN, and such a
            prior all losses.
    """
    rows, width = _check.matrix(_OP, "v", v)
    if isinstance(weight, StreamedBank):
        passes.no_shard(_OP, shard)
        classes = len(weight)
    else:
        classes = _check.bank(_OP, "weight", weight, width, v, shard)
    _check.labels(_OP, target, rows, v)
    scale = _check.number(_OP, "scale", scale, 0)
    label_smoothing = _check.number(_OP, "label_smoothing", label_smoothing, 0, 1)
    ignore_index = _check.whole(_OP, "ignore_index", ignore_index)
    if reduction not in _REDUCTIONS:
        raise ValueError(
            f"{_OP}: expected reduction to be one of {', '.join(_REDUCTIONS)}, got {reduction!r}"
        )
    log_prior = None
    if class_prior is not None:
        if not isinstance(class_prior, Tensor):
            raise TypeError(
                f"{_OP}: expected class_prior to be a Tensor, got {type(class_prior).__name__}"
            )
        if tuple(class_prior.shape) != (classes,):
            raise ValueError(
                f"{_OP}: expected class_prior of shape ({classes},), got {tuple(class_prior.shape)}"
            )
        _check.on_device(_OP, "class_prior", class_prior, v)
        log_prior = class_prior.detach().to(accumulator(v.dtype)).log()
    counted = None
    arguments = (target, log_prior, scale, label_smoothing, ignore_index)
    if isinstance(weight, StreamedBank):
        loss = passes.cosine_cross_entropy(v, weight, *arguments)
    elif shard is not None:
        native = use_native(_OP, v, weight)
        both.checked_labels(_OP, target, shard, ignore_index)
        others = both.possible_elsewhere(log_prior, label_smoothing, shard)
        local = shard.local(target, ignore_index)
        loss = call_reference(
            _OP,
            kernels.CrossEntropy.apply if native else formulas.cross_entropy,
            *(v, weight, local, log_prior, scale, label_smoothing, others, shard),
        )
    elif use_native(_OP, v, weight):
        loss, _, counted = torch.ops.oltr_ext.cosine_cross_entropy(
            v, weight, *arguments, _WHOLE, precision(v.device.type)
        )
    else:
        loss, counted = call_reference(_OP, reference.cosine_cross_entropy, v, weight, *arguments)
    if reduction == "none":
        return loss
    if counted is None:
        counted = (target != ignore_index).sum()
    total = loss.sum()
    return total if reduction == "sum" else total / counted
