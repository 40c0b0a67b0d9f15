"""Threshold-free open-set metrics. Higher scores mean known, and open images carry label -1."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import auc, average_precision_score, roc_auc_score, roc_curve

from .arrays import BoolArray, FloatArray, as_labels, as_scores
from .threshold import keep_fraction

NAN = float("nan")


class Oscr(NamedTuple):
    """Open-set classification rate: the area, and the curve it lies under."""

    area: float
    fpr: FloatArray
    """(T,) fraction of open images accepted at each distinct score, rising from 0 to 1."""
    ccr: FloatArray
    """(T,) fraction of known images accepted and classified right, from 0 to the accuracy."""


def _ranks(score: FloatArray) -> FloatArray:
    """Dense ranks: what every metric here depends on, and finite where scores may be infinite."""
    return np.unique(score, return_inverse=True)[1].astype(np.float64)


# With the points on straight stretches too, or what is read off between them comes out too high.
_curve = partial(roc_curve, drop_intermediate=False)


def _split(score: Any, target: Any, where: str) -> tuple[FloatArray, BoolArray]:
    s = as_scores(score, f"{where}: score")
    return s, as_labels(target, f"{where}: target", size=len(s)) >= 0


def open_set_metrics(score: Any, target: Any) -> dict[str, float]:
    """How well a score separates known from open images.

    Args:
        score: (N,) higher means known. target: (N,) class, -1 = open.

    Returns:
        "auroc": area under the ROC curve, known positive (the same with open positive).
        "fpr95": fraction of open images accepted at the highest threshold that accepts at
        least 95 % of the known ones (known positive); lower is better.
        "tnr95": 1 - fpr95, the fraction of open images rejected there.
        "fpr95_open": the same with open positive, as OpenOOD counts: fraction of known images
        rejected at the lowest threshold that rejects at least 95 % of the open ones.
        "aupr_in": average precision with known as the positive class.
        "aupr_out": average precision with open as the positive class.
        All nan when either known or open images are missing.

    Raises:
        ValueError: NaN scores or lengths that differ.
    """
    s, known = _split(score, target, "open_set_metrics")
    if known.all() or not known.any():
        names = ("auroc", "fpr95", "tnr95", "fpr95_open", "aupr_in", "aupr_out")
        return dict.fromkeys(names, NAN)
    ranks, accepted = _ranks(s), s[~known] >= keep_fraction(s[known], 0.95)
    return {
        "auroc": float(roc_auc_score(known, ranks)),
        "fpr95": float(accepted.mean()),
        "tnr95": float((~accepted).mean()),
        "fpr95_open": float((s[known] <= -keep_fraction(-s[~known], 0.95)).mean()),
        "aupr_in": float(average_precision_score(known, ranks)),
        "aupr_out": float(average_precision_score(~known, -ranks)),
    }


def auroc(score: Any, target: Any) -> float:
    """The area under the ROC curve of `open_set_metrics` alone, in a third of its time.

    Args:
        score: (N,) higher means known. target: (N,) class, -1 = open.

    Raises:
        ValueError: NaN scores or lengths that differ.
    """
    s, known = _split(score, target, "auroc")
    if known.all() or not known.any():
        return NAN
    return float(roc_auc_score(known, _ranks(s)))


def auroc_gain(score: Any, other: Any, target: Any) -> tuple[float, float]:
    """By how much the AUROC of one score is above that of another on the same images, and the
    standard error of that difference (DeLong et al. 1988).

    Each image's placement is the share of the other kind that it lies on the right side of, ties by
    half. The AUROC is the mean placement of either kind, and its variance the sum of both variances
    of the mean: of the differences of placements, where two scores are compared.

    Args:
        score, other: (N,) higher means known. target: (N,) class, -1 = open.

    Returns:
        (gain, standard error); both nan when either known or open images are missing, the error
        where there is only one of a kind.

    Raises:
        ValueError: NaN scores or lengths that differ.
    """
    parts = []
    for each in (score, other):
        s, known = _split(each, target, "auroc_gain")
        if known.all() or not known.any():
            return NAN, NAN
        parts.append((_placements(s[known], s[~known]), 1 - _placements(s[~known], s[known])))
    gaps = [a - b for a, b in zip(*parts, strict=True)]
    variance = sum(gap.var(ddof=1) / len(gap) if len(gap) > 1 else NAN for gap in gaps)
    return float(gaps[0].mean()), math.sqrt(variance)


def _placements(score: FloatArray, others: FloatArray) -> FloatArray:
    """Of each score, how many of the others lie below, those level with it by half; as a share."""
    ordered = np.sort(others)
    below, to = (np.searchsorted(ordered, score, side) for side in ("left", "right"))
    return np.asarray((below + to) / 2 / len(ordered))


def roc_points(score: Any, target: Any) -> tuple[FloatArray, FloatArray]:
    """(fpr, tpr) of the ROC curve, known positive: a point for each distinct score, and the origin.

    Empty without known or without open images.

    Args:
        score: (N,) higher means known. target: (N,) class, -1 = open.

    Returns:
        float64 (T,) each.

    Raises:
        ValueError: lengths that differ, or NaN among the scores.
    """
    s, known = _split(score, target, "roc_points")
    if known.all() or not known.any():
        return np.empty(0), np.empty(0)
    fpr, tpr, _ = _curve(known, _ranks(s))
    return fpr, tpr


def oscr(score: Any, pred_closed: Any, target: Any) -> Oscr:
    """Open-set classification rate (Dhamija et al. 2018): correct classification against fpr.

    At each threshold, ccr = knowns accepted and classified right / all knowns, and fpr = open
    images accepted / all open images. As ccr is the accuracy times the true positive rate of
    the rightly classified knowns, the area is that accuracy times their AUROC. Hence it never
    exceeds the closed-set accuracy nor the AUROC. The area is what Wang et al. (NeurIPS 2022) call
    OpenAUC: the probability that a known image is classified right and ranked above an open one.

    Args:
        score: (N,) higher means known. pred_closed: (N,) class before rejection.
        target: (N,) class, -1 = open.

    Returns:
        Oscr(area, fpr, ccr); area nan and an empty curve without known or without open images.

    Raises:
        ValueError: lengths that differ, NaN among the scores, or a predicted class below 0.
    """
    s, known = _split(score, target, "oscr")
    pred = as_labels(pred_closed, "oscr: pred_closed", size=len(s), low=0)
    if known.all() or not known.any():
        return Oscr(NAN, np.empty(0), np.empty(0))
    right = known & (pred == as_labels(target, "oscr: target"))
    if not right.any():
        count = np.unique(-s[~known], return_counts=True)[1]
        fpr = np.append(0.0, count.cumsum() / count.sum())
        return Oscr(0.0, fpr, np.zeros(len(fpr)))
    used = right | ~known
    fpr, tpr, _ = _curve(right[used], _ranks(s[used]))
    ccr = tpr * (right.sum() / known.sum())
    return Oscr(float(auc(fpr, ccr)), fpr, ccr)
