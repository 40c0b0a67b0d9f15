"""Accuracy by how many training images a class had: many-, medium- and few-shot."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import f1_score

from .arrays import BoolArray, FloatArray, IntArray, as_labels, ratio

SHOT_NAMES = ("many", "medium", "few")
Convention = str | tuple[int, int]


def shot_groups(train_counts: Any, convention: Convention = "oltr") -> dict[str, BoolArray]:
    """Which classes are many-, medium- and few-shot. Every class is in exactly one group.

    Args:
        train_counts: (C,) training images of each class. A class with none is few-shot.
        convention: "oltr" (many >= 100, few <= 20: the released OLTR code), "decoupling"
            (many > 100, few < 20: Kang et al. 2020), or bounds (m, f) read like the
            second: many > m, few < f.

    Returns:
        bool (C,) masks under "many", "medium" and "few".

    Raises:
        ValueError: unknown convention, bounds that overlap, or negative counts.
    """
    counts = as_labels(train_counts, "shot_groups: train_counts", low=0)
    if convention == "oltr":
        many, few = counts >= 100, counts <= 20
    elif convention == "decoupling":
        many, few = counts > 100, counts < 20
    elif not isinstance(convention, str) and len(convention) == 2:
        many_over, few_under = convention
        if few_under > many_over + 1:
            raise ValueError(
                f"shot_groups: expected few <= many + 1, got (many, few) = {tuple(convention)}"
            )
        many, few = counts > many_over, counts < few_under
    else:
        raise ValueError(
            f"shot_groups: expected 'oltr', 'decoupling' or (many, few), got {convention!r}"
        )
    return {"many": many, "medium": ~(many | few), "few": few}


def fitting_bounds(train_counts: Any) -> tuple[int, int] | None:
    """Bounds (m, f) as of `shot_groups` under which each group has near a third of the classes.

    Where classes have two different numbers of images the middle group stays empty.

    Args:
        train_counts: (C,) training images of each class.

    Returns:
        (m, f); None where all classes have the same number.

    Raises:
        ValueError: counts that are not whole numbers from 0 on.
    """
    counts = as_labels(train_counts, "fitting_bounds: train_counts", low=0)
    sizes, classes = np.unique(counts, return_counts=True)
    if len(sizes) < 3:
        return (int(sizes[1]) - 1, int(sizes[1])) if len(sizes) == 2 else None
    below = np.cumsum(classes) - classes  # classes of fewer images than this size
    few = 1 + int(np.argmin(abs(below[1:-1] - len(counts) / 3)))
    above = len(counts) - below - classes
    many = few + int(np.argmin(abs(above[few:-1] - len(counts) / 3)))
    return int(sizes[many]), int(sizes[few])


def class_accuracy(pred: IntArray, target: IntArray, num_classes: int) -> FloatArray:
    """(C,) share of each class's images predicted right; nan for a class without images.

    Raises:
        ValueError: a target (N,) outside 0..C-1, or another number of predictions.
    """
    target = as_labels(target, "class_accuracy: target", low=0)
    pred = as_labels(pred, "class_accuracy: pred", size=len(target))
    if len(target) and target.max() >= num_classes:
        raise ValueError(
            f"class_accuracy: expected target below {num_classes} classes, got {target.max()}"
        )
    images = np.bincount(target, minlength=num_classes)
    right = np.bincount(target[pred == target], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        accuracy: FloatArray = right / images
    return accuracy


def means_over_classes(accuracy: FloatArray) -> dict[str, float]:
    """Means of accuracies (C,) that weigh every class alike, and the lowest; nan without any."""
    if len(accuracy) == 0:
        return dict.fromkeys(("balanced", "geometric", "harmonic", "worst"), float("nan"))
    never = not accuracy.all()
    return {
        "balanced": float(accuracy.mean()),
        "geometric": 0.0 if never else float(np.exp(np.log(accuracy).mean())),
        "harmonic": 0.0 if never else float(1 / (1 / accuracy).mean()),
        "worst": float(accuracy.min()),
    }


def _macro_f1(pred: IntArray, target: IntArray) -> float:
    if len(target) == 0:
        return float("nan")
    tested = np.unique(target)
    return float(f1_score(target, pred, labels=tested, average="macro", zero_division=0))


def shot_accuracy(
    pred: Any, target: Any, train_counts: Any, convention: Convention = "oltr"
) -> dict[str, Any]:
    """Closed-set accuracy overall and by shot group.

    Args:
        pred: (N,) predicted class, or -1 for a rejected image, which counts as wrong.
        target: (N,) true class; rows of open images (-1) are left out.
        train_counts: (C,) training images of each class.
        convention: see `shot_groups`.

    Returns:
        "many", "medium", "few": mean of the per-class accuracies in the group (nan if it holds
        no class with test images); "overall": mean over images; "per_class": (C,) array; and over
        the classes with test images "balanced": mean, "geometric" and "harmonic" mean (0 as soon
        as one class is never right), "worst": the lowest; "macro_f1": mean over these classes of
        the F1 of each, in which what is predicted as a class and is none of it counts too.

    Raises:
        ValueError: lengths differ, or a label lies outside -1..C-1.
    """
    counts = as_labels(train_counts, "shot_accuracy: train_counts", low=0)
    t = as_labels(target, "shot_accuracy: target")
    p = as_labels(pred, "shot_accuracy: pred", size=len(t))
    for name, labels in (("target", t), ("pred", p)):
        if len(labels) and labels.max() >= len(counts):
            raise ValueError(
                f"shot_accuracy: expected {name} below {len(counts)} classes, got {labels.max()}"
            )
    known = t >= 0
    p, t = p[known], t[known]
    per_class = class_accuracy(p, t, len(counts))
    result: dict[str, Any] = {}
    for name, members in shot_groups(counts, convention).items():
        tested = per_class[members & ~np.isnan(per_class)]
        result[name] = ratio(tested.sum(), len(tested))
    result["overall"] = ratio((p == t).sum(), len(t))
    tested = per_class[~np.isnan(per_class)]
    result.update(means_over_classes(tested))
    result["macro_f1"] = _macro_f1(p, t)
    result["per_class"] = per_class
    return result
