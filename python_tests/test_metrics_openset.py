"""Open-set scores and curves: hand-worked cases, an independent count, and the laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oltr_ext.metrics import (
    SCORE_NAMES,
    auroc,
    calibrate_threshold,
    evaluate_answers,
    open_scores,
    open_set_metrics,
    oscr,
    roc_points,
)

SEEDED = settings(deadline=None, derandomize=True)

# Few distinct scores, so that ties are common.
SIZES = st.integers(2, 30)


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score, closed prediction, target) with known and open images among them."""
    n = draw(SIZES)
    score = draw(arrays(np.float64, n, elements=st.integers(-5, 5).map(lambda v: v / 4)))
    pred = draw(arrays(np.int64, n, elements=st.integers(0, 3)))
    target = draw(arrays(np.int64, n, elements=st.integers(-1, 3)))
    assume((target < 0).any() and (target >= 0).any())
    return score, pred, target


def test_scores_of_one_row_by_hand() -> None:
    # logits ln 1, ln 2, ln 5: softmax 1/8, 2/8, 5/8; log-sum-exp ln 8; at T = 2 the energy is
    # 2 ln(1 + sqrt 2 + sqrt 5). Distance 4: reachability 10 / 4.
    scores = open_scores(np.log([[1.0, 2.0, 5.0]]), np.array([4.0]), np.array([0.25]))
    assert tuple(scores) == SCORE_NAMES
    assert scores["max_softmax"][0] == pytest.approx(5 / 8)
    assert scores["max_logit"][0] == pytest.approx(math.log(5))
    assert scores["energy"][0] == pytest.approx(math.log(8))
    assert scores["nearest_distance"][0] == -4.0
    assert scores["reachability"][0] == 2.5
    assert scores["openmax"][0] == 0.75
    warm = open_scores(np.log([[1.0, 2.0, 5.0]]), temperature=2.0)
    assert warm["energy"][0] == pytest.approx(2 * math.log(1 + math.sqrt(2) + math.sqrt(5)))
    assert "reachability" not in warm


def test_scores_survive_large_logits_zero_distance_and_half_precision() -> None:
    scores = open_scores(torch.tensor([[1e4, 0.0]], dtype=torch.bfloat16), torch.zeros(1))
    assert all(np.isfinite(value).all() for value in scores.values())
    assert scores["max_softmax"][0] == 1.0


def test_scores_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    whole = open_scores(logits)
    monkeypatch.setattr("oltr_ext.nn.scores.CHUNK", 20)
    for name, value in open_scores(logits).items():
        np.testing.assert_array_equal(value, whole[name])


def test_four_images_by_hand() -> None:
    # Known .9 .4, open .6 .1. Of the 4 (known, open) pairs 3 are ordered right: AUROC 3/4.
    # 95 % of two knowns means both, so accept from .4 on: of the open .6 passes, 1/2.
    # Ranking known first: .9 (precision 1/1), .6, .4 (2/3): AP = (1 + 2/3) / 2.
    # Ranking open first: .1 (1/1), .4, .6 (2/3): the same by symmetry here.
    result = open_set_metrics([0.9, 0.4, 0.6, 0.1], [0, 1, -1, -1])
    assert result["auroc"] == 0.75
    assert result["fpr95"] == 0.5
    assert result["aupr_in"] == pytest.approx(5 / 6)
    assert result["aupr_out"] == pytest.approx(5 / 6)


def test_fpr95_accepts_exactly_the_best_nineteen_of_twenty() -> None:
    known, opened = np.arange(20) + 0.5, np.array([-1.0, 0.9, 1.6, 30.0])
    result = open_set_metrics(np.r_[known, opened], [0] * 20 + [-1] * 4)
    assert result["fpr95"] == 0.5  # accept from 1.5 on: 1.6 and 30 pass
    assert open_set_metrics(np.r_[known, opened[:3]], [0] * 20 + [-1] * 3)["tnr95"] == 2 / 3
    # Open positive: all four open images must be rejected, so the threshold is 30 and every known
    # one goes with them; without the last, rejecting up to 1.6 takes .5 and 1.5 along.
    assert result["fpr95_open"] == 1.0
    assert open_set_metrics(np.r_[known, opened[:3]], [0] * 20 + [-1] * 3)["fpr95_open"] == 0.1


def test_oscr_by_hand() -> None:
    # Known: .9 right, .8 wrong, .3 right, .2 right; open: .5, .1. Sweeping down from above:
    # (fpr, ccr) = (0, 0) (0, 1/4) (1/2, 1/4) (1/2, 3/4) (1, 3/4): area 1/8 + 3/8.
    score, pred = [0.9, 0.8, 0.3, 0.2, 0.5, 0.1], [0, 0, 2, 3, 0, 0]
    result = oscr(score, pred, [0, 1, 2, 3, -1, -1])
    assert result.area == pytest.approx(0.5)
    assert (result.fpr[0], result.ccr[0]) == (0.0, 0.0)
    assert (result.fpr[-1], result.ccr[-1]) == (1.0, 0.75)


@SEEDED
@given(scored())
def test_auroc_counts_ordered_pairs(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, _, target = case
    gap = score[target >= 0][:, None] - score[target < 0][None, :]
    pairs = (gap > 0).mean() + (gap == 0).mean() / 2
    assert open_set_metrics(score, target)["auroc"] == pytest.approx(pairs)
    assert auroc(score, target) == open_set_metrics(score, target)["auroc"]


@SEEDED
@given(scored())
def test_monotone_maps_change_nothing(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, pred, target = case
    moved = np.exp(3 * score) + 7
    for key, value in open_set_metrics(score, target).items():
        assert open_set_metrics(moved, target)[key] == pytest.approx(value), key
    assert oscr(moved, pred, target).area == pytest.approx(oscr(score, pred, target).area)
    far = np.where(score == score.max(), np.inf, score)  # infinities are scores like others
    assert open_set_metrics(far, target) == open_set_metrics(score, target)


@SEEDED
@given(scored())
def test_turning_the_score_swaps_the_roles(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    score, _, target = case
    swapped = np.where(target < 0, 0, -1)
    there, back = open_set_metrics(score, target), open_set_metrics(-score, swapped)
    assert back["auroc"] == pytest.approx(there["auroc"])
    assert back["aupr_in"] == pytest.approx(there["aupr_out"])
    assert back["aupr_out"] == pytest.approx(there["aupr_in"])
    assert (back["fpr95"], back["fpr95_open"]) == (there["fpr95_open"], there["fpr95"])


@SEEDED
@given(scored())
def test_fpr95_is_the_least_that_keeps_the_knowns(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    score, _, target = case
    known, opened = score[target >= 0], score[target < 0]
    passing = [(opened >= t).mean() for t in score if (known >= t).mean() >= 0.95]
    fpr95 = open_set_metrics(score, target)["fpr95"]
    assert fpr95 == pytest.approx(min(passing))
    # and so it is read off the curve
    fpr, tpr = roc_points(score, target)
    assert fpr[np.argmax(tpr >= 0.95)] == pytest.approx(fpr95)
    assert len(fpr) == 1 + len(np.unique(score))


def test_a_curve_has_the_points_of_its_straight_stretches() -> None:
    # One known and one open image at each of 40 scores: the curve is the diagonal, and at the 38th
    # score 95 % of both are accepted. From the corners alone one would read 100 %.
    score, target = np.repeat(np.arange(40.0), 2), np.tile([0, -1], 40)
    fpr, tpr = roc_points(score, target)
    assert open_set_metrics(score, target)["fpr95"] == fpr[np.argmax(tpr >= 0.95)] == 0.95
    curve = oscr(score, np.zeros(80, int), target)
    assert len(curve.fpr) == 41 and curve.fpr[np.argmax(curve.ccr >= 0.95)] == 0.95
    # the same where no known image is right: three open scores, two of them level
    curve = oscr([5, 3, 3, 1, 2], [1, 0, 0, 0, 0], [0, -1, -1, -1, 1])
    assert curve.fpr.tolist() == [0, 2 / 3, 1] and curve.ccr.tolist() == [0, 0, 0]
    assert curve.area == 0


@settings(SEEDED, max_examples=25)
@given(scored())
def test_scores_far_outside_of_0_to_1_are_taken_as_they_are(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """A sigmoid, which some libraries pass logits through, makes 1 of all of these."""
    score, pred, target = case
    far = score + 64  # exact, the scores being quarters
    assert open_set_metrics(far, target) == open_set_metrics(score, target)
    for a, b in zip(roc_points(far, target), roc_points(score, target), strict=True):
        np.testing.assert_array_equal(a, b)
    assert oscr(far, pred, target).area == oscr(score, pred, target).area
    assert calibrate_threshold(far[target >= 0]) == calibrate_threshold(score[target >= 0]) + 64
    results = [
        evaluate_answers(pred, {"max_logit": s}, target, [9, 9, 9, 9])["scores"]["max_logit"]
        for s in (score, far)
    ]
    moved = results[1]["f_curve"]
    moved["threshold"] = [t - 64 for t in moved["threshold"]]
    assert results[0] == results[1]


@SEEDED
@given(scored())
def test_oscr_laws(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    score, pred, target = case
    known = target >= 0
    curve = oscr(score, pred, target)
    auroc = open_set_metrics(score, target)["auroc"]
    accuracy = (pred == target)[known].mean()
    assert curve.area <= accuracy + 1e-12
    assert curve.area <= auroc + 1e-12
    assert curve.ccr[-1] == pytest.approx(accuracy)
    assert (np.diff(curve.fpr) >= 0).all() and (np.diff(curve.ccr) >= 0).all()
    perfect = oscr(score, np.maximum(target, 0), target)
    assert perfect.area == pytest.approx(auroc)
    # The definition, threshold by threshold, and the trapezoids under it.
    levels = np.r_[np.inf, np.unique(score)[::-1]]
    fpr = [(score[~known] >= t).mean() for t in levels]
    ccr = [((score >= t) & (pred == target))[known].mean() for t in levels]
    assert curve.area == pytest.approx(np.trapezoid(ccr, fpr))


def test_one_sided_sets_give_nan_and_empty_curves() -> None:
    for target in ([0, 1], [-1, -1], []):
        score = [0.1, 0.2][: len(target)]
        assert all(math.isnan(v) for v in open_set_metrics(score, target).values())
        assert math.isnan(auroc(score, target))
        curve = oscr(score, [0, 1][: len(target)], target)
        assert math.isnan(curve.area) and len(curve.fpr) == len(roc_points(score, target)[0]) == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="open_set_metrics: score: 1 of 2 values are NaN"):
        open_set_metrics([math.nan, 0.2], [0, -1])
    with pytest.raises(ValueError, match="auroc: score: 1 of 2 values are NaN"):
        auroc([math.nan, 0.2], [0, -1])
    with pytest.raises(ValueError, match=r"oscr.*NaN"):
        oscr([math.nan, 0.2], [0, 0], [0, -1])
    with pytest.raises(ValueError, match="1 of 2 rows of logits hold NaN"):
        open_scores([[0.0, math.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="expected 2 labels, got 1"):
        open_set_metrics([0.1, 0.2], [0])
    with pytest.raises(ValueError, match="logits"):
        open_scores(np.zeros((3, 0)))
    with pytest.raises(ValueError, match="distances >= 0"):
        open_scores(np.zeros((1, 2)), [-1.0])
    with pytest.raises(ValueError, match=r"1 probabilities of unknown in \[0, 1\], got shape \(1,"):
        open_scores(np.zeros((1, 2)), None, [1.5])
    for far in (math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"2 finite distances >= 0, got shape \(2,\)"):
            open_scores(np.zeros((2, 2)), [1.0, far])
    for name in ("scale", "temperature", "eps"):
        with pytest.raises(ValueError, match=f"expected finite {name} > 0, got inf"):
            open_scores(np.zeros((1, 2)), [0.0], **{name: math.inf})
    # a class that is no answer
    assert open_scores([[0.0, -math.inf]])["max_softmax"][0] == 1
    with pytest.raises(ValueError, match="temperature > 0"):
        open_scores(np.zeros((1, 2)), temperature=0.0)
    with pytest.raises(ValueError, match="labels start at 0"):
        oscr([0.1, 0.2], [-1, 0], [0, -1])  # OSCR needs predictions before rejection


def test_a_million_scores_take_seconds() -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(-1, 5, 1_000_000)
    score = rng.normal(size=1_000_000) + (target >= 0)
    # Two unit normals one apart: AUROC = Phi(1 / sqrt 2).
    exact = 0.5 * (1 + math.erf(0.5))
    assert open_set_metrics(score, target)["auroc"] == pytest.approx(exact, abs=2e-3)
    assert oscr(score, np.maximum(target, 0), target).area == pytest.approx(exact, abs=2e-3)
