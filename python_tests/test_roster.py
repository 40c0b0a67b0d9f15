"""Classes by id: ids that never shift, unique names, and what is undone without a trace."""

from __future__ import annotations

import copy
import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oltr_ext.nn.roster import ClassEntry, Roster

NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def roster() -> Roster:
    return Roster.trained(NAMES, [5, 3, 1])


def test_trained_classes_have_the_first_ids(roster: Roster) -> None:
    assert [*roster][1] == ClassEntry("bee", "trained", 3, None, True)
    assert (len(roster), roster.num_trained, roster.names) == (3, 3, NAMES)
    assert Roster.trained(NAMES)[0].images is None
    assert Roster.trained(NAMES, removed=[1]).living == [0, 2]


def test_enrolled_classes_get_the_next_ids_a_count_and_a_date(roster: Roster) -> None:
    assert roster.add(["dog", "emu"], [2, 7]) == [3, 4]
    entry = roster[roster.id_of("dog")]
    assert (entry.origin, entry.images, entry.alive) == ("enrolled", 2, True)
    assert datetime.fromisoformat(entry.when or "").utcoffset().total_seconds() == 0
    assert roster.num_trained == 3


def test_more_images_of_an_enrolled_class_are_counted(roster: Roster) -> None:
    roster.add(["dog"], [2], "2026-01-01T00:00:00+00:00")
    assert roster.add(["emu", "dog"], [1, 3], "2026-02-01T00:00:00+00:00") == [4, 3]
    assert (roster[3].images, roster[3].when) == (5, "2026-02-01T00:00:00+00:00")


def test_what_is_removed_from_the_end_is_forgotten_and_from_the_middle_a_hole(
    roster: Roster,
) -> None:
    before = copy.deepcopy(roster)
    roster.add(["dog", "emu", "fox"], [1, 1, 1])
    roster.remove([3])
    assert len(roster) == 6
    assert (roster.living, roster.removed) == ([0, 1, 2, 4, 5], [3])
    assert roster.add(["dog"], [1]) == [6]  # 3 stays empty while 4 exists
    roster.remove([6, 5])
    assert len(roster) == 5
    roster.remove([4])  # and with it the hole at 3
    assert roster == before


def test_a_trained_class_never_gives_its_id_away(roster: Roster) -> None:
    roster.remove([2])
    assert len(roster) == 3
    assert roster.add(["cat"], [4]) == [3]
    assert roster.id_of("cat") == 3


def test_renamed(roster: Roster) -> None:
    roster.rename(0, "wasp")
    roster.rename(0, "wasp")
    assert roster.id_of("wasp") == 0
    assert "ant" not in roster
    roster.rename(1, "ant")
    assert roster.names == ["wasp", "ant", "cat"]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: r.add(["bee"], [1]), "'bee' is a trained class"),
        (lambda r: r.add(["dog", "dog"], [1, 1]), "'dog' again"),
        (lambda r: r.add(["dog"], [0]), "an image of 'dog'"),
        (lambda r: r.add(["dog"], [1, 2]), "each of 1 names, got 2"),
        (lambda r: r.add(["dog", " "], [1, 1]), "expected a name, got ' '"),
        (lambda r: r.add([7], [1]), "expected a name, got 7"),
        (lambda r: r.remove([3]), r"an id in \[0, 3\), got 3"),
        (lambda r: r.remove([-1]), "got -1"),
        (lambda r: r.remove([1, 1]), "each id once"),
        (lambda r: r.remove([0, 1, 2]), "expected a class to stay"),
        (lambda r: r.rename(0, "bee"), "'bee', which class 1 has"),
        (lambda r: r.rename(0, ""), "expected a name"),
        (lambda r: r.rename(True, "dog"), "got True"),
        (lambda r: r.id_of("dog"), "one of 3 classes, got 'dog'"),
        (lambda r: Roster.trained(["a", "a"]), "differ, got 'a'"),
        (lambda r: Roster.trained(["a"], [1, 2]), "images of 1 classes, got 2"),
        (lambda r: Roster.from_json({"version": 2}), "version 1, got 2"),
        (lambda r: Roster.from_json({**r.to_json(), "images": [1]}), "columns"),
        (lambda r: Roster.from_json({**r.to_json(), "removed": [9]}), r"removed \[9\]"),
        (
            lambda r: Roster([ClassEntry("a", "enrolled", 1), ClassEntry("b", "trained", 1)]),
            "trained classes first",
        ),
        (lambda r: Roster([ClassEntry("a", "found", 1)]), "got 'found'"),
    ],
)
def test_errors_say_what_came_and_change_nothing(roster: Roster, call, says: str) -> None:
    before = copy.deepcopy(roster)
    with pytest.raises(ValueError, match=says):
        call(roster)
    assert roster == before


def test_removed_twice(roster: Roster) -> None:
    roster.remove([1])
    with pytest.raises(ValueError, match="'bee', is removed already"):
        roster.remove([1])
    with pytest.raises(ValueError, match="removed already"):
        roster.rename(1, "wasp")
    roster.rename(0, "bee")  # the name is free


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.sampled_from("defgh"), min_size=1, unique=True)),
        st.tuples(st.just("remove"), st.integers(0, 8)),
        st.tuples(st.just("rename"), st.integers(0, 8), st.sampled_from("xyz")),
    ),
    max_size=12,
)


@given(steps)
def test_ids_never_shift_and_json_keeps_everything(steps: list) -> None:
    roster, seen = Roster.trained(NAMES), {id: name for id, name in enumerate(NAMES)}
    for what, *given_ in steps:
        try:
            if what == "add":
                roster.add(given_[0], [1] * len(given_[0]))
            elif what == "remove":
                roster.remove(given_)
            else:
                roster.rename(*given_)
                seen[given_[0]] = given_[1]
        except ValueError:
            continue
        seen = {id: name for id, name in seen.items() if id < len(roster)}
        for id, entry in enumerate(roster):
            assert seen.setdefault(id, entry.name) == entry.name
        living = [roster[id].name for id in roster.living]
        assert [roster.id_of(name) for name in living] == roster.living
        assert roster[len(roster) - 1].alive or len(roster) == 3
    assert Roster.from_json(json.loads(json.dumps(roster.to_json()))) == roster


@pytest.mark.parametrize("name", ["barn\nowl", "a\tb", "a\u2028b", "a\x00b", "\ud800"])
def test_a_new_name_is_a_line_of_text(roster: Roster, name: str) -> None:
    for change in (lambda: roster.add([name], [1]), lambda: roster.rename(0, name)):
        with pytest.raises(ValueError, match="expected a name on one line"):
            change()
    assert roster == Roster.trained(NAMES, [5, 3, 1])
    older = Roster.trained([name, "bee"])  # what a model has is read, and goes on
    older.rename(0, name)
    assert Roster.from_json(older.to_json()) == older
