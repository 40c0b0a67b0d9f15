"""`OLTRClassifier`: scikit-learn's own checks, and what they do not ask."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from drawn_rows import DATA, KNOWN, STRANGERS, drawn
from sklearn.base import clone
from sklearn.metrics import f1_score, make_scorer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from oltr_ext import OLTRClassifier


@parametrize_with_checks([OLTRClassifier()])
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> OLTRClassifier:
    model: OLTRClassifier = OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)
    return model


def test_strangers_get_the_outlier_label_and_known_rows_do_not(fitted: OLTRClassifier) -> None:
    answer = fitted.predict(KNOWN[0])
    assert (answer == KNOWN[1]).mean() > 0.85
    assert (fitted.predict(STRANGERS) == -1).mean() > 0.9
    score = fitted.score_samples(np.concatenate([KNOWN[0], STRANGERS]))
    np.testing.assert_array_equal(score[:200] < fitted.offset_, answer == -1)
    closed = clone(fitted).set_params(outlier_label=None).fit(*drawn((60, 30, 12, 4)))
    assert (closed.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.97
    assert set(closed.predict(STRANGERS)) <= {0, 1, 2, 3}
    np.testing.assert_array_equal(closed.score_samples(STRANGERS), score[200:])


def test_known_recall_sets_how_many_are_kept() -> None:
    def share(recall: float) -> float:
        model = OLTRClassifier(outlier_label=-1, known_recall=recall, random_state=0)
        return float((model.fit(*DATA).predict(KNOWN[0]) != -1).mean())

    assert share(0.5) < share(0.9) <= share(0.999)


def test_a_rejection_counts_as_wrong_in_scorers(fitted: OLTRClassifier) -> None:
    rows, label = KNOWN
    strict = clone(fitted).set_params(known_recall=0.8).fit(*DATA)
    rejected = strict.predict(rows) == -1
    assert rejected.any()
    right = strict.predict(rows)[~rejected] == label[~rejected]
    assert strict.score(rows, label) == right.sum() / len(label)
    scorer = make_scorer(f1_score, average="macro", labels=[0, 1, 2, 3])
    found = cross_val_score(strict, rows, label, cv=3, scoring=scorer)
    assert (found > 0.7).all() and found.min() < 1


@pytest.mark.parametrize(
    ("names", "outlier"),
    [
        (np.array(["a", "bc", "d", "e"]), "unknown"),
        (np.array([3.0, 7.0, 2.0, 0.0]), -1.0),
        (np.array([7, 5, 3, 1], np.uint8), 255),
        (
            np.array(["a", 2, (3,), None], object)[[0, 0, 0, 0]] + np.array(list("wxyz"), object),
            "?",
        ),
    ],
    ids=["words", "floats", "bytes", "objects"],
)
def test_labels_of_any_type(names: Any, outlier: Any) -> None:
    model = OLTRClassifier(outlier_label=outlier, random_state=0).fit(DATA[0], names[DATA[1]])
    assert model.classes_.tolist() == sorted(names.tolist())
    assert (model.predict(KNOWN[0]) == names[KNOWN[1]]).mean() > 0.85
    assert (model.predict(STRANGERS) == outlier).mean() > 0.9  # whole, however long


def test_an_outlier_label_is_of_the_classes_type_and_none_of_them() -> None:
    with pytest.raises(TypeError, match=r"outlier_label: expected .* int64, got 'unknown'"):
        OLTRClassifier(outlier_label="unknown").fit(*DATA)
    with pytest.raises(TypeError, match=r"the classes' type, <U1, got -1"):
        OLTRClassifier(outlier_label=-1).fit(DATA[0], np.array(list("abcd"))[DATA[1]])
    with pytest.raises(ValueError, match="3 is one of the classes"):
        OLTRClassifier(outlier_label=3).fit(*DATA)


def test_a_training_set_of_one_class() -> None:
    rows, label = drawn((600,))
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(rows, label)
    assert (model.predict(drawn((50,), seed=1)[0]) == 0).mean() > 0.8
    assert (model.predict(STRANGERS) == -1).all()
    assert model.predict_proba(rows).shape == (600, 1)
    assert model.decision_function(rows).shape == (600, 1)


def test_classes_with_no_row_to_spare_reject_nothing() -> None:
    rows, label = drawn((1, 1, 1))
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(rows, label)
    assert model.offset_ == -np.inf
    assert model.predict(rows).tolist() == [0, 1, 2]
    assert (model.predict(STRANGERS) != -1).all()


def test_pickle_joblib_and_clone(fitted: OLTRClassifier) -> None:
    held = BytesIO()
    joblib.dump(fitted, held)
    held.seek(0)
    for again in (pickle.loads(pickle.dumps(fitted)), joblib.load(held)):
        for name in ("predict", "predict_proba", "decision_function", "score_samples"):
            ours, theirs = getattr(fitted, name)(KNOWN[0]), getattr(again, name)(KNOWN[0])
            np.testing.assert_array_equal(ours, theirs)
    assert not hasattr(clone(fitted), "classes_")
    assert clone(fitted).get_params() == fitted.get_params()


def test_searches_over_pipelines() -> None:
    pipe = make_pipeline(StandardScaler(), OLTRClassifier(random_state=0, epochs=4))
    search = GridSearchCV(pipe, {"oltrclassifier__test_prior": ["balanced", 1.0]}, cv=2)
    assert search.fit(*DATA).best_score_ > 0.8


def test_partial_fit_meets_new_classes() -> None:
    model = OLTRClassifier(random_state=0).partial_fit(*DATA)
    np.testing.assert_array_equal(
        model.predict_proba(KNOWN[0]),
        OLTRClassifier(random_state=0).fit(*DATA).predict_proba(KNOWN[0]),
    )
    rows, label = drawn((5, 5), seed=3, first=8)
    names = np.array([-3, 8])[label - 8]  # one before those that are there, one after
    model.partial_fit(rows, names)
    assert model.classes_.tolist() == [-3, 0, 1, 2, 3, 8]
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.95
    rows, label = drawn((40, 40), seed=4, first=8)
    assert (model.predict(rows) == np.array([-3, 8])[label - 8]).mean() > 0.95
    assert model.predict_proba(rows).shape == (80, 6)
    model.partial_fit(*drawn((20, 20, 20, 20), seed=5))
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.97
    again = pickle.loads(pickle.dumps(model)).partial_fit(rows[:4], [0, 1, 2, 3])
    assert again.classes_.tolist() == model.classes_.tolist()


def test_classes_yet_to_come_have_no_probability() -> None:
    model = OLTRClassifier(random_state=0).partial_fit(*DATA, classes=[0, 1, 2, 3, 9])
    assert model.classes_.tolist() == [0, 1, 2, 3, 9]
    share = model.predict_proba(KNOWN[0])
    assert (share[:, 4] == 0).all()
    np.testing.assert_allclose(share.sum(1), 1)
    assert (model.decision_function(KNOWN[0]).argmax(1) == KNOWN[1]).mean() > 0.95
    model.partial_fit(drawn((4,), seed=3, first=9)[0], [9] * 4)
    assert (model.predict(drawn((30,), seed=4, first=9)[0]) == 9).mean() > 0.9


def test_a_class_of_more_weight_is_expected_more_often() -> None:
    draw = np.random.default_rng(0)
    rows, label = draw.normal(size=(400, 3)), np.arange(400) % 2  # nothing to tell them by
    weight = np.where(label == 1, 5.0, 1.0)
    model = OLTRClassifier(random_state=0, test_prior=1.0).fit(rows, label, weight)
    assert (model.predict(rows) == 1).mean() > 0.9
    model = OLTRClassifier(random_state=0, test_prior=1.0).fit(rows, label)
    assert 0.2 < (model.predict(rows) == 1).mean() < 0.8


def test_the_same_bits_on_any_threads_and_no_trace() -> None:
    rows, label = drawn((200, 60, 20, 4))  # more than a batch
    torch.manual_seed(5)
    np.random.seed(5)
    before, state, old = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        torch.get_num_threads(),
    )
    found = []
    for jobs in (1, 2, -1):
        model = OLTRClassifier(random_state=3, n_jobs=jobs, epochs=2).fit(rows, label)
        found.append(model.decision_function(KNOWN[0]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == old
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    other = OLTRClassifier(random_state=4, epochs=2).fit(rows, label).decision_function(KNOWN[0])
    assert (other != found[0]).any()


def test_single_precision_stays_single() -> None:
    model = OLTRClassifier(random_state=0).fit(DATA[0].astype(np.float32), DATA[1])
    assert model.head_.memory.centroids.dtype == torch.float32
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.97


def test_verbose_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    OLTRClassifier(epochs=2, random_state=0).fit(*DATA)
    assert capsys.readouterr().err == ""
    OLTRClassifier(epochs=2, random_state=0, verbose=True).fit(*DATA)
    told = capsys.readouterr().err
    assert "OLTRClassifier.fit" in told and "loss" in told


def test_the_bank_keeps_what_it_may() -> None:
    rows, label = drawn((90, 30, 8, 2))
    model = OLTRClassifier(bank_size=30, random_state=0).fit(rows, label)
    assert np.bincount(model._bank_y).tolist() == [10, 10, 8, 2]
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.9
    whole = OLTRClassifier(random_state=0).fit(np.repeat(rows, 2, 0), np.repeat(label, 2))
    assert len(whole._bank) == len(rows)  # each once


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"known_recall": 1}, "known_recall: expected a number between 0 and 1, got 1"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"bank_size": 2.5}, "bank_size: expected a positive integer, got 2.5"),
        ({"epochs": "many"}, "epochs: expected 'auto' or a positive integer, got 'many'"),
        (
            {"test_prior": "val"},
            "test_prior: expected 'balanced' or a number from 0 to 2, got 'val'",
        ),
        ({"n_jobs": 0}, "n_jobs: expected None or an integer other than 0, got 0"),
    ],
)
def test_wrong_parameters_are_told(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        OLTRClassifier(**wrong).fit(*DATA)
    assert str(error.value) == f"OLTRClassifier: {said}"
