"""The open-set F-measure of the OLTR literature, under both of its rules.

Counts: TP = known and predicted right; FN = open and not rejected; FP = known and predicted
wrong. The rules differ in whether a *rejected* known is such an FP:

- "oltr2019" (the paper): it is not, so rejecting knowns costs only the TP among them, and F
  tends to rise with the threshold all the way: F = 2 TP / (2 TP + FP_accepted + FN).
- "oltr2020" (the released code since January 2020): it is, so F = 2 TP / (TP + N_known + FN).

Both depend on the ratio of open to known images and on the threshold: compare F only at the
same ratio, and look at the curve.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import BoolArray, FloatArray, IntArray, as_labels, as_scores, ratio

F_RULES = ("oltr2019", "oltr2020")


def check_f_rule(rule: str, where: str) -> None:
    if rule not in F_RULES:
        raise ValueError(f"{where}: expected rule 'oltr2019' or 'oltr2020', got {rule!r}")


def f_measure(pred: Any, target: Any, rule: str = "oltr2020") -> float:
    """F-measure of predictions in which rejected images carry -1.

    Args:
        pred: (N,) predicted class, -1 = rejected.
        target: (N,) true class, -1 = open.
        rule: "oltr2019" or "oltr2020", see the module's text.

    Returns:
        F in 0..1. Without open images FN is 0. nan when the denominator is 0 (nothing known
        and no open image accepted).

    Raises:
        ValueError: no such rule, lengths that differ, or labels that are not integers from -1 on.
    """
    check_f_rule(rule, "f_measure")
    t = as_labels(target, "f_measure: target")
    p = as_labels(pred, "f_measure: pred", size=len(t))
    known, accepted = t >= 0, p >= 0
    true_pos = int((known & (p == t)).sum())
    false_neg = int((~known & accepted).sum())
    positives = int(known.sum() if rule == "oltr2020" else (known & accepted).sum())
    return ratio(2 * true_pos, true_pos + positives + false_neg)


def accepted_counts(values: FloatArray, thresholds: FloatArray) -> IntArray:
    """How many values are >= each threshold: one sort, one binary search a threshold."""
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def f_from_scores(
    score_known: FloatArray,
    correct: BoolArray,
    score_open: FloatArray,
    thresholds: FloatArray,
    rule: str,
) -> FloatArray:
    """F at each threshold when every score below it is rejected."""
    true_pos = accepted_counts(score_known[correct], thresholds)
    false_neg = accepted_counts(score_open, thresholds)
    if rule == "oltr2020":
        positives = np.full(len(thresholds), len(score_known))
    else:
        positives = accepted_counts(score_known, thresholds)
    with np.errstate(invalid="ignore"):
        f: FloatArray = 2 * true_pos / (true_pos + positives + false_neg)
    return f


def f_curve(score: Any, pred_closed: Any, target: Any, rule: str, thresholds: Any) -> FloatArray:
    """F-measure at many thresholds.

    Args:
        score: (N,) higher means known; an image is rejected when score < threshold.
        pred_closed: (N,) predicted class before any rejection.
        target: (N,) true class, -1 = open.
        rule: "oltr2019" or "oltr2020".
        thresholds: (T,) in any order.

    Returns:
        (T,) equal to `f_measure(where(score >= t, pred_closed, -1), target, rule)` for each t.

    Raises:
        ValueError: no such rule, lengths that differ, NaN among scores or thresholds, or a
            predicted class below 0.
    """
    check_f_rule(rule, "f_curve")
    s = as_scores(score, "f_curve: score")
    t = as_labels(target, "f_curve: target", size=len(s))
    p = as_labels(pred_closed, "f_curve: pred_closed", size=len(s), low=0)
    known = t >= 0
    levels = as_scores(thresholds, "f_curve: thresholds")
    return f_from_scores(s[known], (p == t)[known], s[~known], levels, rule)
