"""What was decided about images, as the replay of a log.

An image is the hash of its contents. It has a place: a group (from 1 on), or one of `SINGLE` and
`JUNK`, or none as long as nobody found it unknown or moved it. Groups may have a name. Nothing in
the log is ever taken out: an undo is an entry of its own.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "JUNK",
    "SINGLE",
    "Event",
    "Log",
    "Refused",
    "State",
    "checked_name",
    "replay",
    "tidied",
]

SINGLE, JUNK = 0, -1
DECISIONS = ("move", "name", "merge", "regroup", "enroll")
"""Kinds of what a person does, which can be undone; ``found`` and ``outside`` just happened."""
LONGEST = 200


class Refused(ValueError):
    """A decision that cannot be; the message says why."""


@dataclass(frozen=True)
class Event:
    """An entry of the log.

    Attributes:
        id: from 1 on without a gap; the version of all that was decided until then.
        time: ISO 8601 in UTC.
        kind: one of `DECISIONS`, ``found``, ``outside``, ``undo`` or ``redo``.
        said: JSON-able. ``images`` and ``groups`` are those that it is about, for all kinds;
            the rest is that of `State.apply`.
    """

    id: int
    time: str
    kind: str
    said: Mapping[str, Any]


@dataclass
class State:
    """Where each image is, and what each group is called.

    Attributes:
        place: by image. members: by group with images in it, in the order of their arrival.
        names: of groups that have one and images.
        enrolled: images that were given to the model from here, and as what.
    """

    place: dict[str, int] = field(default_factory=dict)
    members: dict[int, dict[str, None]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    enrolled: dict[str, str] = field(default_factory=dict)

    def apply(self, kind: str, said: Mapping[str, Any]) -> None:
        """Take in one entry that is not undone; each is possible in any state.

        ``found``, ``regroup``: ``placed``, images by group or place; the former only those that
        have none. ``move``: ``images`` to the group or place ``to``, which is called ``name`` if
        that is given. ``merge``: as ``move``. ``name``: ``to`` is called ``name``, None for
        nothing. ``enroll``: ``classes``, images by name, are all that the model has from here.
        """
        if kind in ("found", "regroup"):
            for group, images in said["placed"].items():
                for image in images:
                    if kind == "regroup" or image not in self.place:
                        self._put(image, int(group))
        elif kind in ("move", "merge"):
            for image in said["images"]:
                self._put(image, said["to"])
            if "name" in said:
                self._call(said["to"], said["name"])
        elif kind == "name":
            self._call(said["to"], said["name"])
        elif kind == "enroll":
            self.enrolled = {
                image: name for name, images in said["classes"].items() for image in images
            }

    def named(self) -> dict[str, list[str]]:
        """Images by the name of their groups, in order of the groups."""
        found: dict[str, list[str]] = {}
        for group in sorted(self.names):
            found.setdefault(self.names[group], []).extend(self.members[group])
        return found

    def _put(self, image: str, to: int) -> None:
        before = self.place.get(image)
        if before == to:
            return
        if before is not None and before > 0:
            del self.members[before][image]
            if not self.members[before]:
                del self.members[before]
                self.names.pop(before, None)
        self.place[image] = to
        if to > 0:
            self.members.setdefault(to, {})[image] = None

    def _call(self, group: int, name: str | None) -> None:
        if name is None:
            self.names.pop(group, None)
        elif group in self.members:
            self.names[group] = name


@dataclass
class Log:
    """All entries, and the state that they lead to.

    Attributes:
        done: ids of decisions that hold and can be undone, the last one last. undone: of those that
            can be done again. overtaken: of enrolments that hold as far as the model still has
            them, for its classes were changed elsewhere since.
        next_group: a number that no group ever had.
    """

    events: list[Event] = field(default_factory=list)
    state: State = field(default_factory=State)
    done: list[int] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)
    overtaken: set[int] = field(default_factory=set)
    next_group: int = 1

    @property
    def version(self) -> int:
        return len(self.events)

    def __getitem__(self, id: int) -> Event:
        return self.events[id - 1]

    def take(self, event: Event) -> None:
        """Take in the next entry."""
        self._note(event)
        if event.kind in ("undo", "redo"):
            self.state = self._state()
        else:
            self.state.apply(event.kind, event.said)

    def conflict(self, seen: int, images: Iterable[str], groups: Iterable[int]) -> Event | None:
        """What was decided about any of these since version `seen`."""
        these, those = set(images), set(groups)
        for event in self.events[seen:]:
            of = self[event.said["of"]] if event.kind in ("undo", "redo") else event
            if event.kind not in ("found", "outside") and (
                not these.isdisjoint(of.said["images"]) or not those.isdisjoint(of.said["groups"])
            ):
                return event
        return None

    def _note(self, event: Event) -> None:
        """All of an entry but what it does to the state."""
        assert event.id == self.version + 1
        self.events.append(event)
        self.next_group = max(self.next_group, 1 + max(_groups_made(event), default=0))
        if event.kind == "undo":
            self.done.remove(event.said["of"])
            self.undone.append(event.said["of"])
        elif event.kind == "redo":
            self.undone.remove(event.said["of"])
            self.done.append(event.said["of"])
        elif event.kind in DECISIONS:
            self.done.append(event.id)
            self.undone.clear()
        elif event.kind == "outside":  # what the model was before cannot be had back from here
            self.overtaken |= {id for id in self.done if self[id].kind == "enroll"}
            for stack in (self.done, self.undone):
                stack[:] = [id for id in stack if self[id].kind != "enroll"]

    def _state(self) -> State:
        holds, state = self.overtaken | set(self.done), State()
        for event in self.events:
            if event.kind not in DECISIONS or event.id in holds:
                state.apply(event.kind, event.said)
        return state


def replay(events: Iterable[Event]) -> Log:
    log = Log()
    for event in events:
        log._note(event)
    log.state = log._state()
    return log


def _groups_made(event: Event) -> list[int]:
    made = [int(group) for group in event.said.get("placed", ())]
    return [*made, event.said["to"]] if "to" in event.said else made


def tidied(name: str) -> str:
    """A name in Unicode's composed form, whose white space is single blanks."""
    return unicodedata.normalize("NFC", " ".join(name.split()))


def checked_name(name: object) -> str:
    """A name as it is kept: one line of text, in Unicode's composed form.

    Raises:
        Refused: it is none.
    """
    if not isinstance(name, str):
        raise Refused(f"expected a name, got {type(name).__name__}")
    text = tidied(name)
    if not text or len(text) > LONGEST:
        raise Refused(f"expected a name of 1 to {LONGEST} characters, got {len(text)}")
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in text):
        raise Refused("expected a name of characters that can be shown, got a control character")
    return text
