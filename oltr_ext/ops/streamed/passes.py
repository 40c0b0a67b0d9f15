"""Ops over a bank that passes by: one pass forward, and where the features want a gradient one
more, over what was recalled or summed, backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from oltr_ext.ops import _check
from oltr_ext.ops._backend import use_native
from oltr_ext.ops._compile import untraced
from oltr_ext.ops._register import accumulator
from oltr_ext.ops.bank import NO_GRADIENT, StreamedBank, together
from oltr_ext.ops.shard import Shard
from oltr_ext.ops.streamed.parts import Formulas, Kernels
from oltr_ext.ops.streamed.states import Closest, Softmax
from oltr_ext.reference._common import check_labels, widen
from oltr_ext.reference.meta_embedding import joined

Bank = Tensor | StreamedBank
Found = TypeVar("Found")


def _plainly(function: Callable[..., Found]) -> Callable[..., Found]:
    """Under autocast features take the dtype of the bank, which is computed in."""

    @wraps(function)
    def call(x: Tensor, *args: Any) -> Found:
        if torch.compiler.is_compiling():  # files and passes are no graph
            return apart(x, *args)
        return run(x, *args)

    def run(x: Tensor, *args: Any) -> Found:
        if not isinstance(x, Tensor) or not _check.autocast_on(x.device.type):
            return function(x, *args)
        bank = next(each for each in args if isinstance(each, StreamedBank))
        with torch.autocast(x.device.type, enabled=False):
            return function(x.to(bank.dtype), *args)

    apart = untraced(run)  # called, it imports the compiler
    return call


@_plainly
def nearest_centroid(x: Tensor, memory: StreamedBank) -> tuple[Tensor, Tensor]:
    """Distance and index."""
    op = "nearest_centroid"
    (bank,) = _checked(op, x, {"memory": memory})
    by = _backend(op, x)
    closest = Closest()
    with torch.no_grad(), together([bank]) as blocks:
        for start, (block,) in blocks:
            closest.take(x, start, block, *by.nearest(x, block))
    return _distance(x, closest, x.dtype), closest.index


@_plainly
def memory_attention(x: Tensor, keys: Bank, key_bias: Tensor, memory: Bank) -> Tensor:
    op = "memory_attention"
    banks = _checked(op, x, {"keys": keys, "memory": memory})
    key_bias = _own(op, "key_bias", key_bias, (len(banks[0]),), x)
    by = _backend(op, x)
    softmax = Softmax(len(x), x.shape[1], x.device)
    with torch.no_grad(), together(banks) as blocks:
        for start, (k, m) in blocks:
            part, lse = by.recall(x, k, key_bias[start : start + len(k)], m)
            softmax.take(lse, part)
    recalled: Tensor = _Recalled.apply(x, softmax, banks, key_bias, by)
    return recalled


@_plainly
def meta_embedding(
    x: Tensor,
    memory: Bank,
    keys: Bank,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    scale: float,
    eps: float,
) -> tuple[Tensor, ...]:
    """The parts of `MetaEmbeddingDetails`."""
    op = "meta_embedding"
    banks = _checked(op, x, {"keys": keys, "memory": memory})
    width = x.shape[1]
    key_bias = _own(op, "key_bias", key_bias, (len(banks[0]),), x)
    _check.same(op, "selector_weight", selector_weight, (width, width), x)
    _check.same(op, "selector_bias", selector_bias, (width,), x)
    by = _backend(op, x)
    softmax, closest = Softmax(len(x), width, x.device), Closest()
    with torch.no_grad(), together(banks) as blocks:
        for start, (k, m) in blocks:
            part, lse = by.recall(x, k, key_bias[start : start + len(k)], m)
            softmax.take(lse, part)
            closest.take(x, start, m, *by.nearest(x, m))
    recalled = _Recalled.apply(x, softmax, banks, key_bias, by)
    distance = _distance(x, closest, accumulator(x.dtype))
    wide, w_s, b_s, m = widen(x, selector_weight, selector_bias, recalled)
    embedding, selector, distance = joined(wide, m, distance, w_s, b_s, scale, eps)
    return (*(t.to(x.dtype) for t in (embedding, m, selector)), distance, closest.index)


@_plainly
def cosine_logits(v: Tensor, weight: StreamedBank, scale: float) -> Tensor:
    op = "cosine_logits"
    (bank,) = _checked(op, v, {"weight": weight}, "v")
    logits: Tensor = _Logits.apply(v, bank, scale, _backend(op, v))
    return logits


@_plainly
def cosine_cross_entropy(
    v: Tensor,
    weight: StreamedBank,
    target: Tensor,
    log_prior: Tensor | None,
    scale: float,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """Loss a row (B,), 0 for those that are ignored."""
    op = "cosine_cross_entropy"
    (bank,) = _checked(op, v, {"weight": weight}, "v")
    if target.device.type == "cpu":
        check_labels(op, target, len(bank), ignore_index)
    if log_prior is not None and (log_prior.isnan() | log_prior.isposinf()).any():
        raise RuntimeError(f"{op}: expected class_prior to be finite and not negative")
    loss: Tensor = _Entropy.apply(
        v, bank, target, log_prior, scale, label_smoothing, ignore_index, _backend(op, v)
    )
    return loss


class _Once(torch.autograd.Function):
    """(gradient, all that it was made of) -> gradient."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *made_of: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            "double backward is not supported over a streamed bank; give the bank as a tensor, "
            "under oltr_ext.use_backend('reference')"
        )


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For a gradient of saved features, to which what a pass found is a constant: differentiated
    again it would be wrong. `once_differentiable` of torch asks of incoming gradients alone."""

    @wraps(backward)
    def call(ctx: Any, *grads: Any) -> Any:
        with torch.no_grad():
            found, *rest = backward(ctx, *grads)
        return _Once.apply(found, ctx.saved_tensors[0], *grads), *rest

    return call


class _Recalled(torch.autograd.Function):
    """(x, state of a pass, banks, key_bias, backend) -> recalled (B, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, state: Softmax, banks: Any, key_bias: Tensor, by: Any
    ) -> Tensor:
        out, lse = state.recalled.to(x.dtype), state.lse.to(accumulator(x.dtype))
        ctx.save_for_backward(x, key_bias, out, lse)
        ctx.banks, ctx.by = banks, by
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Any) -> Any:
        x, key_bias, out, lse = ctx.saved_tensors
        grad, total = grads[0].contiguous(), torch.zeros_like(x, dtype=torch.float64)
        with together(ctx.banks) as blocks:
            for start, (k, m) in blocks:
                bias = key_bias[start : start + len(k)]
                total += ctx.by.recall_back(grad, x, k, bias, m, out, lse)
        return total.to(x.dtype), None, None, None, None


def _distance(x: Tensor, closest: Closest, dtype: torch.dtype) -> Tensor:
    found: Tensor = _Distance.apply(x, closest.row, closest.distance.to(dtype))
    return found


class _Distance(torch.autograd.Function):
    """(x, nearest rows, distance) -> distance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, distance: Tensor) -> Tensor:
        ctx.save_for_backward(x, row)
        return distance.view_as(distance)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, row = ctx.saved_tensors
        gap = x.double() - row.double()
        # squares leave the range of float64 long before numbers do
        largest = gap.abs().amax(dim=1, keepdim=True)
        gap = gap / torch.where(largest == 0, 1, largest)
        length = torch.linalg.vector_norm(gap, dim=1, keepdim=True)
        slope = gap / torch.where(length == 0, 1, length)
        return (grads[0].double()[:, None] * slope).to(x.dtype), None, None


class _Logits(torch.autograd.Function):
    """(v, bank, scale, backend) -> logits (B, C)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, bank: StreamedBank, scale: float, by: Any) -> Tensor:
        out = v.new_empty(len(v), len(bank))
        with bank.blocks() as blocks:
            for start, block in blocks:
                out[:, start : start + len(block)] = by.logits(v, block, scale)
        ctx.save_for_backward(v)
        ctx.settings = bank, scale, by
        return out

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Any) -> Any:
        (v,) = ctx.saved_tensors
        bank, scale, by = ctx.settings
        total = torch.zeros_like(v, dtype=torch.float64)
        with bank.blocks() as blocks:
            for start, block in blocks:
                part = grads[0][:, start : start + len(block)].contiguous()
                total += by.logits_back(part, v, block, scale)
        return total.to(v.dtype), None, None, None


class _Entropy(torch.autograd.Function):
    """(v, bank, target, log_prior, scale, label_smoothing, ignore_index, backend) -> loss a row."""

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        bank: StreamedBank,
        target: Tensor,
        log_prior: Tensor | None,
        scale: float,
        label_smoothing: float,
        ignore_index: int,
        by: Any,
    ) -> Tensor:
        possible = None
        if label_smoothing > 0 and log_prior is not None:
            possible = log_prior.isfinite()
        every = len(bank) if possible is None else int(possible.sum())

        def rest(start: int, size: int) -> tuple[Any, ...]:
            """What a block's op is told besides v and weight."""
            here = slice(start, start + size)
            local = Shard(start, start + size, len(bank)).local(target, ignore_index)
            own = size if possible is None else int(possible[here].sum())
            prior = None if log_prior is None else log_prior[here]
            return local, prior, scale, label_smoothing, every - own

        softmax = Softmax(len(v), 0, v.device)
        parts = torch.zeros(len(v), dtype=torch.float64, device=v.device)
        with bank.blocks() as blocks:
            for start, block in blocks:
                part, lse = by.entropy(v, block, *rest(start, len(block)))
                softmax.take(lse)
                parts += part
        lse = softmax.lse
        ctx.save_for_backward(v, lse.to(accumulator(v.dtype)))
        ctx.settings = bank, rest, by
        return torch.where(target == ignore_index, 0, lse + parts).to(accumulator(v.dtype))

    @staticmethod
    @_once
    def backward(ctx: Any, *grads: Any) -> Any:
        v, lse = ctx.saved_tensors
        bank, rest, by = ctx.settings
        grad, total = grads[0].contiguous(), torch.zeros_like(v, dtype=torch.float64)
        with bank.blocks() as blocks:
            for start, block in blocks:
                total += by.entropy_back(grad, lse, v, block, *rest(start, len(block)))
        return total.to(v.dtype), *[None] * 7


def _backend(op: str, x: Tensor) -> Kernels | Formulas:
    return Kernels(x.device) if use_native(op, x) else Formulas()


def _checked(op: str, x: Tensor, banks: dict[str, Bank], name: str = "x") -> list[StreamedBank]:
    """The banks, all as streamed ones."""
    _, width = _check.matrix(op, name, x)
    found: list[StreamedBank] = []
    for what, bank in banks.items():
        if isinstance(bank, Tensor):
            _check.matrix(op, what, bank)
            _refuse(op, what, bank)
            if bank.device.type != "cpu":
                raise ValueError(f"{op}: expected {what} in host memory, got {bank.device}")
            bank = StreamedBank(bank.detach(), device=x.device)
        if not isinstance(bank, StreamedBank):
            raise TypeError(
                f"{op}: expected {what} to be a Tensor or a StreamedBank, got {type(bank).__name__}"
            )
        if len(bank) < 1:
            raise ValueError(f"{op}: expected {what} to hold at least one class, got 0")
        shape = (len(found[0]) if found else len(bank), width)
        if width < 1:
            raise ValueError(f"{op}: expected a feature width of at least 1, got 0")
        if tuple(bank.shape) != shape:
            raise ValueError(f"{op}: expected {what} of shape {shape}, got {tuple(bank.shape)}")
        if bank.device.type != x.device.type:
            raise ValueError(f"{op}: expected {what} on {x.device}, got {bank.device}")
        if bank.dtype != x.dtype:
            raise TypeError(f"{op}: expected {what} of dtype {x.dtype}, got {bank.dtype}")
        found.append(bank)
    return found


def _own(op: str, name: str, value: Tensor, shape: tuple[int, ...], x: Tensor) -> Tensor:
    """A tensor with a number a class, which belongs to the bank."""
    _check.same(op, name, value, shape, x)
    _refuse(op, name, value)
    return value.detach()


def _refuse(op: str, name: str, value: Tensor) -> None:
    if value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: {NO_GRADIENT}: expected {name} without requires_grad")


def no_shard(op: str, shard: Shard | None) -> None:
    if shard is not None:
        raise ValueError(f"{op}: expected no shard beside a streamed bank, got {shard}")


__all__: list[str] = [
    "cosine_cross_entropy",
    "cosine_logits",
    "memory_attention",
    "meta_embedding",
    "nearest_centroid",
    "no_shard",
]
