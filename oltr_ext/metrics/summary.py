"""All metrics of one model on one test set, as a dict that json.dump takes as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arrays import FloatArray, IntArray, as_labels, as_scores, to_numpy
from .fmeasure import F_RULES, f_curve, f_measure
from .openset import open_set_metrics, oscr, roc_points
from .scores import open_scores
from .shots import SHOT_NAMES, Convention, shot_accuracy, shot_groups

RELEASED_THRESHOLD = 0.1
"""The released OLTR code calls an image unknown when its max softmax is below this."""
CURVE_POINTS = 201


def evaluate(
    logits: Any,
    distance: Any | None,
    target: Any,
    train_counts: Any,
    *,
    convention: Convention = "oltr",
    thresholds: Mapping[str, float] | None = None,
    unknown: Any | None = None,
    scale: float = 10.0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """Closed-set and open-set results of a model, for every score it has.

    Args:
        logits: (N, C). distance: (N,) to the nearest centroid, or None for a head without memory.
        target: (N,) class, -1 = open; may hold no open image at all.
        train_counts: (C,) training images of each class.
        convention: of the shot groups, see `shot_groups`.
        thresholds: score name -> threshold calibrated on validation data.
        unknown: (N,) probability of "unknown", or None for a head that gives none.
        scale, temperature: see `open_scores`.

    Returns:
        Nested dict of str, int, float, list and None (None where a number is undefined):
        "samples" (known, open), "shots" (convention, group of each class, classes a group),
        "closed" (what `shot_accuracy` gives) and "scores": per score name "auroc", "fpr95",
        "tnr95", "aupr_in", "oscr" (known is positive), "fpr95_open", "aupr_out" (open is), the
        curves "roc" (fpr, tpr), "oscr_curve" (fpr, ccr) and "f_curve" (threshold, one list a
        rule), and "operating_points": "released" (max softmax < 0.1) and "calibrated", each
        with threshold, known_accepted, open_rejected, both F rules, the accuracies in which a
        rejected known counts as wrong, and "g_mean": the geometric mean of the balanced one of
        these and open_rejected.

    Raises:
        ValueError: as `open_scores`, shapes that differ, or a threshold for a score this model has
            not.
    """
    z = to_numpy(logits)
    scores = open_scores(z, distance, unknown, scale=scale, temperature=temperature)
    counts = as_labels(train_counts, "evaluate: train_counts", size=z.shape[1], low=0)
    return evaluate_answers(
        z.argmax(axis=1), scores, target, counts, convention=convention, thresholds=thresholds
    )


def evaluate_answers(
    pred: Any,
    scores: Mapping[str, Any],
    target: Any,
    train_counts: Any,
    *,
    convention: Convention = "oltr",
    thresholds: Mapping[str, float | FloatArray] | None = None,
    joined: int = 0,
) -> dict[str, Any]:
    """What `evaluate` gives, from each image's answer instead of its logits.

    Args:
        pred: (N,) predicted class before any rejection.
        scores: name -> (N,), higher means known; see `open_scores`.
        target, train_counts, convention: as in `evaluate`.
        thresholds: as in `evaluate`, or (N,) of a score, an image's own each.
        joined: how many further classes, C and on, may be predicted that are no image's target
            here. Such an answer is wrong for a known image, and accepts an open one.

    Raises:
        ValueError: NaN, lengths that differ, or a threshold for a score this model has not.
    """
    counts = as_labels(train_counts, "evaluate: train_counts", low=0)
    p = as_labels(pred, "evaluate: pred", low=0)
    t = as_labels(target, "evaluate: target", size=len(p))
    if joined and len(p) and p.max() >= len(counts) + joined:
        raise ValueError(
            f"evaluate: expected pred below {len(counts)} + {joined} classes, got {p.max()}"
        )
    scores = {name: as_scores(score, f"evaluate: {name}") for name, score in scores.items()}
    chosen = dict(thresholds or {})
    if not chosen.keys() <= scores.keys() or any(np.isnan(v).any() for v in chosen.values()):
        raise ValueError(
            f"evaluate: expected thresholds, not NaN, for some of {sorted(scores)}, got {chosen}"
        )
    groups = shot_groups(counts, convention)
    group = np.select([groups[name] for name in SHOT_NAMES], list(SHOT_NAMES), default="")
    result = {
        "samples": {"known": int((t >= 0).sum()), "open": int((t < 0).sum())},
        "shots": {
            "convention": convention if isinstance(convention, str) else _bounds(convention),
            "group": group.tolist(),
            "classes": {name: int(groups[name].sum()) for name in SHOT_NAMES},
        },
        "closed": shot_accuracy(_of_these(p, joined, counts), t, counts, convention),
        "scores": {},
    }
    for name, score in scores.items():
        points: dict[str, float | FloatArray] = {}
        if name == "max_softmax":
            points["released"] = RELEASED_THRESHOLD
        if name in chosen:
            points["calibrated"] = chosen[name]
        curve = oscr(score, p, t)
        roc = roc_points(score, t)
        result["scores"][name] = {
            **open_set_metrics(score, t),
            "oscr": curve.area,
            "roc": dict(zip(("fpr", "tpr"), _thin(*roc), strict=True)),
            "oscr_curve": dict(zip(("fpr", "ccr"), _thin(curve.fpr, curve.ccr), strict=True)),
            "f_curve": _f_curves(score, p, t),
            "operating_points": {
                key: _operating_point(score, p, t, counts, convention, level, joined)
                for key, level in points.items()
            },
        }
    cleaned: dict[str, Any] = json_ready(result)
    return cleaned


def json_ready(value: Any) -> Any:
    """The same value in plain Python types, with None for NaN and infinities (JSON has neither)."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [json_ready(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _of_these(pred: IntArray, joined: int, counts: IntArray) -> IntArray:
    """With -1, which is never right, for the classes beyond those of `counts`."""
    return np.where(pred < len(counts), pred, -1) if joined else pred


def _bounds(convention: Any) -> str:
    return f"many > {convention[0]}, few < {convention[1]}"


def _operating_point(
    score: FloatArray,
    pred: IntArray,
    target: IntArray,
    counts: IntArray,
    convention: Convention,
    threshold: float | FloatArray,
    joined: int,
) -> dict[str, Any]:
    """What happens at one threshold, or at one an image; the open-set numbers are nan without
    open images."""
    accepted, known = score >= threshold, target >= 0
    final = np.where(accepted, pred, -1)
    shots = shot_accuracy(_of_these(final, joined, counts), target, counts, convention)
    has_open = bool((~known).any())
    rejected = (~accepted[~known]).mean() if has_open else None
    return {
        "threshold": float(threshold) if np.ndim(threshold) == 0 else None,
        "known_accepted": accepted[known].mean() if known.any() else None,
        "open_rejected": rejected,
        **{rule: f_measure(final, target, rule) if has_open else None for rule in F_RULES},
        **{name: shots[name] for name in ("overall", *SHOT_NAMES, "balanced")},
        "g_mean": math.sqrt(shots["balanced"] * rejected) if has_open else None,
    }


def _f_curves(score: FloatArray, pred: IntArray, target: IntArray) -> dict[str, Any]:
    """Both F rules at thresholds between the lowest and the highest score, at its quantiles."""
    if len(score) == 0 or (target >= 0).all():
        return {"threshold": [], **{rule: [] for rule in F_RULES}}
    levels = np.quantile(score, np.linspace(0, 1, CURVE_POINTS), method="inverted_cdf")
    levels = np.unique(levels[np.isfinite(levels)])
    return {
        "threshold": levels,
        **{rule: f_curve(score, pred, target, rule, levels) for rule in F_RULES},
    }


def _thin(x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """At most CURVE_POINTS of a curve's own points, ends included."""
    if len(x) <= CURVE_POINTS:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, CURVE_POINTS).round().astype(int))
    return x[keep], y[keep]
