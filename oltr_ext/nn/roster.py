"""Who the classes of a head are: names by id, and which of them joined after training."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

TRAINED, ENROLLED = "trained", "enrolled"


@dataclass(frozen=True)
class ClassEntry:
    """One class of a head."""

    name: str
    origin: str
    """``trained`` or ``enrolled``."""
    images: int | None
    """How many it was made from; None where it is not known."""
    when: str | None = None
    """Of the last enrolment, ISO 8601 in UTC to the second; None where it was trained."""
    alive: bool = True
    """False: removed. It keeps its id, and is no answer."""


class Roster:
    """The classes of a head, by id: trained ones first, then enrolled ones in order of arrival.

    An id never shifts, and is not given to another class while a later one exists. Enrolled classes
    that are removed from the end are forgotten, and their ids are free again: what is there then is
    what was there before them. Names are unique among the living.

    No two threads may change one at a time; `Head.enroll` sees to that.

    Args:
        entries: all trained ones before the first enrolled one.

    Raises:
        ValueError: a name that is not a string with something in it, twice among the living, a
            trained class after an enrolled one, another origin, or fewer than no images.
    """

    def __init__(self, entries: Iterable[ClassEntry] = ()) -> None:
        self._entries: list[ClassEntry] = []
        self._id_of: dict[str, int] = {}
        self._trained = 0
        for entry in entries:
            _check_name("Roster", entry.name)
            if entry.origin not in (TRAINED, ENROLLED) or (entry.images or 0) < 0:
                raise ValueError(
                    f"Roster: expected {entry.name!r} to be trained or enrolled from 0 images or "
                    f"more, got {entry.origin!r} from {entry.images}"
                )
            if entry.origin == TRAINED and self._entries and self._entries[-1].origin == ENROLLED:
                raise ValueError(
                    f"Roster: expected trained classes first, got {entry.name!r} after "
                    f"{self._entries[-1].name!r}, which is enrolled"
                )
            if entry.alive:
                self._check_free("Roster", entry.name)
                self._id_of[entry.name] = len(self._entries)
            self._entries.append(entry)
            self._trained += entry.origin == TRAINED

    @classmethod
    def trained(
        cls, names: Iterable[str], images: Sequence[int] | None = None, removed: Iterable[int] = ()
    ) -> Roster:
        """Of trained classes alone.

        Args:
            names: (C,). images: (C,) training images of each, where they are known.
            removed: ids that are no answer.

        Raises:
            ValueError: as the constructor, or another number of images than of names.
        """
        names, gone = list(names), set(removed)
        if images is not None and len(images) != len(names):
            raise ValueError(
                f"Roster.trained: expected images of {len(names)} classes, got {len(images)}"
            )
        counts = [None] * len(names) if images is None else [int(n) for n in images]
        return cls(
            ClassEntry(name, TRAINED, count, alive=id not in gone)
            for id, (name, count) in enumerate(zip(names, counts, strict=True))
        )

    def __len__(self) -> int:
        """Number of ids; those of removed classes count."""
        return len(self._entries)

    def __getitem__(self, id: int) -> ClassEntry:
        if not 0 <= id < len(self):
            raise IndexError(f"Roster: expected an id in [0, {len(self)}), got {id}")
        return self._entries[id]

    def __iter__(self) -> Iterator[ClassEntry]:
        return iter(tuple(self._entries))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roster) and self._entries == other._entries

    def __contains__(self, name: object) -> bool:
        """Whether a living class has that name."""
        return name in self._id_of

    @property
    def names(self) -> list[str]:
        """By id; a removed class has the name that it had."""
        return [entry.name for entry in self._entries]

    @property
    def num_trained(self) -> int:
        """Ids below this one are of trained classes."""
        return self._trained

    @property
    def living(self) -> list[int]:
        """Ids, in order."""
        return [id for id, entry in enumerate(self._entries) if entry.alive]

    @property
    def removed(self) -> list[int]:
        """Ids, in order."""
        return [id for id, entry in enumerate(self._entries) if not entry.alive]

    def id_of(self, name: str) -> int:
        """Id of a living class.

        Raises:
            ValueError: no such name.
        """
        if name not in self._id_of:
            raise ValueError(
                f"Roster.id_of: expected the name of one of {len(self._id_of)} classes, got "
                f"{name!r}"
            )
        return self._id_of[name]

    def ids_for(self, names: Sequence[str], images: Sequence[int]) -> list[int]:
        """What `add` would answer.

        Raises:
            ValueError: as `add`.
        """
        if len(names) != len(images):
            raise ValueError(
                f"Roster.add: expected a number of images for each of {len(names)} names, got "
                f"{len(images)}"
            )
        ids: dict[str, int] = {}
        fresh = len(self)
        for name, count in zip(names, images, strict=True):
            _check_name("Roster.add", name)
            id = self._id_of.get(name)
            if id is None:
                _check_new_name("Roster.add", name)
            if id is not None and self[id].origin == TRAINED:
                raise ValueError(
                    f"Roster.add: {name!r} is a trained class: more of its images need training; "
                    "a class that joins needs another name"
                )
            if count < 1:
                raise ValueError(f"Roster.add: expected an image of {name!r} or more, got {count}")
            if name in ids:
                raise ValueError(f"Roster.add: expected each name once, got {name!r} again")
            ids[name] = fresh if id is None else id
            fresh += id is None
        return list(ids.values())

    def add(
        self, names: Sequence[str], images: Sequence[int], when: str | None = None
    ) -> list[int]:
        """Enrol classes, or count further images of enrolled ones.

        Args:
            names: (K,), each once. images: (K,) at least 1 each.
            when: ISO 8601; by default now.

        Returns:
            Ids (K,): of a name that is enrolled already its own, else the next ones in order.

        Raises:
            ValueError: a name that is none, no line of text, twice or of a trained class; no image.
                Nothing changes.
        """
        ids = self.ids_for(names, images)
        if when is None:
            when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        for id, name, count in zip(ids, names, images, strict=True):
            if id < len(self):
                old = self[id]
                self._entries[id] = replace(old, images=(old.images or 0) + int(count), when=when)
            else:
                self._id_of[name] = id
                self._entries.append(ClassEntry(name, ENROLLED, int(count), when))
        return ids

    def length_without(self, ids: Sequence[int]) -> int:
        """How many ids `remove` would leave.

        Raises:
            ValueError: as `remove`.
        """
        for id in ids:
            self._check_living("Roster.remove", id)
        gone = set(ids)
        if len(gone) != len(ids):
            raise ValueError(f"Roster.remove: expected each id once, got {ids}")
        if ids and len(ids) == len(self._id_of):
            raise ValueError("Roster.remove: expected a class to stay, got the ids of all")
        left = len(self)
        while left > self._trained and (left - 1 in gone or not self[left - 1].alive):
            left -= 1
        return left

    def remove(self, ids: Sequence[int]) -> None:
        """Make classes no answer any more; forget those enrolled classes at the end that are none.

        Raises:
            ValueError: an id that is none, twice or removed already, or of all that live. Nothing
                changes.
        """
        left = self.length_without(ids)
        for id in ids:
            del self._id_of[self[id].name]
            self._entries[id] = replace(self[id], alive=False)
        del self._entries[left:]

    def rename(self, id: int, name: str) -> None:
        """Call a living class otherwise.

        Raises:
            ValueError: an id of none that lives, or a name that is none, no line of text or another
                class's.
        """
        self._check_living("Roster.rename", id)
        if name != self[id].name:
            _check_new_name("Roster.rename", name)
        if self._id_of.get(name, id) != id:
            self._check_free("Roster.rename", name)
        del self._id_of[self[id].name]
        self._id_of[name] = id
        self._entries[id] = replace(self[id], name=name)

    def to_json(self) -> dict[str, Any]:
        """JSON-able, by column; `from_json` reads it."""
        trained = self.num_trained
        return {
            "version": 1,
            "trained": trained,
            "names": self.names,
            "images": [entry.images for entry in self],
            "when": [entry.when for entry in self._entries[trained:]],
            "removed": self.removed,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Roster:
        """What `to_json` gave.

        Raises:
            ValueError: it is no roster, or of a later version.
        """
        if value.get("version") != 1:
            raise ValueError(f"Roster.from_json: expected version 1, got {value.get('version')!r}")
        try:
            names, images, trained = value["names"], value["images"], int(value["trained"])
            when, removed = [None] * trained + list(value["when"]), set(value["removed"])
            columns = list(zip(names, images, when, strict=True))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"Roster.from_json: expected columns of a roster: {error}") from None
        if not 0 <= trained <= len(names) or not removed <= set(range(len(names))):
            raise ValueError(
                f"Roster.from_json: expected ids below {len(names)}, got {trained} trained and "
                f"removed {sorted(removed)}"
            )
        return cls(
            ClassEntry(name, TRAINED if id < trained else ENROLLED, count, at, id not in removed)
            for id, (name, count, at) in enumerate(columns)
        )

    def __repr__(self) -> str:
        trained, gone = self.num_trained, len(self.removed)
        return f"Roster({trained} trained, {len(self) - trained} enrolled, {gone} removed)"

    def _check_living(self, where: str, id: int) -> None:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < len(self):
            raise ValueError(f"{where}: expected an id in [0, {len(self)}), got {id!r}")
        if not self[id].alive:
            raise ValueError(f"{where}: class {id}, {self[id].name!r}, is removed already")

    def _check_free(self, where: str, name: str) -> None:
        if name in self._id_of:
            raise ValueError(
                f"{where}: expected names that differ, got {name!r}, which class "
                f"{self._id_of[name]} has"
            )


def _check_name(where: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: expected a name, got {name!r}")


def _check_new_name(where: str, name: object) -> None:
    """Of a name that is given now: lists and tables hold one a line. A model that has another is
    read all the same."""
    _check_name(where, name)
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in str(name)):
        raise ValueError(
            f"{where}: expected a name on one line, without control characters, got {name!r}"
        )
