"""New classes in a trained run, and other names for old ones.

What changes is `Trained` in memory; `save` writes it to its checkpoint, and `editing` does both to
a run that others may change at the same time.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext._words import counted
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.engine.enrolment import Enrolment
from oltr_ext.engine.lock import locked
from oltr_ext.engine.sets import Calibration
from oltr_ext.nn import Roster
from oltr_ext.serve.predict import Named, nearest_classes
from oltr_ext.serve.trained import Trained, take_up, trained_head
from oltr_ext.serve.unlike import unlike

__all__ = [
    "ChangedError",
    "Class",
    "Enrolled",
    "as_one",
    "check_same_model",
    "classes",
    "editing",
    "enroll",
    "refresh",
    "remove",
    "rename",
    "restore",
    "save",
    "undo",
]

CHANGE = "a change of its classes"
WAIT = 30.0
"""Seconds to wait for another process that changes the classes of the same run."""


class ChangedError(RuntimeError):
    """A checkpoint is no longer what was read of it."""


@dataclass(frozen=True)
class Class:
    """A class that a model knows."""

    id: int
    name: str
    origin: str  # "trained" or "enrolled"
    images: int | None
    when: str | None  # of its last enrolment, ISO 8601 in UTC; None where it was trained


@dataclass(frozen=True)
class Enrolled:
    """What became of the images of one class."""

    name: str
    id: int
    images: int  # given now
    nearest: str  # the class that was there before and is nearest to their mean
    taken_for: dict[str, int]  # as what how many were recognised before, most frequent first
    recognised: int  # how many are, as this class, afterwards
    unlike: list[str] = field(default_factory=list)  # those that are unlike the rest

    @property
    def looks_like(self) -> str | None:
        """The class that more than half of the images were taken for before."""
        name, count = next(iter(self.taken_for.items()), ("", 0))
        return name if 2 * count > self.images else None


def classes(roster: Roster) -> list[Class]:
    """The living ones, by id."""
    return [
        Class(id, entry.name, entry.origin, entry.images, entry.when)
        for id, entry in enumerate(roster)
        if entry.alive
    ]


@own_defaults()
@torch.no_grad()
def enroll(
    trained: Trained, given: Sequence[Named], names: Sequence[str], *, more: bool = False
) -> list[Enrolled]:
    """Let classes join a model, from a few images of each, in memory.

    Args:
        given: images, as `image_features` and `row_features` give them.
        names: of the class of each image, in order.
        more: a name that was enrolled before gets the images in addition.

    Returns:
        What became of each class, in order of first appearance.

    Raises:
        ValueError: no image, another number of names, a name that is none or is there; a head that
            cannot take classes in. Nothing changes.
    """
    called = [name for part, _ in given for name in part]
    if not called or len(called) != len(names):
        raise ValueError(
            f"enroll: expected images and a name for each, got {counted(len(called), 'image')} and "
            f"{counted(len(names), 'name')}"
        )
    features = torch.cat([part for _, part in given])
    _check_names(trained.roster, names, more)
    rows: dict[str, list[int]] = {}
    for n, name in enumerate(names):
        rows.setdefault(name, []).append(n)
    before = _answers(trained, features)
    means = torch.stack([features[mine].mean(dim=0) for mine in rows.values()])
    nearest = _nearest(trained, means)
    head, source = trained.model.head, _source(trained, joins=True)
    ids = head.enroll(features, list(names)).tolist()
    id_of = dict(zip(rows, ids, strict=True))
    _changed(trained, source, features, [id_of[name] for name in names])
    after = _answers(trained, features)
    return [
        Enrolled(
            name,
            id_of[name],
            len(mine),
            near,
            dict(Counter(label for n in mine if (label := before[n]) is not None).most_common()),
            sum(after[n] == name for n in mine),
            [called[mine[n]] for n in unlike(features[mine])],
        )
        for (name, mine), near in zip(rows.items(), nearest, strict=True)
    ]


def rename(trained: Trained, old: str, new: str) -> None:
    """Call a class otherwise, in memory.

    Raises:
        ValueError: no such class, or a name that is none or another class's.
    """
    id, source = _id_of(trained.roster, old), _source(trained)
    trained.model.head.rename(id, new)
    _changed(trained, source)


@own_defaults()
def remove(trained: Trained, names: Sequence[str]) -> None:
    """Make classes, trained or enrolled, no answer any more, in memory.

    Raises:
        ValueError: no such class, or all of them; a head that cannot let classes go. Nothing
            changes.
    """
    ids = [_id_of(trained.roster, name) for name in names]
    source = _source(trained, gone=ids)
    trained.model.head.remove(ids)
    _changed(trained, source)


def undo(trained: Trained) -> None:
    """Take back the last change, whichever it was, in memory; undone again, it is there again.

    Raises:
        ValueError: nothing was changed. ChangedError, CheckpointError: see `save`.
    """
    _take_up(trained, trained.enrolment.undone(), *_unchanged(trained))


@contextmanager
def as_one(trained: Trained) -> Iterator[None]:
    """Make the changes of the block one, to be undone at once; or none, if it raises."""
    before = trained.enrolment
    try:
        yield
    except BaseException:
        if trained.enrolment is not before:
            _take_up(trained, before, *_unchanged(trained))
        raise
    trained.enrolment = trained.enrolment.since(before)


@own_defaults()
def restore(trained: Trained, kept: Enrolment) -> None:
    """Give a model the classes of `kept`, which it had once, in memory; a change like others.

    Raises:
        ChangedError, CheckpointError: see `save`.
    """
    _take_up(trained, kept.since(trained.enrolment), *_unchanged(trained))


@own_defaults()
def refresh(trained: Trained) -> bool:
    """Take up what others wrote into the checkpoint since it was read; whether there was anything.

    Raises:
        ChangedError: it was trained anew. CheckpointError: it has gone.
    """
    return _refresh(trained, *checkpoint.load(_target(trained)))


@own_defaults()
def save(trained: Trained, *, wait: float = WAIT) -> Path:
    """Write the classes of a model into the checkpoint that it was read from.

    At any moment the file is the old or the whole new one.

    Args:
        wait: seconds to wait for another process that writes there.

    Raises:
        ChangedError: others changed its classes, or trained it anew, since it was read.
        BusyError: another process holds the folder for longer.
        ValueError: a checkpoint to train on from, not a model; the Hub's copy of one.
    """
    path = _target(trained)
    with locked(path.parent, CHANGE, wait=wait):
        _write(trained, *_unchanged(trained))
    return path


@contextmanager
def editing(trained: Trained, *, wait: float = WAIT) -> Iterator[Trained]:
    """Change the classes of a checkpoint: first take up what others wrote since it was read, then
    keep them out, and at the end write, unless the block raised.

    Raises:
        ChangedError: it was trained anew since it was read. BusyError, ValueError: see `save`.
    """
    path = _target(trained)
    with locked(path.parent, CHANGE, wait=wait):
        tensors, header = checkpoint.load(path)
        _refresh(trained, tensors, header)
        yield trained
        _write(trained, tensors, header)


def _check_names(roster: Roster, names: Sequence[str], more: bool) -> None:
    for name in dict.fromkeys(names):
        if name not in roster:
            continue
        entry = roster[roster.id_of(name)]
        if entry.origin == "trained":
            raise ValueError(
                f"enroll: {name!r} is a trained class: give the new one another name, or train "
                "with more images of the old one"
            )
        if not more:
            raise ValueError(
                f"enroll: {name!r} was enrolled before, from {counted(entry.images or 0, 'image')}"
                ": give the new one another name, or say that these are more of it (--more, "
                "more=True)"
            )


def _id_of(roster: Roster, name: str) -> int:
    if name not in roster:
        near = difflib.get_close_matches(name, [roster[id].name for id in roster.living], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no class {name!r} among the {len(roster.living)}{hint}")
    return roster.id_of(name)


def _answers(trained: Trained, features: Tensor) -> list[str | None]:
    names, (label, _) = trained.names, trained.model.head.predict(features)
    return [None if n < 0 else names[n] for n in label.tolist()]


def _nearest(trained: Trained, means: Tensor) -> list[str]:
    head, names = trained.model.head, trained.names
    found = [nearest_classes(head, part, head(part), 1)[0] for part in head.pieces(means)]
    return [names[first] for order in found for first, *_ in order]


def _target(trained: Trained) -> Path:
    """The file to write; a link stays one."""
    held = trained.path.absolute().parents
    if len(held) > 2 and held[1].name == "snapshots" and held[2].name.startswith("models--"):
        raise ValueError(
            f"{trained.path} is the Hub's own, kept under the hash of its contents: "
            "save_pretrained to a folder, and change that"
        )
    path = trained.path.resolve()
    if path.name in checkpoint.OF_TRAINING:
        raise ValueError(
            f"{trained.path} is what a run trains on from: expected the {checkpoint.MODEL} of its "
            "folder"
        )
    return path


def _source(
    trained: Trained, *, joins: bool = False, gone: Sequence[int] = ()
) -> checkpoint.Contents | None:
    """The trained classes, where the change to come leaves one that joined beside one that is gone:
    they then stand as the file is read, which has to be read before anything changes."""
    roster = trained.roster
    without = {*roster.removed, *gone}
    stay = joins or any(id >= roster.num_trained and id not in without for id in roster.living)
    if not stay or all(id >= roster.num_trained for id in without):
        return None
    tensors, header = checkpoint.load(trained.path)
    check_same_model(trained, header)
    return tensors, header


def _changed(
    trained: Trained,
    source: checkpoint.Contents | None,
    features: Tensor | None = None,
    ids: Sequence[int] = (),
) -> None:
    """Keep what has happened to the head."""
    trained.enrolment = trained.enrolment.after(trained.roster, features, ids)
    if source is not None:
        _take_up(trained, trained.enrolment, *source)
    trained.threshold = {**trained.threshold, "value": float(trained.model.head.threshold)}


def _take_up(
    trained: Trained, kept: Enrolment, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Begin from the trained classes, and let those of `kept` join; with streamed banks, which stay
    where they are, names alone may change."""
    if kept.changed:
        trained.check_in_memory(CHANGE)
    if trained.streamed:
        trained.model.head.roster, trained.enrolment = Roster(kept.roster), kept
        return
    head = trained_head(trained, tensors, header["state"]["stage"])
    trained.threshold = take_up(head, header["threshold"], kept)
    trained.model.head, trained.enrolment = head, kept
    trained.calibration = Calibration.read(tensors)  # not one that was made by other classes


def _refresh(trained: Trained, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bool:
    check_same_model(trained, header)
    found = enrolment.read(tensors, header)
    if found == trained.kept:
        return False
    _take_up(trained, found, tensors, header)
    trained.kept = found
    return True


def _write(trained: Trained, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    checkpoint.save(_target(trained), *enrolment.put(trained.enrolment, tensors, header))
    trained.kept = trained.enrolment


def check_same_model(trained: Trained, header: Mapping[str, Any]) -> None:
    """Raises ChangedError where the header of its checkpoint is of another training."""
    if (header["state"], header["shape"]["train_counts"]) != (trained.state, trained.train_counts):
        raise ChangedError(f"{trained.path} was trained anew since it was read; load it again")


def _unchanged(trained: Trained) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Tensors and header of its checkpoint, which are what was read."""
    where = checkpoint.opened(trained.path, alone=True) if trained.streamed else None
    tensors, header = where or checkpoint.load(trained.path)
    check_same_model(trained, header)
    if enrolment.read(tensors, header) != trained.kept:
        raise ChangedError(
            f"{trained.path}: its classes were changed since it was read; load it and change it "
            "again"
        )
    return tensors, header
