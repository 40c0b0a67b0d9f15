"""Classes that join an estimator without training, are called otherwise, and go."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from drawn_rows import DATA, KNOWN, drawn

from oltr_ext import OLTRClassifier

NEW, NEW_Y = drawn((5, 5), seed=5, first=8)
ASKED, ASKED_Y = drawn((50, 50), seed=6, first=8)


@pytest.fixture
def model():
    return OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)


def test_new_classes_are_recognised_and_old_ones_stay(model):
    before, offset = model.predict(KNOWN[0]), model.offset_
    assert (model.predict(ASKED) == -1).mean() > 0.9
    assert model.enroll(NEW, NEW_Y) is model
    assert model.classes_.tolist() == [0, 1, 2, 3, 8, 9] and model.offset_ == offset
    closed = model.classes_[model.predict_proba(ASKED).argmax(1)]
    assert (closed == ASKED_Y).mean() > 0.95
    assert (model.predict(ASKED) == ASKED_Y).mean() > 0.5  # five rows are few to be near
    assert (model.predict(KNOWN[0]) == before).mean() > 0.97
    sets = model.predict_set(ASKED, alpha=0.1)
    assert sets.classes.tolist() == model.classes_.tolist()
    assert {8, 9} <= set(sets.classes[sets.indices].tolist())  # what share of them is no promise


def test_removing_undoes(model):
    before, score = model.predict_proba(KNOWN[0]), model.score_samples(ASKED)
    sets = model.predict_set(KNOWN[0]).indices
    model.enroll(NEW, NEW_Y).remove(8).remove(9)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert np.array_equal(model.predict_proba(KNOWN[0]), before)
    assert np.array_equal(model.score_samples(ASKED), score)
    assert np.array_equal(model.predict_set(KNOWN[0]).indices, sets)


def test_the_order_of_rows_and_of_groups_says_nothing(model):
    turned = OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)
    model.enroll(NEW, NEW_Y)
    turned.enroll(NEW[5:][::-1], NEW_Y[5:]).enroll(NEW[:5], NEW_Y[:5])
    np.testing.assert_allclose(
        turned.predict_proba(ASKED), model.predict_proba(ASKED), rtol=1e-5, atol=1e-6
    )


def test_a_trained_class_goes(model):
    model.remove(1)
    assert model.classes_.tolist() == [0, 2, 3]
    right = KNOWN[1] != 1
    assert (model.predict(KNOWN[0][right]) == KNOWN[1][right]).mean() > 0.85
    assert 1 not in model.predict(KNOWN[0])
    model.partial_fit(*drawn((6,), seed=7, first=1))
    assert model.classes_.tolist() == [0, 1, 2, 3]
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.85


def test_what_is_left_scores_what_it_scored():
    model = OLTRClassifier(outlier_label=-1, test_prior=1.0, random_state=0).fit(*DATA)
    model.enroll(NEW, NEW_Y)
    rows = KNOWN[0][100:]
    before, largest = model.score_samples(rows), model.decision_function(rows).argmax(1)
    stays = largest != 1
    model.remove(1)
    np.testing.assert_allclose(model.score_samples(rows)[stays], before[stays], rtol=1e-6)


def test_sets_of_known_classes_hold_whatever_joins():
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(12, 6))

    def part(classes, count, seed):
        label = np.repeat(classes, count)
        return middle[label] + np.random.default_rng(seed).normal(size=(len(label), 6)), label

    known, new = np.arange(6), np.arange(6, 12)
    model = OLTRClassifier(random_state=0).fit(*part(known, 60, 1))
    model.calibrate_sets(*part(known, 60, 2))
    rows, label = part(known, 100, 3)

    def covered():
        return model.predict_set(rows, alpha=0.1, method="marginal").covers(label).mean()

    before = covered()
    model.enroll(*part(new, 5, 4))
    assert before > 0.85 and covered() == before
    model.remove(6)
    assert covered() == before


def test_renaming_moves_a_label_and_nothing_else(model):
    before = model.predict_proba(KNOWN[0])
    model.rename(0, 7)
    assert model.classes_.tolist() == [1, 2, 3, 7]
    assert np.array_equal(model.predict_proba(KNOWN[0]), before[:, [1, 2, 3, 0]])
    words = OLTRClassifier(random_state=0).fit(DATA[0], np.array([*"abcd"])[DATA[1]])
    words.rename("b", "a longer name")
    assert words.classes_.tolist() == ["a", "a longer name", "c", "d"]
    assert set(words.predict(KNOWN[0][50:100])) == {"a longer name"}


def test_a_class_that_is_called_as_strangers_are_may_be_renamed():
    names = np.array(["unknown", "b", "c", "d"])
    model = OLTRClassifier(random_state=0).fit(DATA[0], names[DATA[1]])
    model.set_params(outlier_label="unknown")
    with pytest.raises(ValueError, match="'unknown' is one of the classes"):
        model.rename("b", "moss")
    model.rename("unknown", "moss")
    assert model.classes_.tolist() == ["b", "c", "d", "moss"]
    assert (model.predict(KNOWN[0][:50]) == "moss").mean() > 0.8
    assert (model.predict(ASKED) == "unknown").mean() > 0.9


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_new_rows_count_as_old_ones_whatever_those_weigh(unit):
    found = []
    for weight in (1.0, unit):
        model = OLTRClassifier(random_state=0, test_prior=1.0).fit(
            *DATA, np.full(len(DATA[0]), weight)
        )
        model.enroll(NEW, NEW_Y)
        found.append((model.head_.class_prior, model._total / weight, model.predict_proba(ASKED)))
        more = model.partial_fit(*DATA, sample_weight=np.full(len(DATA[0]), weight))
        found[-1] += (more.predict_proba(ASKED),)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_it_goes_on_afterwards(model):
    model.enroll(NEW, NEW_Y)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(ASKED), model.predict(ASKED))
    model.partial_fit(ASKED[::5], ASKED_Y[::5])
    closed = model.classes_[model.predict_proba(ASKED).argmax(1)]
    assert (closed == ASKED_Y).mean() > 0.95


def test_what_cannot_be_leaves_all_as_it_was(model):
    before = pickle.dumps(model)
    with pytest.raises(ValueError, match="enroll: there were rows of class 2; partial_fit"):
        model.enroll(NEW, np.where(NEW_Y == 8, 2, NEW_Y))
    with pytest.raises(ValueError, match="NaN"):
        model.enroll(np.full((2, 12), np.nan), [8, 9])
    with pytest.raises(ValueError, match="features"):
        model.enroll(NEW[:, :5], NEW_Y)
    with pytest.raises(ValueError, match="outlier_label: -1 is one of the classes"):
        model.enroll(NEW, np.full(10, -1))
    with pytest.raises(TypeError, match="expected labels of one type"):
        model.enroll(NEW, NEW_Y.astype(str))
    with pytest.raises(ValueError, match="remove: no class 5 among the 4"):
        model.remove(5)
    with pytest.raises(ValueError, match="rename: 3 is a class already"):
        model.rename(0, 3)
    for no_name in (float("nan"), None, [7]):
        with pytest.raises(ValueError, match="rename: expected one label, got"):
            model.rename(0, no_name)
    assert pickle.dumps(model) == before
    alone = OLTRClassifier().fit(DATA[0][:9], DATA[1][:9])
    with pytest.raises(ValueError, match="expected a model of two classes or more, got one"):
        alone.enroll(NEW, NEW_Y)
    with pytest.raises(ValueError, match=r"expected two classes to stay .* got 0 without 0"):
        alone.remove(0)
    two = OLTRClassifier(random_state=0).fit(DATA[0][:70], DATA[1][:70])
    with pytest.raises(ValueError, match=r"expected two classes to stay .* got 1 without 1"):
        two.remove(1)


@pytest.mark.parametrize("change", ["enroll", "remove", "calibrate_sets"])
def test_what_is_interrupted_changes_nothing(model, change, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    told = {"enroll": (NEW, NEW_Y), "remove": (2,), "calibrate_sets": KNOWN}
    monkeypatch.setattr(OLTRClassifier, "_keep", cut)
    monkeypatch.setattr("oltr_ext.estimator.joining.part_of", cut)
    monkeypatch.setattr("oltr_ext.estimator.sets.true_log_probability", cut)
    before, answers = pickle.dumps(model), model.predict_proba(ASKED)
    with pytest.raises(KeyboardInterrupt):
        getattr(model, change)(*told[change])
    assert pickle.dumps(model) == before
    assert np.array_equal(model.predict_proba(ASKED), answers)


def test_a_shallow_copy_stands_alone(model):
    answers, other = model.predict_proba(ASKED), copy.copy(model)
    other.enroll(NEW, NEW_Y).remove(0)
    assert np.array_equal(model.predict_proba(ASKED), answers)
    assert other.classes_.tolist() == [1, 2, 3, 8, 9]
