"""What a pass carries from block to block: partial states, and the rule by which they merge
(csrc/common/merge.h), in float64, so that any number of blocks adds no rounding of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from oltr_ext.ops.shard import unrounded


class Softmax:
    """log of a sum of exponentials (B,), and what is recalled by their shares (B, D)."""

    def __init__(self, rows: int, width: int, device: torch.device) -> None:
        wide = torch.float64
        self._high = torch.full((rows,), -torch.inf, dtype=wide, device=device)
        self._total = torch.zeros(rows, dtype=wide, device=device)
        self._sum = torch.zeros(rows, width, dtype=wide, device=device)

    def take(self, lse: Tensor, part: Tensor | None = None) -> None:
        """A block's log of the sum (B,), and what it recalls (B, D)."""
        lse = lse.to(self._high)
        high = torch.maximum(self._high, lse)
        before, here = _share(self._high, high), _share(lse, high)
        self._total = self._total * before + here
        self._high = high
        if part is not None:
            # a block without weight may have recalled NaN: of no class, nothing
            weighted = part.to(self._sum).mul_(here[:, None])
            weighted = weighted.masked_fill_((here == 0)[:, None], 0)
            self._sum = self._sum.mul_(before[:, None]).add_(weighted)

    @property
    def lse(self) -> Tensor:
        return self._high + self._total.log()

    @property
    def recalled(self) -> Tensor:
        return self._sum / self._total[:, None]


def _share(lse: Tensor, high: Tensor) -> Tensor:
    return (lse - high).exp().masked_fill(lse == -torch.inf, 0)


class Closest:
    """Smallest distance (B,), its class and that class's row (B, D), as `torch.min` chooses: NaN
    before everything, ties to the lower class."""

    distance: Tensor
    index: Tensor
    row: Tensor

    def __init__(self) -> None:
        self._any = False

    def take(self, x: Tensor, start: int, block: Tensor, distance: Tensor, index: Tensor) -> None:
        """What a block from class `start` on has."""
        distance = unrounded(distance, x, block[index])
        if not self._any:
            self.distance, self.index, self.row = distance, index + start, block[index]
            self._any = True
            return
        better = (distance < self.distance) | (distance.isnan() & ~self.distance.isnan())
        at = better.nonzero()[:, 0]
        self.distance[at] = distance[at]
        self.index[at] = index[at] + start
        self.row[at] = block[index[at]]
