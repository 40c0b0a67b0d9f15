"""A bank of training features that takes in those of classes which join later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext.nn.room import Rooms

Changes = dict[str, Any]
"""Tensors of a bank to be, under their names; and which of its means move, and where to."""


class GrowingBank(nn.Module):
    """What `FeatureBank` holds of classes, and how that changes.

    Attributes:
        length: (), of the training's features as they came, on average.
        owners, members: (A,), (B,) float64 whole numbers, ids of the classes that joined later, to
            which the last rows and means belong.
    """

    LATER = ("length", "owners", "members")

    whitening: Tensor | None
    means: Tensor | None
    rows: Tensor | None
    length: Tensor | None
    owners: Tensor | None
    members: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in self.LATER:
            self.register_buffer(name, None)

    def of_training(self, length: float, device: torch.device | None) -> None:
        """All that it holds is of trained classes, whose features have this length on average."""
        self.length = torch.tensor(length, dtype=torch.float32, device=device)
        self.owners = self.members = None

    def trained_means(self) -> Tensor | None:
        """(K, D) float32, about where the means of trained classes are among features as they came;
        None where it was not told."""
        if self.whitening is None or self.means is None or self.length is None:
            return None
        trained = self.means[: len(self.means) - (0 if self.members is None else len(self.members))]
        unit = torch.linalg.solve_triangular(self.whitening, trained.t(), upper=False)
        return self.length * unit.t()

    def joined(
        self, features: Tensor, group: Tensor, ids: Tensor, before: Tensor, rooms: Rooms
    ) -> Changes:
        """What `take` makes of this bank: one that has features of further classes too.

        Args:
            features: (N, D) of groups (N,) in [0, K).
            ids: (K,) of their classes, the new ones last and in order. before: (K,), how many
                features of each it had.
        """
        if self.whitening is None and self.rows is None:
            return {}
        z, found = F.normalize(features.double(), dim=1), Changes()
        if self.rows is not None:
            found["rows"] = rooms.grown("rows", self.rows, z.float().to(self.rows.device))
            found["owners"] = _longer(rooms, "owners", self.owners, ids[group], self.rows.device)
        if self.whitening is not None and self.means is not None:
            device, count = self.means.device, before.clone().double()
            total = z.new_zeros(len(ids), z.shape[1])
            total.index_add_(0, group, z)
            total = total @ self.whitening.cpu().double().t()
            number = before + group.bincount(minlength=len(ids))
            known = before > 0
            if known.any():
                assert self.members is not None
                at = torch.searchsorted(self.members.cpu().round().long(), ids[known])
                at = at + len(self.means) - len(self.members)
                total[known] += self.means.cpu()[at].double() * count[known, None]
            means = (total / number[:, None]).float().to(device)
            found["means"] = rooms.grown("means", self.means, means[~known.to(device)])
            found["members"] = _longer(rooms, "members", self.members, ids[~known], device)
            if known.any():
                found["moved"] = at.to(device), means[known.to(device)]
        return found

    def without(self, ids: Sequence[int]) -> Changes:
        """What `take` makes of this bank: one without features of classes that joined later."""
        found, gone = Changes(), torch.tensor(ids, dtype=torch.int64, device="cpu")
        for name, tag in (("rows", "owners"), ("means", "members")):
            held, own = getattr(self, name), getattr(self, tag)
            if held is None or own is None:
                continue
            stays = ~torch.isin(own.round().long(), gone.to(own.device))
            if stays.all():
                continue
            # copies: a file of a part of a buffer would hold the whole
            left, first = own[stays], len(held) - len(own)
            found[name] = torch.cat([held[:first], held[first:][stays]])
            found[tag] = left if len(left) else None
        return found

    def take(self, changes: Changes) -> None:
        """Become what `joined` or `without` made."""
        for name, value in changes.items():
            if name != "moved":
                setattr(self, name, value)
        if "moved" in changes:
            at, means = changes["moved"]
            assert self.means is not None
            self.means[at] = means


def _longer(
    rooms: Rooms, name: str, old: Tensor | None, ids: Tensor, device: torch.device
) -> Tensor:
    """Ids of later classes, with more of them."""
    if old is None:
        dtype = torch.float64 if device.type != "mps" else torch.float32
        old = torch.zeros(0, dtype=dtype, device=device)
    return rooms.grown(name, old.to(device), ids.to(device, old.dtype))
