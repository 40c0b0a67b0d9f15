"""The log of `oltr desk`: what was decided is its replay, and an undo takes back what it says."""

from __future__ import annotations

import copy
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.desk.state import DECISIONS, JUNK, SINGLE, Event, Log, Refused, checked_name, replay
from oltr_ext.desk.store import KnownFile, Store

IMAGES = [f"{n:02x}" * 16 for n in range(8)]


def step(log: Log, kind: str, said: dict[str, Any]) -> Event:
    event = Event(log.version + 1, "2026-01-01T00:00:00.000+00:00", kind, said)
    log.take(event)
    return event


def decided(log: Log, draw: Any, *, by_hand: bool = False) -> None:
    """One entry that is possible now; by hand: a decision."""
    groups = [*log.state.members]
    some = draw(st.lists(st.sampled_from(IMAGES), min_size=1, max_size=4, unique=True))
    name = draw(st.sampled_from(["cat", "<b>", "snail"]))
    place = st.sampled_from([SINGLE, JUNK, log.next_group, *groups])
    kinds = ["move", "named", "regroup", "enroll"]
    kinds += ["found", "undo", "redo", "outside"] * (not by_hand)
    kind = draw(st.sampled_from(kinds + ["name", "merge"] * bool(groups)))
    said: dict[str, Any] = {"images": some, "groups": []}
    if kind in ("undo", "redo"):
        stack = log.done if kind == "undo" else log.undone
        if not stack:
            return
        said = {"of": stack[-1]}
    elif kind in ("found", "regroup"):
        said["placed"] = {str(log.next_group): some[:2], str(SINGLE): some[2:]}
    elif kind == "enroll":
        said["classes"] = log.state.named()
    elif kind == "move":
        said["to"] = draw(place)
    elif kind == "named":
        kind, said = "move", {**said, "to": log.next_group, "name": name}
    elif kind == "merge":
        said["to"] = draw(st.sampled_from(groups))
    elif kind == "name":
        said = {
            **said,
            "to": draw(st.sampled_from(groups)),
            "name": draw(st.none() | st.just(name)),
        }
    step(log, kind, said)


def holds_together(log: Log) -> None:
    state = log.state
    inside = [image for members in state.members.values() for image in members]
    assert sorted(inside) == sorted(i for i, place in state.place.items() if place > 0)
    assert all(state.place[i] == g for g, m in state.members.items() for i in m)
    assert all(state.members.values()) and set(state.names) <= set(state.members)
    assert log.next_group > max(state.members, default=0)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_state_is_the_replay_of_the_log(data: st.DataObject) -> None:
    log = Log()
    for _ in range(data.draw(st.integers(0, 25))):
        decided(log, data.draw)
        holds_together(log)
    again = replay(log.events)
    for key in ("state", "done", "undone", "overtaken", "next_group", "version"):
        assert getattr(again, key) == getattr(log, key), key


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_undo_of_each_restores_and_redo_brings_back(data: st.DataObject) -> None:
    log = Log()
    step(log, "found", {"placed": {"1": IMAGES[:4], "0": IMAGES[4:]}, "images": [], "groups": []})
    before = []
    for _ in range(data.draw(st.integers(1, 12))):
        before.append(copy.deepcopy(log.state))
        decided(log, data.draw, by_hand=True)
    after = copy.deepcopy(log.state)
    for state in reversed(before):
        step(log, "undo", {"of": log.done[-1]})
        assert log.state == state
    assert log.done == []
    while log.undone:
        step(log, "redo", {"of": log.undone[-1]})
    assert log.state == after


def test_a_decision_after_an_undo_leaves_nothing_to_redo() -> None:
    log = Log()
    step(log, "move", {"images": IMAGES[:2], "groups": [1], "to": 1})
    step(log, "undo", {"of": 1})
    step(log, "move", {"images": IMAGES[2:3], "groups": [2], "to": log.next_group})
    assert log.undone == [] and log.state.place == {IMAGES[2]: 2}  # 1 was a group once


def test_what_happened_outside_ends_the_undo_of_an_enrolment() -> None:
    log = Log()
    step(log, "move", {"images": IMAGES[:2], "groups": [1], "to": 1, "name": "cat"})
    step(log, "enroll", {"images": IMAGES[:2], "groups": [1], "classes": log.state.named()})
    step(log, "outside", {"images": [], "groups": []})
    assert log.done == [1] and log.state.enrolled == dict.fromkeys(IMAGES[:2], "cat")
    step(log, "undo", {"of": 1})
    assert log.state.place == {} and log.overtaken == {2}


def test_decisions_about_the_same_are_a_conflict() -> None:
    log = Log()
    step(log, "move", {"images": IMAGES[:2], "groups": [1], "to": 1})
    seen = log.version
    step(log, "name", {"images": IMAGES[:2], "groups": [1], "to": 1, "name": "cat"})
    assert log.conflict(seen, IMAGES[2:], [2]) is None
    assert log.conflict(log.version, IMAGES[:1], [1]) is None
    for images, groups in ((IMAGES[:1], []), ([], [1])):
        found = log.conflict(seen, images, groups)
        assert found is not None and found.kind == "name"
    step(log, "undo", {"of": log.done[-1]})
    found = log.conflict(log.version - 1, IMAGES[:1], [])
    assert found is not None and found.kind == "undo"
    step(log, "found", {"placed": {"2": IMAGES[4:]}, "images": IMAGES[4:], "groups": [2]})
    assert log.conflict(log.version - 1, IMAGES[4:], [2]) is None


@pytest.mark.parametrize("name", ["", " \n ", "a\x00b", "x" * 201, "\ud800", None, 3])
def test_a_name_is_a_line_of_text(name: object) -> None:
    with pytest.raises(Refused, match="expected a name"):
        checked_name(name)


def test_a_name_is_kept_as_it_is_but_for_spaces_and_composition() -> None:
    assert checked_name(" <script>\talert(1) </script>\n") == "<script> alert(1) </script>"
    assert checked_name("Ze\u0301bre") == "Z\xe9bre"


def test_the_store_gives_back_what_it_was_given(tmp_path: Path) -> None:
    store = Store(tmp_path / "desk.sqlite")
    one = store.append("move", {"images": ["a"], "name": "\udcff <é>"}, after=0)
    two = store.append("enroll", {"images": []}, after=1, models={"d": b"\x00held"})
    with pytest.raises(sqlite3.IntegrityError):
        store.append("enroll", {}, after=1, models={"e": b"lost"})
    odd = os.fsdecode(b"photos/\xff.png")
    store.remember([(odd, KnownFile(3, 10**18, "ab"))])
    store.written = two.id
    store.close()
    store = Store(tmp_path / "desk.sqlite")
    assert store.events() == [one, two] and one.time.endswith("+00:00")
    assert store.files() == {odd: KnownFile(3, 10**18, "ab")}
    assert store.model("d") == b"\x00held" and store.written == 2
    with pytest.raises(KeyError):
        store.model("e")
    store.close()


def test_a_file_of_another_make_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("path,name\n" * 100)
    with pytest.raises(ValueError, match="cannot be read as decisions"):
        Store(tmp_path / "text")
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(ValueError, match="expected decisions of format 1, got 0"):
        Store(tmp_path / "other.sqlite")


def test_a_kill_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom oltr_ext.desk.store import Store\n"
        "store = Store(Path(sys.argv[1]))\nlast = len(store.events())\n"
        "while True:\n"
        "    said = {'images': ['ab' * 16] * 50, 'groups': [1], 'to': 1}\n"
        "    last = store.append('move', said, after=last).id\n"
        "    print(last, flush=True)\n"
    )
    file = tmp_path / "desk.sqlite"
    last = 0
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05)
        os.kill(writer.pid, signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split("\n") if line.strip()]
        writer.wait()
        store = Store(file)
        events = store.events()
        store.close()
        assert len(events) >= (told[-1] if told else last + 1)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        last = len(events)
    assert DECISIONS and replay(events).state.members == {1: {"ab" * 16: None}}
