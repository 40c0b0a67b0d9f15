"""Classes that join a trained model, get other names or leave, in Python."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import KNOWN, STRANGERS, rows, train_on_rows

import oltr_ext
from oltr_ext.engine import checkpoint
from oltr_ext.serve.enroll import ChangedError
from oltr_ext.serve.model import Model
from oltr_ext.serve.unlike import unlike

MODEL = "model.safetensors"
ASKED = np.concatenate([rows(name, 6, seed=9) for name in KNOWN + STRANGERS])
NAMES = np.repeat(KNOWN + STRANGERS, 6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_rows(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def model(run: Path) -> Model:
    return oltr_ext.load(run, device="cpu")


def answers(model: Model) -> tuple[Any, ...]:
    """All that it says, to the bit."""
    found = model.predict(ASKED)
    return found.label.tolist(), found.confidence.tolist(), found.closed.tolist(), found.nearest


def test_a_stranger_becomes_a_class_without_training(model: Model, run: Path) -> None:
    before = model.predict(ASKED)
    assert (before.closed == NAMES).sum() >= 46
    assert {c.origin for c in model.classes} == {"trained"}
    assert [(c.id, c.name, c.images) for c in model.classes] == [
        (n, name, 40) for n, name in enumerate(KNOWN)
    ]
    found = model.enroll(rows("d", 5), "d")
    assert (found.name, found.id, found.images, found.recognised) == ("d", 8, 5, 5)
    assert found.nearest in KNOWN and found.looks_like is None
    after = model.predict(ASKED)
    assert (after.closed[NAMES == "d"] == "d").sum() >= 5
    assert (after.closed == before.closed)[np.isin(NAMES, KNOWN)].sum() >= 46
    assert model.class_names == [*KNOWN, "d"]
    joined = model.classes[-1]
    assert (joined.origin, joined.images) == ("enrolled", 5) and joined.when is not None
    # in memory alone, until it is saved
    assert oltr_ext.load(run, device="cpu").class_names == KNOWN
    assert model.save() == run.resolve() / MODEL
    again = oltr_ext.load(run, device="cpu")
    assert again.classes == model.classes and answers(again) == answers(model)


def test_an_answer_is_of_one_state_of_the_classes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, more = model.trained.model.head, torch.from_numpy(rows("d", 3))
    before = model.predict(ASKED, nearest=9)
    joins = threading.Thread(target=lambda: head.enroll(more, ["d"] * 3))
    outputs = head.outputs

    def then_another_joins(x: torch.Tensor) -> Any:
        found = outputs(x)
        if joins.ident is None:
            joins.start()
            joins.join(0.2)  # it waits for the answer
        return found

    monkeypatch.setattr(head, "outputs", then_another_joins)
    meanwhile = model.predict(ASKED, nearest=9)
    joins.join(30)
    assert meanwhile.nearest == before.nearest and len(before.nearest[0]) == 8
    assert len(model.predict(ASKED, nearest=9).nearest[0]) == 9


def test_one_by_one_is_all_at_once_and_is_what_is_read_again(model: Model, run: Path) -> None:
    model.enroll(rows("d", 2), "d")
    model.save()
    model.enroll(rows("e", 3), "e")
    model.enroll(rows("d", 4)[2:], "d", more=True)
    model.save()
    once = oltr_ext.load(run, device="cpu")
    assert [(c.name, c.images) for c in once.classes[8:]] == [("d", 4), ("e", 3)]
    now, then = model.predict(ASKED), once.predict(ASKED)
    assert now.closed.tolist() == then.closed.tolist()
    np.testing.assert_allclose(now.confidence, then.confidence, rtol=1e-5)  # a mean of means


def test_several_at_once_and_what_they_look_like(model: Model) -> None:
    features = np.concatenate([rows("d", 4), rows("a", 5, seed=7), rows("e", 1)])
    first, second, third = model.enroll(features, [*"dddd", *["again"] * 5, "e"])
    assert (first.id, second.id, third.id) == (8, 9, 10)
    assert second.looks_like == "a" and second.nearest == "a" and second.taken_for["a"] >= 3
    assert third.images == 1 and third.unlike == []


def test_images_unlike_the_rest_are_named(model: Model) -> None:
    mixed = np.concatenate([rows("d", 5), rows("e", 1)])
    assert model.enroll(mixed, "d").unlike == ["row[5]"]
    assert unlike(torch.from_numpy(rows("d", 20))) == []
    assert unlike(torch.ones(6, 4)) == []
    assert unlike(torch.eye(3)) == []  # of three there is no rest


def test_what_cannot_be_changes_nothing(model: Model) -> None:
    model.enroll(rows("d", 3), "d")
    before, classes, kept = answers(model), model.classes, model.trained.enrolment
    for features, names, message in (
        (rows("e", 2), "d", "'d' was enrolled before, from 3 images"),
        (rows("e", 2), "a", "'a' is a trained class"),
        (rows("e", 2), ["e", "a"], "'a' is a trained class"),
        (rows("e", 2), ["e"], "got 2 images and 1 name"),
        (rows("e", 2)[:0], "e", "got 0 images"),
        (rows("e", 2), "  ", "expected a name"),
        (rows("e", 2)[:, :5], "e", r"expected embeddings of shape \(N, 32\)"),
        (np.full((2, 32), np.nan), "e", "expected finite"),
        (rows("e", 2), ["e", 3], "expected a name"),
    ):
        with pytest.raises(ValueError, match=message):
            model.enroll(features, names)
    for ask, message in (
        (lambda: model.rename("x", "y"), "no class 'x' among the 9"),
        (lambda: model.rename("d", "a"), "'a'"),
        (lambda: model.remove(["d", "x"]), "no class 'x'"),
        (lambda: model.remove([*KNOWN, "d"]), "all"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    with pytest.raises(TypeError, match="enroll: expected an image or features"):
        model.enroll(3, "e")
    assert answers(model) == before and model.classes == classes
    assert model.trained.enrolment is kept


def test_what_is_removed_leaves_no_trace(model: Model, run: Path) -> None:
    before = answers(model)
    model.enroll(np.concatenate([rows("d", 3), rows("e", 3)]), [*"dddeee"])
    both = answers(model)
    model.remove("d")
    assert "d" not in answers(model)[2] and model.predict(rows("e", 1)[0]).closed == "e"
    assert all(name != "d" for near in answers(model)[3] for name, _ in near)
    assert [c.id for c in model.classes][-2:] == [7, 9]  # an id never shifts
    model.save()
    assert answers(oltr_ext.load(run, device="cpu")) == answers(model)
    model.enroll(rows("d", 3, seed=3), "new")
    assert model.classes[-1].id == 10
    model.save()
    again = oltr_ext.load(run, device="cpu")
    assert again.classes == model.classes and answers(again) == answers(model)
    model.remove(["new", "e"])
    assert answers(model) == before and answers(model) != both
    assert model.class_names == KNOWN  # the last ones are forgotten


def test_a_file_that_is_gone_changes_nothing(model: Model, run: Path) -> None:
    model.enroll(rows("d", 4), "d")
    model.remove([KNOWN[0]])
    before, classes = answers(model), model.classes
    (run / MODEL).rename(run / "away")
    for change in (
        lambda: model.remove([KNOWN[1]]),
        lambda: model.enroll(rows("e", 4), "e"),
        lambda: model.rename("d", "dd"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
            change()
        assert answers(model) == before and model.classes == classes
    (run / "away").rename(run / MODEL)
    model.remove([KNOWN[1]])
    assert KNOWN[1] not in [each.name for each in model.classes]


def test_undo_takes_back_and_brings_back(model: Model, run: Path) -> None:
    with pytest.raises(ValueError, match="nothing to undo"):
        model.undo()
    states = [answers(model)]
    for change in (
        lambda: model.enroll(rows("d", 3), "d"),
        lambda: model.rename("d", "dee"),
        lambda: model.enroll(rows("d", 3, seed=2), "dee", more=True),
        lambda: model.remove("a"),
        lambda: model.remove("dee"),
    ):
        change()
        model.save()
        other = oltr_ext.load(run, device="cpu")
        states.append(answers(other))
        other.undo()
        assert answers(other) == states[-2]
        other.undo()
        assert answers(other) == states[-1]
    assert "a" not in states[-1][2] and states[-1] != states[-2]


def test_the_features_of_a_removed_class_go_with_the_next_change(model: Model, run: Path) -> None:
    model.enroll(rows("d", 3), "d")
    model.save()
    model.remove("d")
    model.save()
    held = checkpoint.load(run / MODEL)[0]["enrolled.features"]
    assert len(held) == 3  # it can be undone
    model.rename("a", "A")
    model.save()
    assert len(checkpoint.load(run / MODEL)[0]["enrolled.features"]) == 0


def test_a_file_changed_by_others_is_not_overwritten(model: Model, run: Path) -> None:
    other = oltr_ext.load(run, device="cpu")
    other.enroll(rows("e", 3), "e")
    other.save()
    model.enroll(rows("d", 3), "d")
    blob = (run / MODEL).read_bytes()
    with pytest.raises(ChangedError, match="changed since it was read"):
        model.save()
    assert (run / MODEL).read_bytes() == blob
    other.enroll(rows("d", 3), "d")  # whoever saved goes on
    other.save()
    tensors, header = checkpoint.load(run / MODEL)
    header["state"]["best"] = 0.5
    checkpoint.save(run / MODEL, tensors, header)
    with pytest.raises(ChangedError, match="trained anew"):
        other.save()


def test_only_a_model_takes_classes(run: Path) -> None:
    model = oltr_ext.load(run / "best.safetensors", device="cpu")
    model.enroll(rows("d", 3), "d")
    blob = (run / "best.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"trains on from: expected the model\.safetensors"):
        model.save()
    assert (run / "best.safetensors").read_bytes() == blob


def test_the_trained_tensors_stay_what_training_wrote(model: Model, run: Path) -> None:
    tensors, header = checkpoint.load(run / MODEL)
    assert "classes" not in header
    model.enroll(rows("d", 3), "d")
    model.rename("a", "A")
    model.save()
    now, there = checkpoint.load(run / MODEL)
    assert set(now) - set(tensors) == {
        "enrolled.features",
        "enrolled.class",
        "enrolled.class_before",
    }
    assert all(torch.equal(now[key], value) for key, value in tensors.items())
    assert there.pop("classes")["now"]["names"] == ["A", *KNOWN[1:], "d"]
    assert there == json.loads(json.dumps(header))
    assert model.predict(rows("a", 1)[0]).closed == "A"


def test_who_joined_beside_a_removed_class_is_who_is_read_again(model: Model, run: Path) -> None:
    """The removed one is among the rivals in both."""
    model.remove("a")
    found = model.enroll(rows("d", 5), "d")
    model.save()
    again = oltr_ext.load(run, device="cpu")
    assert answers(again) == answers(model)
    taken = again.predict(rows("d", 5))
    assert found.recognised == sum(label == "d" for label in taken.label)
    model.remove("b")
    model.save()
    assert answers(oltr_ext.load(run, device="cpu")) == answers(model)
