"""What a request of the page means, as an entry of the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oltr_ext.desk.answers import Answers
from oltr_ext.desk.state import JUNK, SINGLE, Log, Refused, checked_name, tidied

__all__ = ["Conflict", "meaning", "placed", "version_of"]


class Conflict(Refused):
    """Another decision, taken since the page was read, is about the same."""


def meaning(asked: Mapping[str, Any], log: Log, answers: Answers) -> tuple[str, dict[str, Any]]:
    """Kind and contents of an entry.

    Args:
        asked: ``version`` of what was seen; and ``do``: ``name`` (``name`` or None; ``groups``,
            which become one, or ``images``, which become a group), ``merge`` (``groups``, into the
            first), ``move`` (``images`` or ``groups``; ``to``: ``single``, ``junk``, ``new`` or a
            group), ``split`` (the one of ``groups``, in two) or ``regroup`` (all that nobody
            named).

    Raises:
        Conflict: an entry since `version` is about the same images or groups. Refused: it cannot
            be.
    """
    seen = version_of(asked.get("version"), log)
    images, groups = _listed(asked, "images", str), _listed(asked, "groups", int)
    _check(log, seen, images, groups)
    for group in groups:
        if group not in log.state.members:
            raise Refused(f"there is no group {group}")
    for image in images:
        if image not in answers.row:
            raise Refused(f"there is no image {image[:32]}")
    kind, said = _said(asked, images, groups, log, answers)
    touched = {*groups, *(log.state.place.get(image, 0) for image in said["images"])}
    if said.get("to") in log.state.members:
        touched.add(said["to"])
    said["groups"] = sorted(group for group in touched if group > 0)
    _check(log, seen, said["images"], said["groups"])
    return kind, said


def version_of(seen: object, log: Log) -> int:
    """Raises Refused where a log has no such version."""
    if type(seen) is not int or not 0 <= seen <= log.version:
        raise Refused(f"version: expected 0 to {log.version}, got {str(seen)[:40]!r}")
    return seen


def placed(groups: Mapping[int, Sequence[str]], log: Log) -> dict[str, list[str]]:
    """Groups from 1 on under numbers that are free; 0: singles."""
    first = log.next_group - 1
    return {str(g + first if g else SINGLE): [*images] for g, images in sorted(groups.items())}


def _said(
    asked: Mapping[str, Any], images: list[str], groups: list[int], log: Log, answers: Answers
) -> tuple[str, dict[str, Any]]:
    state, do = log.state, asked.get("do")
    inside = [image for group in groups for image in state.members[group]]
    if do == "regroup":
        loose = [i for i in answers.images if state.place.get(i, JUNK) >= 0]
        loose = [i for i in loose if state.place[i] not in state.names]
        if not loose:
            raise Refused("there is nothing to group")
        return "regroup", {"images": loose, "placed": placed(answers.group(loose), log)}
    if not images and not groups:
        raise Refused("choose images or groups first")
    if do == "name":
        name = None if asked.get("name") is None else _name(asked["name"], answers)
        if images:
            return "move", {"images": images, "to": log.next_group, "name": name}
        kind = "name" if len(groups) == 1 else "merge"
        return kind, {"images": inside, "to": groups[0], "name": name}
    if do == "merge":
        if len(groups) < 2:
            raise Refused("choose two groups or more to merge")
        names = [state.names[group] for group in groups if group in state.names]
        said = {"images": inside, "to": groups[0]}
        return "merge", {**said, "name": names[0]} if names else said
    if do == "move":
        return "move", {"images": images or inside, "to": _place(asked.get("to"), log)}
    if do == "split" and len(groups) == 1:
        part = answers.in_two([image for image in inside if image in answers.row])
        if not part:
            raise Refused("the network sees its images all alike")
        return "move", {"images": part, "to": log.next_group}
    raise Refused(f"expected a decision, got {str(do)[:40]!r}")


def _name(asked: object, answers: Answers) -> str:
    """A name to give; that of a class which differs in blanks or composition alone is meant."""
    name, roster = checked_name(asked), answers.trained.roster
    if name in roster:
        return name
    living = (roster[id].name for id in roster.living)
    return next((each for each in living if tidied(each) == name), name)


def _place(to: object, log: Log) -> int:
    if to == "new":
        return log.next_group
    if isinstance(to, str) and to in ("single", "junk"):
        return SINGLE if to == "single" else JUNK
    if type(to) is int and to in log.state.members:
        return to
    raise Refused(f"there is no place {str(to)[:40]!r}")


def _listed(asked: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    given = asked.get(key, [])
    if not isinstance(given, list) or not all(type(each) is kind for each in given):
        raise Refused(f"{key}: expected a list of {kind.__name__}")
    return list(dict.fromkeys(given))


def _check(log: Log, seen: int, images: Sequence[str], groups: Sequence[int]) -> None:
    found = log.conflict(seen, images, groups)
    if found is not None:
        raise Conflict(f"meanwhile the same was decided about ({found.kind}): look again")
