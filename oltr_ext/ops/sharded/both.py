"""What both backends share of the sharded ops."""

from __future__ import annotations

from torch import Tensor

from oltr_ext.ops.shard import Shard, summed
from oltr_ext.ops.sharded import formulas, native
from oltr_ext.reference._common import check_labels, widen
from oltr_ext.reference.meta_embedding import joined


def possible_elsewhere(log_prior: Tensor | None, label_smoothing: float, shard: Shard) -> int:
    """Classes of other shards over which smoothing spreads. Waits for the device where there are
    both a prior and smoothing."""
    if label_smoothing == 0 or log_prior is None:
        return shard.total - shard.size
    own = log_prior.isfinite().sum()
    return int(summed(shard, own) - own)


def checked_labels(op: str, target: Tensor, shard: Shard, ignore_index: int | None) -> None:
    """As the kernels check them, which are given others."""
    if target.device.type == "cpu":
        check_labels(op, target, shard.total, ignore_index)


def meta_embedding(
    x: Tensor,
    memory: Tensor,
    keys: Tensor,
    key_bias: Tensor,
    selector_weight: Tensor,
    selector_bias: Tensor,
    scale: float,
    eps: float,
    memory_grad: bool,
    shard: Shard,
    by_kernels: bool,
) -> tuple[Tensor, ...]:
    """The parts of `MetaEmbeddingDetails`."""
    if by_kernels:
        gate = (selector_weight.detach(), selector_bias.detach())
        recalled, distance, found = native.Meta.apply(
            x, memory, keys, key_bias, *gate, memory_grad, shard
        )
    else:
        recalled, distance, found = formulas.meta(
            x, memory, keys, key_bias, memory_grad=memory_grad, shard=shard
        )
    wide, w_s, b_s, m = widen(x, selector_weight, selector_bias, recalled)
    embedding, selector, distance = joined(wide, m, distance, w_s, b_s, scale, eps)
    return (*(t.to(x.dtype) for t in (embedding, m, selector)), distance, found)
