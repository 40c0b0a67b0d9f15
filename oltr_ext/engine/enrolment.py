"""What a checkpoint keeps of the classes of a trained head: who they are, and of those that joined
after training the features they were made from.

The trained tensors stay what training wrote: reading a checkpoint enrols anew, to the same bits. So
a run goes on, is settled anew or gives its stage 1 away as if no class had joined, and whatever was
changed can be undone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.data.lists import numbered
from oltr_ext.engine import checkpoint
from oltr_ext.nn import Head, Roster

__all__ = ["Enrolment", "carry", "check_nothing_lost", "fill", "put", "read", "spelt"]

CLASSES = "classes"  # key of the header
FEATURES, OWNER, OWNER_BEFORE = "enrolled.features", "enrolled.class", "enrolled.class_before"


@dataclass(eq=False)
class Enrolment:
    """Who the classes are, and what the enrolled ones were made from."""

    roster: Roster
    features: Tensor  # (N, D) float32, on the CPU
    owner: Tensor  # (N,) int64, id of the class of each row; -1: none has it any more
    before: tuple[Roster, Tensor] | None = None  # roster and owner before the last change

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Enrolment):
            return NotImplemented
        (mine, rows), (theirs, others) = _columns(self), _columns(other)
        return mine == theirs and all(torch.equal(rows[key], others[key]) for key in rows)

    @property
    def changed(self) -> bool:
        """Whether there are other classes than the trained ones."""
        return self.roster.num_trained < len(self.roster) or bool(self.roster.removed)

    @property
    def joined(self) -> list[str]:
        """Names of the enrolled classes."""
        return [self.roster[id].name for id in self.roster.living if id >= self.roster.num_trained]

    def after(
        self, roster: Roster, features: Tensor | None = None, ids: Iterable[int] = ()
    ) -> Enrolment:
        """What is kept once a change has led to `roster`.

        The rows of what it removed are kept for one more change, so that it can be undone.

        Args:
            features: (K, D) that the change added. ids: (K,) of their classes.
        """
        rows, more = self.features, torch.tensor([*ids], dtype=torch.int64)
        if features is not None:
            new = features.detach().cpu().float()
            rows = torch.cat([rows, new]) if len(rows) else new
        earlier = torch.cat([self.owner, torch.full_like(more, -1)])
        owner = torch.cat([self.owner, more])
        living = torch.zeros(max(len(roster), len(self.roster)) + 1, dtype=torch.bool)
        living[roster.living] = True
        owner = torch.where(living[owner], owner, -1)  # the last one, of -1, is not living
        held = (owner >= 0) | (earlier >= 0)
        before = (self.roster, earlier[held])
        return Enrolment(Roster(roster), rows[held], owner[held], before)

    def since(self, before: Enrolment) -> Enrolment:
        """The classes as they are, with all that led here from `before` as the last change."""
        mine, theirs = self.owner >= 0, before.owner >= 0
        rows = [each for each in (self.features[mine], before.features[theirs]) if len(each)]
        owner, earlier = self.owner[mine], before.owner[theirs]
        return Enrolment(
            self.roster,
            torch.cat(rows) if rows else self.features[mine],
            torch.cat([owner, torch.full_like(earlier, -1)]),
            (before.roster, torch.cat([torch.full_like(owner, -1), earlier])),
        )

    def undone(self) -> Enrolment:
        """Before the last change; undone again, after it.

        Raises:
            ValueError: nothing was changed.
        """
        if self.before is None:
            raise ValueError("nothing to undo: its classes were not changed")
        roster, owner = self.before
        return Enrolment(roster, self.features, owner, (self.roster, self.owner))


def read(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> Enrolment:
    """Of a checkpoint; one that says nothing of it has trained classes alone."""
    found = header.get(CLASSES)
    if found is None:
        names, counts = numbered(header["class_names"]), header["shape"]["train_counts"]
        return Enrolment(Roster.trained(names, counts), *_nothing())
    before = None
    if found["before"] is not None:
        before = (Roster.from_json(found["before"]), tensors[OWNER_BEFORE])
    return Enrolment(Roster.from_json(found["now"]), tensors[FEATURES], tensors[OWNER], before)


def _nothing() -> tuple[Tensor, Tensor]:
    return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)


def _columns(enrolment: Enrolment) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able, and tensors."""
    rows = {FEATURES: enrolment.features, OWNER: enrolment.owner}
    if enrolment.before is None:
        return {"now": enrolment.roster.to_json(), "before": None}, rows
    roster, rows[OWNER_BEFORE] = enrolment.before
    return {"now": enrolment.roster.to_json(), "before": roster.to_json()}, rows


def put(
    enrolment: Enrolment, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint that keeps `enrolment` in place of what it kept."""
    others = {key: value for key, value in tensors.items() if not key.startswith("enrolled.")}
    columns, rows = _columns(enrolment)
    return {**others, **rows}, {**header, CLASSES: columns}


@torch.no_grad()
def fill(head: Head, enrolment: Enrolment) -> None:
    """Make a head of trained classes alone one of the classes of `enrolment`.

    Raises:
        ValueError: a head that cannot take in or let go; or features of another width.
    """
    roster, device = enrolment.roster, head.threshold.device
    order = torch.argsort(enrolment.owner, stable=True)
    order = order[enrolment.owner[order] >= 0]
    owner, rows = enrolment.owner[order].tolist(), enrolment.features[order]
    gone = [id for id in roster.removed if id >= roster.num_trained]
    if gone:  # an id that is kept free: a class that comes and goes
        owner += gone
        rows = torch.cat([rows, torch.ones(len(gone), rows.shape[1])])
        order = torch.tensor(owner).argsort(stable=True)
        owner, rows = [owner[n] for n in order], rows[order]
    if owner:
        head.enroll(rows.to(device), [f"id {id}" for id in owner])
    if roster.removed:
        head.remove(roster.removed)
    head.roster = Roster(roster)


def check_nothing_lost(path: Path, found: checkpoint.Opened) -> None:
    """Raises ValueError where a model that is about to be trained anew has enrolled classes.

    Args:
        found: what `checkpoint.opened` gave of it.
    """
    if joined := read(*found).joined:
        raise ValueError(
            f"{path} has {spelt(joined)} enrolled, which training afresh would remove: choose "
            f"another folder, move it away, or oltr classes {path.parent} --remove NAME ..."
        )


def spelt(names: Sequence[str], most: int = 5) -> str:
    """How many, and the first of them."""
    some = ", ".join(names[:most]) + (", ..." if len(names) > most else "")
    return f"{counted(len(names), 'class')} ({some})"


def carry(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    learned: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a model that takes the place of the one in `path`, with its classes.

    Args:
        learned: what the model was settled from, by its names, where it is all in this process.

    Raises:
        ValueError: classes joined it that were made from the features of other weights.
    """
    try:
        old = checkpoint.opened(path, alone=True)
    except checkpoint.CheckpointError:
        return dict(tensors), dict(header)
    if CLASSES not in old[1]:
        return dict(tensors), dict(header)
    found = read(*old)
    ours, theirs = (
        checkpoint.fingerprint(each) for each in (learned, checkpoint.under("model.", old[0]))
    )
    if ours != theirs:
        if found.joined:
            raise ValueError(
                f"{path} has {spelt(found.joined)} enrolled under other weights than were trained "
                "now; move it away, and the same command writes the new model"
            )
        found = Enrolment(found.roster, *_nothing())  # other names hold all the same
    return put(found, tensors, header)
