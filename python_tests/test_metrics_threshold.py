"""F-measure under both rules, its curve, and threshold calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oltr_ext.metrics import F_RULES, calibrate_threshold, f_curve, f_measure
from oltr_ext.metrics.threshold import keep_fraction

SEEDED = settings(deadline=None, derandomize=True)

LABELS = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=40)
SCORES = st.lists(st.integers(-8, 8).map(lambda v: v / 8), min_size=1, max_size=40)


def counted(pred: list[int], target: list[int]) -> dict[str, int]:
    """The counts of the F-measure, image by image."""
    count = dict.fromkeys(("tp", "fp_accepted", "fp_rejected", "fn", "known"), 0)
    for p, t in zip(pred, target, strict=True):
        if t == -1:
            count["fn"] += p != -1
            continue
        count["known"] += 1
        count["tp"] += p == t
        count["fp_accepted"] += p not in (t, -1)
        count["fp_rejected"] += p == -1
    return count


def test_f_by_hand() -> None:
    # 5 known: 3 right, 1 wrong, 1 rejected. 4 open: 1 rejected, 3 accepted.
    # 2019: precision 3/4, recall 3/6 -> 2*3 / (6 + 1 + 3) = .6
    # 2020: precision 3/5, recall 3/6 -> 2*3 / (3 + 5 + 3) = 6/11
    target = [0, 0, 1, 1, 2, -1, -1, -1, -1]
    pred = [0, 0, 1, 2, -1, -1, 0, 1, 2]
    assert f_measure(pred, target, "oltr2019") == pytest.approx(0.6)
    assert f_measure(torch.tensor(pred), torch.tensor(target), "oltr2020") == pytest.approx(6 / 11)


@SEEDED
@given(LABELS)
def test_f_matches_precision_and_recall(pairs: list[tuple[int, int]]) -> None:
    pred, target = [p for p, _ in pairs], [t for _, t in pairs]
    n = counted(pred, target)
    for rule in F_RULES:
        false_pos = n["fp_accepted"] + (n["fp_rejected"] if rule == "oltr2020" else 0)
        f = f_measure(pred, target, rule)
        if n["tp"] == 0:
            assert f == 0 or (math.isnan(f) and false_pos + n["fn"] == 0)
            continue
        precision = n["tp"] / (n["tp"] + false_pos)
        recall = n["tp"] / (n["tp"] + n["fn"])
        assert f == pytest.approx(2 * precision * recall / (precision + recall))
    if n["known"]:
        formula = 2 * n["tp"] / (n["tp"] + n["known"] + n["fn"])
        assert f_measure(pred, target, "oltr2020") == pytest.approx(formula)


@SEEDED
@given(LABELS)
def test_2020_never_exceeds_2019_and_agrees_without_rejected_knowns(
    pairs: list[tuple[int, int]],
) -> None:
    pred, target = [p for p, _ in pairs], [t for _, t in pairs]
    n = counted(pred, target)
    assume(n["known"] and n["known"] > n["fp_rejected"])
    old, new = f_measure(pred, target, "oltr2019"), f_measure(pred, target, "oltr2020")
    assert new <= old
    if n["fp_rejected"] == 0:
        assert new == old


@SEEDED
@given(LABELS, st.data())
def test_curve_is_f_at_each_threshold(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    pred = np.array([max(p, 0) for p, _ in pairs], dtype=np.int64)
    target = np.array([t for _, t in pairs], dtype=np.int64)
    score = data.draw(arrays(np.float64, len(pairs), elements=st.integers(-3, 3).map(float)))
    levels = np.array([2.0, -9.0, 0.0, 0.5, 9.0, -3.0])
    for rule in F_RULES:
        curve = f_curve(score, pred, target, rule, levels)
        direct = [f_measure(np.where(score >= t, pred, -1), target, rule) for t in levels]
        np.testing.assert_array_equal(curve, direct)


def test_2019_rises_where_2020_falls_when_knowns_are_rejected() -> None:
    # The user's complaint about the old rule: rejecting ever more knowns looks ever better.
    score, pred = [0.1, 0.2, 0.3, 0.4, 0.15, 0.25], [1, 1, 0, 0, 0, 0]
    target, levels = [0, 0, 0, 0, -1, -1], [0.0, 0.16, 0.26]
    assert (np.diff(f_curve(score, pred, target, "oltr2019", levels)) > 0).all()
    assert f_measure([0] * 3 + [-1] * 7, [0] * 10, "oltr2019") == 1.0
    assert f_measure([0] * 3 + [-1] * 7, [0] * 10, "oltr2020") == pytest.approx(6 / 13)


def test_known_recall_by_hand() -> None:
    scores = np.arange(20) / 20
    assert calibrate_threshold(scores, value=0.95) == 0.05  # 19 of 20 stay
    assert calibrate_threshold(scores, value=1.0) == 0.0
    assert calibrate_threshold(scores, value=0.55) == 0.45  # 0.55 * 20 is 11.000000000000002
    assert calibrate_threshold([0.5, 0.5, 0.5, 0.9], value=0.25) == 0.9
    assert calibrate_threshold([0.5, 0.5, 0.5, 0.9], value=0.3) == 0.5  # ties stay together
    assert keep_fraction(np.array([3.0, 1, 2]), 0.5, np.array([1.0, 3, 2])) == 2  # half of 6
    for count in range(2, 100):  # weights that sum to 1 round, and keep what the rows would
        scores, alike = np.arange(float(count)), np.full(count, 1 / count)
        for share in (0.6, 0.8, 0.9, 0.95):
            assert keep_fraction(scores, share, alike) == keep_fraction(scores, share)


def test_of_equally_good_thresholds_the_lowest() -> None:
    opened = [3, 5, 1, 6, 8, 2]  # 4 and 7 are as good, but not in floating point
    assert calibrate_threshold([7, 0, 4], rule="balanced", score_open=opened) == 4


@SEEDED
@given(SCORES, st.floats(0.01, 1.0))
def test_known_recall_keeps_its_promise(scores: list[float], value: float) -> None:
    known = np.array(scores)
    threshold = calibrate_threshold(known, value=value)
    assert threshold in known
    assert (known >= threshold).mean() >= value
    higher = known[known > threshold]
    assert all((known >= t).mean() < value for t in higher)


@SEEDED
@given(SCORES, SCORES, st.data())
def test_f_and_balanced_rules_find_the_best_threshold(
    known: list[float], opened: list[float], data: st.DataObject
) -> None:
    right = data.draw(arrays(np.bool_, len(known)))
    score = np.array(known + opened)
    target = np.array([0] * len(known) + [-1] * len(opened))
    pred = np.concatenate([np.where(right, 0, 1), np.zeros(len(opened), dtype=int)])
    for f_rule in F_RULES:
        threshold = calibrate_threshold(
            known, rule="f_measure", score_open=opened, correct=right, f_rule=f_rule
        )
        f_of = {t: f_measure(np.where(score >= t, pred, -1), target, f_rule) for t in score}
        best = max(f_of.values())
        assert threshold == min(t for t, f in f_of.items() if f == best)
    threshold = calibrate_threshold(known, rule="balanced", score_open=opened)
    kept, cut = np.array(known), np.array(opened)
    gain = {t: (kept >= t).sum() * len(cut) + (cut < t).sum() * len(kept) for t in score}
    assert threshold == min(t for t, g in gain.items() if g == max(gain.values()))


def test_float32_scores_give_an_exact_float32_threshold() -> None:
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    threshold = calibrate_threshold(scores, value=0.9)
    assert int((scores >= torch.tensor(threshold, dtype=torch.float32)).sum()) == 900


def test_a_million_scores_calibrate_at_once() -> None:
    rng = np.random.default_rng(2)
    known, opened = rng.normal(1, 1, 700_000), rng.normal(-1, 1, 300_000)
    # Equal spreads: known kept plus open rejected is greatest halfway between the means.
    assert calibrate_threshold(known, rule="balanced", score_open=opened) == pytest.approx(
        0, abs=0.1
    )
    right = np.ones(len(known), dtype=bool)
    threshold = calibrate_threshold(known, rule="f_measure", score_open=opened, correct=right)
    assert -2 < threshold < 0  # knowns are the majority, so F favours keeping them


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"f_measure.*'f1'"):
        f_measure([0], [0], "f1")
    with pytest.raises(ValueError, match=r"f_curve: score.*NaN"):
        f_curve([math.nan], [0], [0], "oltr2020", [0.1])
    with pytest.raises(ValueError, match=r"score_known.*NaN"):
        calibrate_threshold([math.nan, 1.0])
    with pytest.raises(ValueError, match="expected scores of known images, got none"):
        calibrate_threshold([])
    with pytest.raises(ValueError, match=r"value in \(0, 1\], got 95"):
        calibrate_threshold([0.1], value=95)
    with pytest.raises(ValueError, match="'guess'"):
        calibrate_threshold([0.1], rule="guess")
    with pytest.raises(ValueError, match="expects score_open, got None"):
        calibrate_threshold([0.1], rule="balanced")
    with pytest.raises(ValueError, match="expects scores of open images, got none"):
        calibrate_threshold([0.1], rule="balanced", score_open=[])
    with pytest.raises(ValueError, match="expects correct, got None"):
        calibrate_threshold([0.1], rule="f_measure", score_open=[0.2])
    with pytest.raises(ValueError, match="1 booleans"):
        calibrate_threshold([0.1], rule="f_measure", score_open=[0.2], correct=[1])
