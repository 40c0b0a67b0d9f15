"""Gradient checkpointing: a backbone's blocks forget what is inside them, and compute it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["forget_inside_blocks"]


def forget_inside_blocks(backbone: nn.Module) -> None:
    """Make a backbone keep, for the gradient, what goes into its blocks alone.

    A block is a module of parts that stands in a row of others. The second pass gives the first
    one's bits, dropout included, and leaves the statistics of BatchNorm as the first one left them.

    Raises:
        ValueError: it has no blocks that could be told apart.
    """
    blocks = list(_blocks(backbone))
    if not blocks:
        raise ValueError(
            "model.gradient_checkpointing: this backbone has no blocks that can be told apart; "
            "those of timm: and open_clip: have"
        )
    for block in blocks:
        block.forward = partial(_forward, block, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, fx.GraphModule):  # it calls the smallest parts by name
        return
    for child in module.children():
        inner = [c for c in child.children() if next(c.children(), None) is not None]
        if isinstance(child, nn.Sequential | nn.ModuleList) and inner:
            yield from inner
        else:
            yield from _blocks(child)


def _forward(block: nn.Module, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not (torch.is_grad_enabled() and block.training):
        return forward(*args, **options)

    def twice() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _without_statistics(block)

    return checkpoint(forward, *args, use_reentrant=False, context_fn=twice, **options)


@contextmanager
def _without_statistics(block: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch, and follows it by nothing and without counting."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    there = [(norm, norm.momentum) for norm in norms if norm.training]
    for norm, _ in there:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in there:
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1
