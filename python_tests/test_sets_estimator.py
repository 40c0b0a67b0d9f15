"""Prediction sets of `OLTRClassifier`."""

from __future__ import annotations

import numpy as np
import pytest

from oltr_ext import OLTRClassifier
from oltr_ext.nn.sets import SET_METHODS

SIZES = (60, 40, 24, 12, 6, 3)


def drawn(sizes, seed, spread=2.5):
    """Rows around the corners of a simplex, near enough to be taken for one another."""
    label = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(label), 8))
    return noise + spread * np.eye(8)[label], label


@pytest.fixture(scope="module")
def names():
    return np.array(["f", "e", "d", "c", "b", "a"])  # places in classes_ are not those of rows


@pytest.fixture(scope="module")
def fitted(names):
    x, y = drawn(SIZES, 0)
    return OLTRClassifier(random_state=0).fit(x, names[y])


@pytest.mark.parametrize("method", SET_METHODS)
def test_on_rows_of_its_own_one_minus_alpha_is_a_promise(fitted, names, method):
    """Averaged over halves of the same rows that calibrate, coverage is that of the law; each half
    of 150 rows is off by 3 points, their mean by less than 1."""
    x, y = drawn((50,) * 6, 1)
    draw, covered = np.random.default_rng(0), []
    for _ in range(20):
        order = draw.permutation(len(y))
        fitted.calibrate_sets(x[order[:150]], names[y[order[:150]]])
        found = fitted.predict_set(x[order[150:]], alpha=0.2, method=method)
        at = np.searchsorted(fitted.classes_, names[y[order[150:]]])
        covered.append(found.covers(at).mean())
    most = {"marginal": 0.82, "pas": 0.82, "shots": 0.83}.get(method, 0.9)
    assert 0.785 < np.mean(covered) < most


def test_by_the_rows_that_fit_held_out(names):
    """41 of them, which leave 6 points of deviation, and that were trained on since."""
    sizes = tuple(3 * n for n in SIZES)
    x, y = drawn(sizes, 0)
    model = OLTRClassifier(random_state=0).fit(x, names[y])
    known, label = drawn(sizes, 1)
    found = model.predict_set(known, alpha=0.2, method="marginal")
    assert 0.65 < found.covers(np.searchsorted(model.classes_, names[label])).mean() < 0.95
    probability = model.predict_proba(known)
    for each, row in zip(found[:20], probability, strict=False):
        order = np.argsort(-row, kind="stable")[: len(each)]
        assert each.labels.tolist() == model.classes_[order].tolist()
        np.testing.assert_allclose(each.probability, row[order], rtol=1e-6)
    assert found.unknown.tolist() == (model.score_samples(known) < model.offset_).tolist()
    again = OLTRClassifier(random_state=0).fit(x, names[y]).predict_set(known)
    assert model.predict_set(known).indices.tolist() == again.indices.tolist()
    held = len(model._judged)
    more, later = drawn((0, 0, 0, 0, 0, 6, 6), 5)
    names = np.append(names, "aa")
    model.partial_fit(more, names[later])  # a new class, and rows of one that was there
    assert len(model._judged) == held + 6
    there = model.predict_set(more[-6:], alpha=0.2)
    assert np.mean(["aa" in each for each in there]) > 0.5


def test_no_row_to_spare_and_classes_to_come():
    """Nothing to calibrate on: every class is in every set, but those without a row."""
    x, y = drawn((1, 1, 1), 0)
    model = OLTRClassifier(random_state=0).partial_fit(x, y, classes=[0, 1, 2, 3])
    found = model.predict_set(x, alpha=0.1)
    assert [sorted(each.labels) for each in found] == [[0, 1, 2]] * 3
    assert found.always.tolist() == [True] * 3 + [False]
    with pytest.raises(ValueError, match="calibrate_sets: no training row was of class 3"):
        model.calibrate_sets(x, [0, 1, 3])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.calibrate_sets(x, [0, 1])
    with pytest.raises(ValueError, match=r"alpha in \(0, 1\), got 0"):
        model.predict_set(x, alpha=0)


@pytest.mark.parametrize("weight", [1e-3, 2.0**64, "balanced"])
def test_classes_are_grouped_by_rows_whatever_those_weigh(names, weight):
    (x, y), asked = drawn(SIZES, 0), drawn((50,) * 6, 1)
    each = 60 / np.array(SIZES)[y] if weight == "balanced" else np.full(len(y), weight)
    model = OLTRClassifier(random_state=0).fit(x, names[y], each)
    model.calibrate_sets(asked[0], names[asked[1]])
    plain = OLTRClassifier(random_state=0).fit(x, names[y])
    assert model._rows.tolist() == plain._rows.tolist() == [*SIZES[::-1]]
    by_group, over_all = (model.predict_set(asked[0], 0.2, method=m) for m in ("shots", "marginal"))
    assert by_group.indices.tolist() != over_all.indices.tolist()
    model.enroll(x[:2] + 9, ["g", "g"]).remove("f")
    assert model._rows.tolist() == [3, 6, 12, 24, 40, 2]
    model.partial_fit(x[:3], np.array(["a", "g", "h"]))
    assert model._rows.tolist() == [4, 6, 12, 24, 40, 3, 1]
