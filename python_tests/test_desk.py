"""`oltr desk` without its page: what is decided, what the model becomes, and what comes between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from desk_cases import decide, first, members, opened

from oltr_ext.cli import main
from oltr_ext.data.lists import read_list, read_names
from oltr_ext.desk import views
from oltr_ext.desk.answers import held
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.export import lists
from oltr_ext.desk.folder import Folder
from oltr_ext.desk.meaning import Conflict
from oltr_ext.desk.state import JUNK, Refused
from oltr_ext.engine import checkpoint
from oltr_ext.engine.enrolment import Enrolment
from oltr_ext.serve import enroll as enrolling
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_trained

pytest_plugins = ("desk_fixtures",)


def test_the_start_is_what_discover_finds(desk: Desk, run: Path, folder: Path) -> None:
    from oltr_ext.serve.discover import discover

    found = discover(load_trained(run, device="cpu"), [folder])
    answers = desk.ready()
    paths = {image: str(folder / desk.contents.paths[image][0]) for image in answers.images}
    unknown = [i for i, label in zip(answers.images, answers.label, strict=True) if label is None]
    assert sorted(paths[image] for image in unknown) == sorted(found.path)
    ours = {frozenset(paths[i] for i in m): g for g, m in desk.log.state.members.items()}
    theirs = {frozenset(found.path[group.members]): group for group in found.groups}
    assert ours.keys() == theirs.keys() and len(ours) >= 1
    for card in views.groups(desk, "open", 0)["groups"]:
        group = theirs[frozenset(paths[image] for image in members(desk, card["id"]))]
        assert card["sure"] == pytest.approx(group.sure, abs=1e-4)
        assert [name for name, _ in card["nearest"]] == [name for name, _ in group.nearest]
    (bad,) = views.images(desk, "bad", 0)["bad"]
    assert bad["path"] == "broken.png" and "broken.png" in bad["why"]
    assert str(folder) not in bad["why"]


def test_enrolling_changes_the_answers_and_undo_brings_the_model_back(
    desk: Desk, run: Path, folder: Path
) -> None:
    before, answers = held(desk.trained.enrolment)[0], desk.ready()
    old = [*answers.label], answers.confidence.copy()
    group = first(desk)
    strangers = members(desk, group)
    decide(desk, "name", groups=[group], name="snail")
    assert desk.plan() == {"snail": len(strangers)}
    desk.enroll(desk.log.version)
    again = load_trained(run, device="cpu")
    assert "snail" in again.names and held(again.enrolment) == held(desk.trained.enrolment)
    files = [folder / desk.contents.paths[image][0] for image in answers.images]
    assert [p.label for p in predict_images(again, files)] == answers.label
    changed = views.images(desk, "changed", 0)["images"]
    assert len(changed) >= len(strangers) / 2 and desk.plan() == {}
    assert all(row["was"] != row["answer"] for row in changed)
    assert {row["answer"] for row in changed} == {"snail"}
    card = views.groups(desk, "named", 0)["groups"][0]
    assert (card["name"], card["enrolled"], card["trained"]) == ("snail", len(strangers), False)

    desk.undo(desk.log.version)
    assert held(load_trained(run, device="cpu").enrolment)[0] == before
    assert answers.label == old[0] and (answers.confidence == old[1]).all()
    desk.redo(desk.log.version)
    assert "snail" in load_trained(run, device="cpu").names and "snail" in answers.label
    desk.undo(desk.log.version)
    desk.undo(desk.log.version)
    assert desk.log.state.names == {} and len(desk.log.state.members[group]) == len(strangers)


def test_a_group_that_changes_after_it_was_enrolled(desk: Desk, run: Path) -> None:
    group = first(desk)
    inside = members(desk, group)
    decide(desk, "name", groups=[group], name="snail")
    desk.enroll(desk.log.version)
    decide(desk, "name", images=inside[:2], name="crab")
    assert desk.plan() == {"crab": 2, "snail": len(inside) - 2}
    desk.enroll(desk.log.version)
    again = load_trained(run, device="cpu")
    counts = {e.name: e.images for e in again.roster if e.alive and e.origin == "enrolled"}
    assert counts == {"snail": len(inside) - 2, "crab": 2}
    assert main(["classes", str(run), "--undo"]) == 0  # the whole enrolment is one change
    again = load_trained(run, device="cpu")
    counts = {e.name: e.images for e in again.roster if e.alive and e.origin == "enrolled"}
    assert counts == {"snail": len(inside)}
    assert main(["classes", str(run), "--undo"]) == 0
    desk.notice()
    decide(desk, "name", groups=[group], name=None)
    assert desk.plan() == {"snail": -1}
    desk.enroll(desk.log.version)
    assert "snail" not in load_trained(run, device="cpu").roster


def test_what_others_enrolled_stays(desk: Desk, run: Path, folder: Path) -> None:
    group = first(desk)
    inside = members(desk, group)
    files = [str(folder / desk.contents.paths[image][0]) for image in inside[:3]]
    assert main(["enroll", str(run), "--name", "whelk", *files]) == 0
    views.status(desk)  # as a page asks every second
    assert desk.log.events[-1].kind == "outside"
    rows = views.images(desk, str(group), 0)["images"]
    assert {row["id"] for row in rows if row["enrolled"] == "whelk"} == set(inside[:3])
    decide(desk, "name", groups=[group], name="snail")
    decide(desk, "move", images=inside[:3], to="single")
    desk.enroll(desk.log.version)
    roster = load_trained(run, device="cpu").roster
    assert roster[roster.id_of("whelk")].images == 3
    assert roster[roster.id_of("snail")].images == len(inside) - 3


def test_a_class_that_loses_an_image_keeps_its_number(desk: Desk, run: Path, folder: Path) -> None:
    inside = members(desk, first(desk))
    files = [str(folder / desk.contents.paths[image][0]) for image in inside[:3]]
    assert main(["enroll", str(run), "--name", "whelk", *files]) == 0
    views.status(desk)
    decide(desk, "name", images=inside[2:6], name="snail")
    desk.enroll(desk.log.version)
    roster = load_trained(run, device="cpu").roster
    assert [roster[4].name, roster[5].name] == ["whelk", "snail"]
    assert (roster[4].images, roster[5].images) == (2, 4)


def test_classes_that_are_undone_elsewhere(desk: Desk, run: Path) -> None:
    group = first(desk)
    decide(desk, "name", groups=[group], name="snail")
    desk.enroll(desk.log.version)
    assert main(["classes", str(run), "--undo"]) == 0
    found = views.status(desk)
    assert desk.log.events[-1].kind == "outside" and "snail" not in desk.ready().label
    assert found["plan"] == [["snail", len(members(desk, group))]]
    assert "snail" in found["undo"] and "enrolled" not in found["undo"]  # of the name, not of that
    desk.enroll(desk.log.version)
    assert main(["classes", str(run), "--rename", "snail", "slug"]) == 0
    views.status(desk)
    assert "slug" in desk.ready().label
    assert {row["enrolled"] for row in views.images(desk, str(group), 0)["images"]} == {"slug"}
    with pytest.raises(Conflict):
        desk.undo(desk.log.version - 1)


def test_a_kill_before_the_model_was_written(run: Path, folder: Path) -> None:
    desk = opened(run, folder)
    decide(desk, "name", groups=[first(desk)], name="snail")
    before = (run / "model.safetensors").read_bytes()
    desk.enroll(desk.log.version)
    after = held(desk.trained.enrolment)
    desk.store.written = desk.log.version - 1
    desk.close()
    (run / "model.safetensors").write_bytes(before)  # what a kill there leaves
    desk = opened(run, folder)
    assert held(desk.trained.enrolment)[0] == after[0] == held(load_trained(run).enrolment)[0]
    assert desk.log.events[-1].kind == "enroll" and "snail" in desk.ready().label
    desk.undo(desk.log.version)
    assert "snail" not in load_trained(run, device="cpu").names
    desk.close()


def test_a_model_that_cannot_be_written(
    desk: Desk, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = first(desk)
    decide(desk, "name", groups=[group], name="snail")
    before = (run / "model.safetensors").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(Refused, match=r"stays as it was.*No space left"):
            desk.enroll(desk.log.version)
    assert (run / "model.safetensors").read_bytes() == before
    assert "snail" not in desk.trained.names and "snail" not in desk.ready().label
    assert [event.kind for event in desk.log.events[-2:]] == ["enroll", "undo"]
    desk.enroll(desk.log.version)
    assert "snail" in load_trained(run, device="cpu").names
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full)
        with pytest.raises(Refused, match="No space left"):
            desk.undo(desk.log.version)
    assert "snail" in desk.trained.names and "snail" in desk.ready().label
    desk.undo(desk.log.version)
    assert "snail" not in load_trained(run, device="cpu").names


def test_a_head_that_cannot_take_classes_in(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    decide(desk, "name", groups=[first(desk)], name="snail")

    def refuse(*_: Any) -> None:
        raise ValueError("OpenMaxHead takes no classes in")

    monkeypatch.setattr(desk.trained.model.head, "enroll", refuse)
    version = desk.log.version
    with pytest.raises(Refused, match="OpenMaxHead takes no classes in"):
        desk.enroll(version)
    assert desk.log.version == version and desk.plan() != {}


def test_trained_anew_while_the_desk_is_open(
    desk: Desk, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, header = checkpoint.load(run / "model.safetensors")
    state = {**header["state"], "total": header["state"]["total"] + 1}
    checkpoint.save(run / "model.safetensors", tensors, {**header, "state": state})
    assert "trained anew" in views.status(desk)["trouble"]
    decide(desk, "name", groups=[first(desk)], name="snail")  # decisions go on
    with pytest.raises(Refused, match="trained anew"):
        desk.enroll(desk.log.version)


def test_a_trained_name_is_for_training(desk: Desk, tmp_path: Path) -> None:
    group, known = first(desk), desk.trained.class_names
    inside = members(desk, group)
    decide(desk, "name", groups=[group], name=known[2])
    decide(desk, "name", images=inside[:1], name="<new> one")
    decide(desk, "move", images=inside[1:3], to="junk")
    assert desk.plan() == {"<new> one": 1}
    for name, part in lists(desk).items():
        (tmp_path / name).write_bytes(part)
    label = {line.path: line.label for line in read_list(tmp_path / "train.txt")}
    path = {image: desk.contents.paths[image][0] for image in inside}
    assert label == {path[inside[0]]: len(known), **{path[i]: 2 for i in inside[3:]}}
    assert read_names(tmp_path / "names.txt") == [*known, "<new> one"]
    aside = {line.path: line.label for line in read_list(tmp_path / "junk.txt")}
    assert aside == {path[image]: -1 for image in inside[1:3]}


def test_merge_split_and_group_again(desk: Desk) -> None:
    group = first(desk)
    inside = members(desk, group)
    decide(desk, "split", groups=[group])
    (other,) = set(desk.log.state.members) - {group} - {int(g) for g in _groups_found(desk)}
    part = members(desk, other)
    assert 0 < len(part) <= len(inside) / 2 and set(part) < set(inside)
    decide(desk, "name", groups=[other], name="crab")
    decide(desk, "merge", groups=[group, other])
    assert set(members(desk, group)) == set(inside) and desk.log.state.names == {group: "crab"}
    desk.undo(desk.log.version)
    assert desk.log.state.names == {other: "crab"}
    decide(desk, "move", images=sorted(set(inside) - set(part))[:2], to="new")
    decide(desk, "regroup")
    assert members(desk, other) == part  # what has a name is left alone
    decide(desk, "move", groups=[other], to="junk")
    assert all(desk.log.state.place[image] == JUNK for image in part)
    assert other not in desk.log.state.names


def _groups_found(desk: Desk) -> set[str]:
    return {g for e in desk.log.events if e.kind == "found" for g in e.said["placed"]}


def test_two_decisions_about_the_same(desk: Desk) -> None:
    group, version = first(desk), desk.log.version
    inside = members(desk, group)
    desk.decide({"version": version, "do": "name", "groups": [group], "name": "snail"})
    with pytest.raises(Conflict, match="look again"):
        desk.decide({"version": version, "do": "name", "groups": [group], "name": "crab"})
    with pytest.raises(Conflict):
        desk.decide({"version": version, "do": "move", "images": inside[:1], "to": "junk"})
    with pytest.raises(Conflict):
        desk.enroll(version)
    known = views.images(desk, "known", 0)["images"][0]["id"]
    desk.decide({"version": version, "do": "name", "images": [known], "name": "crab"})
    assert sorted(desk.log.state.named()) == ["crab", "snail"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"do": "name", "groups": [99], "name": "x"}, "no group 99"),
        ({"do": "name", "images": ["../../etc/passwd"], "name": "x"}, "no image"),
        ({"do": "name", "groups": [1], "name": "a\x00"}, "control character"),
        ({"do": "name", "groups": [True], "name": "x"}, "groups: expected a list of int"),
        ({"do": "name"}, "choose images or groups"),
        ({"do": "merge", "groups": [1]}, "two groups or more"),
        ({"do": "move", "groups": [1], "to": "/etc"}, "no place '/etc'"),
        ({"do": "move", "groups": [1], "to": 99}, "no place '99'"),
        ({"do": "drop tables", "groups": [1]}, "expected a decision"),
        ({"do": "name", "groups": [1], "version": 99}, "version: expected 0 to"),
        ({"do": "name", "groups": [1], "version": True}, "version: expected 0 to"),
    ],
)
def test_what_cannot_be_is_refused(desk: Desk, asked: dict[str, Any], words: str) -> None:
    version = desk.log.version
    with pytest.raises(Refused, match=words):
        desk.decide({"version": version, **asked})
    assert desk.log.version == version


def test_what_others_enroll_while_it_prepares_is_taken_up(
    run: Path, data: Path, folder: Path
) -> None:
    desk = opened(run, folder)
    decide(desk, "name", groups=[first(desk)], name="snail")
    desk.enroll(desk.log.version)
    desk.close()
    again = Desk(load_trained(run, device="cpu"), Folder(folder), run / "desk")
    other = load_trained(run, device="cpu")  # another process, before all images are embedded
    with enrolling.editing(other):
        rows = [(["a"], load_features(other, sorted(data.glob("open_test_*.png"))[:1]))]
        enrolling.enroll(other, rows, ["zebra"])
    again.prepare()
    again.notice()
    assert "zebra" in again.trained.roster and again.log.events[-1].kind == "outside"
    again.close()


def test_several_changes_are_one_or_none(run: Path, data: Path) -> None:
    trained = load_trained(run, device="cpu")
    rows = [(["a", "b"], load_features(trained, sorted(data.glob("open_test_*.png"))[:2]))]
    enrolling.enroll(trained, rows, ["crab", "snail"])
    one = trained.enrolment
    with pytest.raises(ValueError, match="no class 'whelk'"), enrolling.as_one(trained):
        enrolling.remove(trained, ["crab"])
        enrolling.remove(trained, ["whelk"])
    assert same_classes(trained.enrolment, one) and "crab" in trained.roster
    with enrolling.as_one(trained):
        enrolling.remove(trained, ["crab"])
        enrolling.rename(trained, "snail", "slug")
    two = trained.enrolment
    assert two.joined == ["slug"]
    enrolling.undo(trained)
    assert same_classes(trained.enrolment, one) and not same_classes(trained.enrolment, two)
    enrolling.undo(trained)
    assert same_classes(trained.enrolment, two)
    enrolling.restore(trained, one)
    assert same_classes(trained.enrolment, one) and sorted(trained.enrolment.joined) == [
        "crab",
        "snail",
    ]
    enrolling.undo(trained)
    assert same_classes(trained.enrolment, two)


def same_classes(mine: Enrolment, other: Enrolment) -> bool:
    """Of the same features, whatever came before."""
    rows, others = (
        [held[each.owner >= 0] for held in (each.owner, each.features)] for each in (mine, other)
    )
    return mine.roster == other.roster and all(map(torch.equal, rows, others))


def load_features(trained: Any, files: list[Path]) -> Any:
    from oltr_ext.serve.predict import image_features

    ((_, features),) = image_features(trained, files)
    return features
