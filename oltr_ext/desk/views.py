"""What the page shows, in pages: never a list of everything. All of it is JSON-able."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from oltr_ext._words import counted
from oltr_ext.desk.answers import Answers
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.state import JUNK, Event, Refused

__all__ = ["GROUPS", "IMAGES", "groups", "history", "images", "names", "status", "text"]

GROUPS, IMAGES, SHEET = 24, 120, 12
"""On a page; and images of a group on its card."""
LISTED = ("single", "known", "junk", "changed", "bad")
MATCHES = 12


def text(value: str) -> str:
    """What a name of bytes that are no UTF-8 can be shown as."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _Places:
    """Which images that are here are where."""

    def __init__(self, desk: Desk, answers: Answers) -> None:
        state = desk.log.state
        here = {g: [i for i in m if i in answers.row] for g, m in state.members.items()}
        self.here = {group: images for group, images in here.items() if images}
        order = sorted(self.here, key=lambda group: (-len(self.here[group]), group))
        self.open = [group for group in order if group not in state.names]
        self.named = [group for group in order if group in state.names]
        self.lists: dict[str, list[str]] = {"single": [], "known": [], "junk": []}
        for image, label in zip(answers.images, answers.label, strict=True):
            place = state.place.get(image)
            if place == JUNK:
                self.lists["junk"].append(image)
            elif place is None or place == 0:
                self.lists["single" if label is None else "known"].append(image)
        self.lists["known"].sort(key=lambda image: answers.confidence[answers.row[image]])


def _places(desk: Desk) -> _Places:
    """Found once for all that is asked between two changes."""
    found: _Places = desk.between("places", lambda: _Places(desk, desk.ready()))
    return found


def status(desk: Desk) -> dict[str, Any]:
    """Where all stands; cheap, for pages ask every second."""
    desk.notice()
    with desk.lock:
        found: dict[str, Any] = {
            "version": desk.log.version,
            "stamp": desk.stamp,
            "run": text(desk.trained.path.resolve().parent.name),
            "folder": text(str(desk.folder.root)),
            "trouble": text(desk.trouble),
            "progress": {**asdict(desk.progress), "words": text(desk.progress.words)},
        }
        if desk.progress.phase != "ready":
            return found
        return {**found, **desk.between("status", lambda: _counted(desk))}


def _counted(desk: Desk) -> dict[str, Any]:
    places, answers = _places(desk), desk.ready()
    return {
        "counts": {
            **{name: len(images) for name, images in places.lists.items()},
            "images": len(answers.images),
            "open": len(places.open),
            "named": len(places.named),
            "changed": sum(image in answers.row for image, *_ in _changes(desk)),
            "bad": len(desk.bad),
            "unknown": sum(label is None for label in answers.label),
            "classes": len(desk.trained.roster.living),
        },
        "undo": _word(desk, desk.log.done),
        "redo": _word(desk, desk.log.undone),
        "plan": [[text(name), count] for name, count in desk.plan().items()],
    }


def groups(desk: Desk, which: str, page: int) -> dict[str, Any]:
    """A page of groups that are ``open`` or ``named``, the largest first."""
    with desk.lock:
        places = _places(desk)
        if which not in ("open", "named"):
            raise Refused(f"expected open or named, got {which[:40]!r}")
        listed = places.open if which == "open" else places.named
        shown, pages = _page(listed, page, GROUPS)
        return {
            "version": desk.log.version,
            "page": page,
            "pages": pages,
            "total": len(listed),
            "groups": _cards(desk, shown),
        }


def images(desk: Desk, which: str, page: int) -> dict[str, Any]:
    """A page of a list of images, or of a group, which is named by its number."""
    with desk.lock:
        places, answers = _places(desk), desk.ready()
        found: dict[str, Any] = {"version": desk.log.version, "page": page}
        if which == "bad":
            shown, pages = _page(desk.bad, page, IMAGES)
            rows = [{"path": text(path), "why": text(why)} for path, why in shown]
            return {**found, "pages": pages, "total": len(desk.bad), "bad": rows}
        changes = {image: (old, new) for image, old, new in _changes(desk)}
        sure: Mapping[str, float] = {}
        if which.isascii() and which.isdigit():
            group = int(which)
            if group not in places.here:
                raise Refused(f"there is no group {group}")
            (card,) = _cards(desk, [group])
            listed = places.here[group]
            sure = dict(zip(listed, _measured(desk, [group])[group][0].tolist(), strict=True))
            listed = sorted(listed, key=lambda image: -sure[image])
            found["group"] = card
        elif which in LISTED:
            here = [image for image in changes if image in answers.row]
            listed = here if which == "changed" else places.lists[which]
        else:
            raise Refused(f"expected a group or one of {', '.join(LISTED)}, got {which[:40]!r}")
        shown, pages = _page(listed, page, IMAGES)
        given = answers.enrolled()
        rows = [_image(desk, answers, image, given, sure, changes) for image in shown]
        return {**found, "pages": pages, "total": len(listed), "images": rows}


def names(desk: Desk, asked: str) -> list[dict[str, str]]:
    """Names of classes and of groups that hold some text, those that begin with it first."""
    with desk.lock:
        roster, wanted = desk.trained.roster, asked.casefold()
        known = {roster[id].name: roster[id].origin for id in roster.living}
        known |= {n: "named" for n in desk.log.state.names.values() if n not in known}
        found = [name for name in known if wanted in name.casefold()]
        found.sort(key=lambda n: (not n.casefold().startswith(wanted), len(n), n))
        return [{"name": text(name), "origin": known[name]} for name in found[:MATCHES]]


def history(desk: Desk, page: int) -> dict[str, Any]:
    """The log in words, the latest first."""
    with desk.lock:
        shown, pages = _page(desk.log.events[::-1], page, IMAGES)
        holds = {*desk.log.done, *desk.log.overtaken}
        rows = [
            {
                "id": event.id,
                "time": event.time,
                "words": _words(desk, event),
                "undone": event.kind not in ("found", "outside", "undo", "redo")
                and event.id not in holds,
            }
            for event in shown
        ]
        return {"page": page, "pages": pages, "total": desk.log.version, "events": rows}


def _page(listed: Sequence[Any], page: int, size: int) -> tuple[Sequence[Any], int]:
    """Part of a list, and of how many it is one."""
    return listed[page * size : (page + 1) * size], max(1, -(-len(listed) // size))


def _measured(desk: Desk, asked: Sequence[int]) -> dict[int, Any]:
    return desk.ready().measured(_places(desk).here, asked, desk.nearest)


def _cards(desk: Desk, shown: Sequence[int]) -> list[dict[str, Any]]:
    answers, here, names = desk.ready(), _places(desk).here, desk.log.state.names
    measured, given, trained = _measured(desk, shown), answers.enrolled(), answers.trained_names
    cards = []
    for group in shown:
        inside, name = here[group], names.get(group)
        sure, near = measured[group]
        order = np.argsort(-sure, kind="stable")[:SHEET]
        taken = Counter(answers.label[answers.row[image]] for image in inside)
        cards.append(
            {
                "id": group,
                "size": len(inside),
                "name": None if name is None else text(name),
                "trained": name in trained,
                "enrolled": sum(name in given.get(image, ()) for image in inside) if name else 0,
                "sure": round(float(sure.mean()), 4),
                "nearest": [[text(n), round(d, 4)] for n, d in near],
                "answers": [[text(label), count] for label, count in taken.most_common(4) if label],
                "images": [inside[n] for n in order],
            }
        )
    return cards


def _image(
    desk: Desk,
    answers: Answers,
    image: str,
    given: Mapping[str, Sequence[str]],
    sure: Mapping[str, float],
    changes: Mapping[str, tuple[str | None, str | None]],
) -> dict[str, Any]:
    row, paths, state = answers.row[image], desk.contents.paths[image], desk.log.state
    place = state.place.get(image)
    found: dict[str, Any] = {
        "id": image,
        "path": text(paths[0]),
        "copies": len(paths) - 1,
        "answer": _text(answers.label[row]),
        "confidence": round(float(answers.confidence[row]), 4),
        "name": _text(state.names.get(place)) if place else None,
        "enrolled": _text(_own(given.get(image, ()), state.names.get(place) if place else None)),
    }
    if image in sure:
        found["sure"] = round(sure[image], 4)
    if image in changes:
        found["was"] = _text(changes[image][0])
        found["changed"] = True
    return found


def _own(given: Sequence[str], name: str | None) -> str | None:
    """What an image is enrolled as: of several, as its copies have, the name that it has here."""
    return name if name in given else next(iter(given), None)


def _changes(desk: Desk) -> list[tuple[str, str | None, str | None]]:
    """How answers changed with the last change of the model that says so."""
    for event in reversed(desk.log.events):
        if "changes" in event.said:
            return [(image, old, new) for image, old, new in event.said["changes"]]
    return []


def _text(value: str | None) -> str | None:
    return None if value is None else text(value)


def _word(desk: Desk, stack: Sequence[int]) -> str | None:
    return _words(desk, desk.log[stack[-1]]) if stack else None


def _words(desk: Desk, event: Event) -> str:
    said, count = event.said, len(event.said.get("images", ()))
    images = counted(count, "image")
    name = f" “{text(said['name'])}”" if said.get("name") else ""
    if event.kind in ("undo", "redo"):
        of = desk.log[said["of"]]
        return f"{event.kind}: {_words(desk, of)}"
    if event.kind == "found":
        new = sum(len(part) for part in said["placed"].values())
        return f"{counted(new, 'unknown image')} found"
    if event.kind == "outside":
        return "classes were changed elsewhere"
    if event.kind == "move":
        where = {0: "to the singles", JUNK: "set aside"}.get(said["to"], f"to group {said['to']}")
        return f"{images} {where}{name}"
    if event.kind == "name":
        return f"group {said['to']} ({images}):{name or ' no name'}"
    if event.kind == "merge":
        return f"groups merged into {said['to']} ({images}){name}"
    if event.kind == "regroup":
        return f"{images} grouped again"
    return f"{counted(len(said['classes']), 'class')} enrolled of {images}"
