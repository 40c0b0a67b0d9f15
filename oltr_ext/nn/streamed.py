"""A memory head whose banks pass by in blocks, and logits that are never whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from oltr_ext import ops
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

LOGITS = 1 << 22
"""Of a block, at most: 32 MB of float64."""


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


class _Seen(NamedTuple):
    """What one pass tells of logits (B, C): float64."""

    top: Tensor  # (B, K), the largest, in order
    classes: Tensor  # (B, K)
    rest: Tensor  # (B,) logsumexp of all but the largest
    known: Tensor  # (B,) logsumexp of the first `known`


class StreamedLogits:
    """Logits (B, C) of a streamed classifier, as far as scores, answers and sets ask for them:
    computed in blocks of classes, in one pass for all that needs the same, without gradients.

    Args:
        v: embeddings (B, D).
        weight: class directions.
        scale: of the logits.
        shift: (C,) added to them, -inf for what is no answer; None: nothing.
        known: of how many first classes `log_total` is.
    """

    def __init__(
        self, v: Tensor, weight: StreamedBank, scale: float, shift: Tensor | None, known: int
    ) -> None:
        self._v, self._weight, self._scale, self._shift = v, weight, scale, shift
        self._known = known
        self._seen: _Seen | None = None
        self.shape = torch.Size((len(v), len(weight)))
        self.device, self.dtype = v.device, v.dtype

    def __len__(self) -> int:
        return self.shape[0]

    @contextmanager
    def blocks(self) -> Iterator[Iterator[tuple[int, Tensor]]]:
        """First class and logits (B, n) float64 of each block."""
        rows = min(self._weight.block_rows(), max(1, LOGITS // max(1, len(self))))
        with self._weight.blocks(rows) as blocks:
            yield ((start, self._of(block, start)) for start, block in blocks)

    @torch.no_grad()
    def _of(self, rows: Tensor, start: int) -> Tensor:
        logits = ops.cosine_logits(self._v, rows, scale=self._scale)
        if self._shift is not None:
            logits = logits + self._shift[start : start + len(rows)].to(logits.dtype)
        return logits.double()

    def largest(self, count: int) -> tuple[Tensor, Tensor]:
        """The largest logits (B, K) float64, in order, ties by class, and their classes."""
        seen = self._look(count)
        return seen.top[:, :count], seen.classes[:, :count]

    def argmax(self, dim: int = 1) -> Tensor:
        """(B,) class of the largest logit."""
        assert dim == 1
        return self._look(1).classes[:, 0]

    @property
    def log_rest(self) -> Tensor:
        """(B,) float64, logsumexp over all classes but that of the largest logit."""
        return self._look(1).rest

    @property
    def log_known(self) -> Tensor:
        """(B,) float64, logsumexp over the known classes."""
        return self._look(1).known

    @torch.no_grad()
    def at(self, target: Tensor) -> Tensor:
        """(B,) float64 logit of one class (B,) int64 a row."""
        classes, row = target.unique(return_inverse=True)
        logits = ops.cosine_logits(self._v, self._weight.at(classes), scale=self._scale)
        found = logits.gather(1, row[:, None])[:, 0]
        if self._shift is not None:
            found = found + self._shift[target].to(found.dtype)
        return found.double()

    @torch.no_grad()
    def _look(self, count: int) -> _Seen:
        """A pass, where the last one kept fewer of the largest."""
        if self._seen is not None and self._seen.top.shape[1] >= min(count, self.shape[1]):
            return self._seen
        rows = len(self)
        none = self._v.new_full((rows,), -torch.inf, dtype=torch.float64)
        top, rest, known = none.new_empty(rows, 0), none, none
        classes = torch.empty(rows, 0, dtype=torch.int64, device=self.device)
        with self.blocks() as blocks:
            for start, z in blocks:
                if start < self._known:
                    part = z[:, : self._known - start].logsumexp(dim=1)
                    known = torch.logaddexp(known, part)
                value, at = z.max(dim=1, keepdim=True)
                if count > 1:
                    more, where = z.topk(min(count, z.shape[1]), dim=1)
                    more, where = _by_class(more, where)
                else:
                    more, where = value, at
                others = z.scatter_(1, at, -torch.inf).logsumexp(dim=1)
                rest = torch.logaddexp(rest, others)
                if top.shape[1]:
                    loser = torch.minimum(top[:, 0], value[:, 0])
                    rest = torch.logaddexp(rest, loser)
                top = torch.cat([top, more], dim=1)
                classes = torch.cat([classes, where + start], dim=1)
                # stable: of equals the lower class, which came first
                top, order = top.sort(dim=1, descending=True, stable=True)
                top, classes = top[:, :count], classes.gather(1, order)[:, :count]
        self._seen = _Seen(top, classes, rest, known)
        return self._seen


def _by_class(values: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    order = classes.argsort(dim=1)
    return values.gather(1, order), classes.gather(1, order)


def strongest(x: Tensor, keys: StreamedBank, bias: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of softmax(x keys' + bias) the largest shares (B, K) and their classes."""
    parts, classes = [], []
    total = x.new_full((len(x),), -torch.inf)
    with keys.blocks() as blocks:
        for start, block in blocks:
            z = torch.addmm(bias[start : start + len(block)], x, block.t())
            total = torch.logaddexp(total, z.logsumexp(dim=1))
            value, at = z.topk(min(count, len(block)), dim=1)
            parts.append(value)
            classes.append(at + start)
    value, order = torch.cat(parts, dim=1).topk(min(count, len(keys)), dim=1)
    return (value - total[:, None]).exp(), torch.cat(classes, dim=1).gather(1, order)
