"""A memory head whose banks pass by in blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.parted import BLOCK, PartedLogits, strongest_of
from oltr_ext.ops import StreamedBank

if TYPE_CHECKING:
    from oltr_ext.nn.oltr_head import OLTRHead

__all__ = ["STREAMED", "StreamedLogits", "stream"]

STREAMED = (
    "memory.centroids",
    "classifier.fc_hallucinator.weight",
    "classifier.cosnorm_classifier.weight",
    "bank.means",
    "bank.rows",
)
"""What `stream` puts banks in the place of: all of a memory head that grows with C x D."""


def stream(head: OLTRHead, opened: Callable[[str], StreamedBank]) -> None:
    """Put streamed banks in the place of a head's own tensors, which may be on "meta".

    It predicts, scores and is judged as before. It cannot be trained, enrol classes or let any go.

    Args:
        opened: the bank of each name of `STREAMED` that the head has.

    Raises:
        ValueError: a bank of another shape than the tensor's.
    """
    banks: list[tuple[nn.Module, str, StreamedBank]] = []
    for name in STREAMED:
        path, _, last = name.rpartition(".")
        module = head.get_submodule(path)
        own = getattr(module, last)
        if own is None:
            continue
        bank = opened(name)
        if bank.shape != own.shape:
            raise ValueError(
                f"stream: expected {name} of shape {tuple(own.shape)}, got {tuple(bank.shape)}"
            )
        banks.append((module, last, bank))
    for module, last, bank in banks:
        delattr(module, last)  # a parameter's or buffer's name takes tensors alone
        setattr(module, last, bank)
    head.classifier.fc_hallucinator.bias.requires_grad_(False)  # it goes with its bank


class StreamedLogits(PartedLogits):
    """Logits (B, C) of a streamed classifier: computed in blocks of classes, in one pass for all
    that needs the same.

    Args:
        v: embeddings (B, D).
        weight: class directions.
        scale: of the logits.
        shift: (C,) added to them, -inf for what is no answer; None: nothing.
        known: see `PartedLogits`.
    """

    def __init__(
        self, v: Tensor, weight: StreamedBank, scale: float, shift: Tensor | None, known: int
    ) -> None:
        super().__init__((len(v), len(weight)), v, known)
        self._v, self._weight, self._scale, self._shift = v, weight, scale, shift

    @contextmanager
    def blocks(self) -> Iterator[Iterator[tuple[int, Tensor]]]:
        rows = min(self._weight.block_rows(), max(1, BLOCK // max(1, len(self))))
        with self._weight.blocks(rows) as blocks:
            yield ((start, self._of(block, start)) for start, block in blocks)

    @torch.no_grad()
    def _of(self, rows: Tensor, start: int) -> Tensor:
        logits = ops.cosine_logits(self._v, rows, scale=self._scale)
        if self._shift is not None:
            logits = logits + self._shift[start : start + len(rows)].to(logits.dtype)
        return logits.double()

    @torch.no_grad()
    def at(self, target: Tensor) -> Tensor:
        classes, row = target.unique(return_inverse=True)
        logits = ops.cosine_logits(self._v, self._weight.at(classes), scale=self._scale)
        found = logits.gather(1, row[:, None])[:, 0]
        if self._shift is not None:
            found = found + self._shift[target].to(found.dtype)
        return found.double()


def strongest(
    x: Tensor, keys: StreamedBank, bias: Tensor, gone: Tensor | None, count: int
) -> tuple[Tensor, Tensor]:
    """Of softmax(x keys' + bias) the largest shares (B, K) and their classes, of equals the lower.

    Args:
        gone: (C,) bool, classes whose share is 0; None: of none.
    """
    parts, classes = [], []
    total = x.new_full((len(x),), -torch.inf)
    with keys.blocks() as blocks:
        for start, block in blocks:
            here = slice(start, start + len(block))
            z = torch.addmm(bias[here], x, block.t())
            if gone is not None:
                z = z.masked_fill(gone[here], -torch.inf)
            total = torch.logaddexp(total, z.logsumexp(dim=1))
            value, at = strongest_of(z, count)
            parts.append(value)
            classes.append(at + start)
    value, order = strongest_of(torch.cat(parts, dim=1), count)
    return (value - total[:, None]).exp(), torch.cat(classes, dim=1).gather(1, order)
