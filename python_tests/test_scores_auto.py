"""How a score is chosen among many on a few validation strangers."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from oltr_ext.config.schema import OpenSet
from oltr_ext.engine.evaluate import AUTO, AUTO_SCORE, Outputs, calibrate
from oltr_ext.engine.settle import settled_by
from oltr_ext.metrics import auroc_gain
from oltr_ext.nn import LinearHead
from oltr_ext.nn.scores import SCORES


def drawn(known, strangers, shifts, seed=0, shared=0.9):
    """Scores that share most of their noise, each with its own distance between the kinds."""
    rng = np.random.default_rng(seed)
    target = np.repeat([0, -1], [known, strangers])
    common = rng.normal(size=known + strangers)
    return target, {
        name: shared * common
        + np.sqrt(1 - shared**2) * rng.normal(size=len(target))
        + shift * (target >= 0)
        for name, shift in shifts.items()
    }


def test_gain_is_the_difference_of_areas_and_its_error_that_of_many_draws():
    gains, errors = [], []
    for seed in range(400):
        target, scores = drawn(60, 40, {"a": 1.0, "b": 0.8}, seed)
        gain, error = auroc_gain(scores["a"], scores["b"], target)
        areas = [roc_auc_score(target >= 0, scores[name]) for name in "ab"]
        assert gain == pytest.approx(areas[0] - areas[1], abs=1e-12)
        gains.append(gain), errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.1)
    target, scores = drawn(60, 40, {"a": 1.0, "b": 0.8})
    coarse = {name: score.round() for name, score in scores.items()}  # ties count half
    areas = [roc_auc_score(target >= 0, coarse[name]) for name in "ab"]
    assert auroc_gain(coarse["a"], coarse["b"], target)[0] == pytest.approx(areas[0] - areas[1])
    assert auroc_gain(scores["a"], scores["a"], target) == (0, 0)


def test_gain_by_hand_and_where_there_is_none():
    # placements of a: known 1, 1, 1/2; strangers 1, 2/3. Of b: 1/2, 0, 1/2; 0, 2/3
    target, a, b = [0, 0, 0, -1, -1], [3, 4, 1, 0, 2], [1, -1, 1, 2, 0]
    gaps = np.array([0.5, 1, 0]), np.array([1, 0])
    want = np.sqrt(gaps[0].var(ddof=1) / 3 + gaps[1].var(ddof=1) / 2)
    assert auroc_gain(a, b, target) == pytest.approx((0.5, want))
    assert np.isnan(auroc_gain([1, 2], [1, 2], [0, 0])).all()
    gain, error = auroc_gain([3, 2, 1], [1, 2, 3], [0, 0, -1])
    assert gain == 1 and np.isnan(error)
    with pytest.raises(ValueError, match="auroc_gain"):
        auroc_gain([1, 2, 3], [1, 2], [0, -1])


def chosen(shifts, known=200, strangers=80, shared=0.9, together=False):
    target, scores = drawn(known, strangers, shifts | {"max_softmax": 0.0} | shifts, shared=shared)
    both = Outputs(np.zeros(len(target), np.int64), target, scores)
    parts = [both.only(np.flatnonzero(rows)) for rows in (target >= 0, target < 0)]
    if together:
        parts = [both, None]
    head = LinearHead(2, 2)
    found = calibrate(head, *parts, OpenSet())["score"]
    assert head.score == found
    return found


def test_auto_leaves_the_sum_for_what_is_better_beyond_one_standard_error():
    assert chosen({AUTO_SCORE: 1.0, "energy": 1.02}) == AUTO_SCORE
    assert chosen({AUTO_SCORE: 1.0, "energy": 1.5}) == "energy"
    assert chosen({AUTO_SCORE: 1.5, "energy": 1.0}) == AUTO_SCORE
    # one stranger has no error to compare with
    assert chosen({AUTO_SCORE: 0.0, "energy": 9.0}, strangers=1) == AUTO_SCORE
    # strangers among the images of known classes count as well as those apart from them
    assert chosen({AUTO_SCORE: 1.0, "energy": 1.5}, together=True) == "energy"
    assert chosen({AUTO_SCORE: 1.0, "energy": 1.5}, strangers=0, together=True) == "max_softmax"
    # and where there is no bank, the highest
    assert chosen({"max_softmax": 1.0, "energy": 1.02}, shared=1.0) == "energy"


def test_another_rule_or_score_settles_anew():
    assert (
        settled_by() == [AUTO, *SCORES, "observations"]
        and AUTO_SCORE in AUTO
        and AUTO_SCORE in SCORES
    )


def test_a_configuration_may_name_every_score():
    asked = get_args(OpenSet.model_fields["score"].annotation)
    assert set(asked) == {"auto", *SCORES} and len(asked) == len(SCORES) + 1
