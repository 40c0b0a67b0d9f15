"""What `OLTRClassifier` is told: parameters, rows, labels."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

__all__ = [
    "answer_dtype",
    "check_jobs",
    "check_parameters",
    "checked_rows",
    "of_one_dtype",
    "sorted_classes",
]

NUMBERS = "iuf"
LARGEST = np.iinfo(np.int64).max
EXACT = 2**53
"""Up to which float64 tells integers apart."""
HEAVIEST = 1e280
"""Of weights: sums of what they weigh stay finite."""


def check_parameters(estimator: Any) -> None:
    """Raises ValueError for one that does not hold."""

    def wrong(name: str, expected: str) -> ValueError:
        return ValueError(
            f"OLTRClassifier: {name}: expected {expected}, got {getattr(estimator, name)!r}"
        )

    recall = estimator.known_recall
    if not (isinstance(recall, Real) and 0 < float(recall) < 1):
        raise wrong("known_recall", "a number between 0 and 1")
    for name in ("batch_size", "bank_size"):
        value = getattr(estimator, name)
        if not isinstance(value, Integral) or int(value) < 1:
            raise wrong(name, "a positive integer")
    epochs = estimator.epochs
    if epochs != "auto" and not (isinstance(epochs, Integral) and int(epochs) >= 1):
        raise wrong("epochs", "'auto' or a positive integer")
    share = estimator.test_prior
    if share != "balanced" and not (isinstance(share, Real) and 0 <= float(share) <= 2):
        raise wrong("test_prior", "'balanced' or a number from 0 to 2")
    check_jobs(estimator.n_jobs)


def check_jobs(jobs: Any) -> None:
    """Raises ValueError for an `n_jobs` that does not hold."""
    if jobs is not None and not (isinstance(jobs, Integral) and int(jobs) != 0):
        raise ValueError(
            f"OLTRClassifier: n_jobs: expected None or an integer other than 0, got {jobs!r}"
        )


def checked_rows(
    estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool
) -> tuple[NDArray[Any], NDArray[Any], Tensor]:
    """Rows (N, D), labels (N,) and weights (N,) float64 of those that have one."""
    rows, labels = validate_data(estimator, X, y, dtype=[np.float64, np.float32], reset=reset)
    check_classification_targets(labels)
    weight = _check_sample_weight(  # a copy: torch warns of memory that may only be read
        sample_weight, rows, dtype=np.float64, ensure_non_negative=True, copy=True
    )
    there = weight > 0
    if not there.any():
        raise ValueError("OLTRClassifier: expected a row of positive weight, got none")
    if weight.max() > HEAVIEST:
        raise ValueError(
            f"OLTRClassifier: sample_weight: expected weights up to {HEAVIEST:g}, "
            f"got {weight.max():g}"
        )
    if not there.all():
        rows, labels, weight = rows[there], labels[there], weight[there]
    return rows, labels, torch.from_numpy(weight)


def sorted_classes(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All labels of some parts once each, of the type of them all.

    Raises:
        TypeError: numbers and words, say, or as `of_one_dtype`.
    """
    kinds = {NUMBERS if part.dtype.kind in NUMBERS else part.dtype.kind for part in parts}
    if len(kinds) > 1 and "O" not in kinds:
        told = " and ".join(dict.fromkeys(str(part.dtype) for part in parts))
        raise TypeError(f"OLTRClassifier: expected labels of one type, got {told}")
    return np.unique(np.concatenate(of_one_dtype(parts)))


def of_one_dtype(parts: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Labels of the type of them all, which tells apart what theirs do; numpy's functions on two
    arrays would go by way of float64.

    Raises:
        TypeError: no type holds them together.
    """
    dtype = _common([part.dtype for part in parts], parts)
    return [part.astype(dtype) for part in parts]


def answer_dtype(classes: NDArray[Any], label: Any) -> np.dtype[Any]:
    """Of answers, which are classes or the outlier label.

    Raises:
        TypeError: the label is of another type than the classes. ValueError: it is one of them.
    """
    found, kind = np.asarray(label), classes.dtype.kind
    kinds = {"i": "iu", "u": "iu", "f": NUMBERS, "T": "TU"}.get(kind, kind)
    words = kind == "O" and all(isinstance(each, str) for each in classes)
    fits = isinstance(label, str) if words else kind == "O" or found.dtype.kind in kinds
    if not fits or (kind != "O" and found.ndim > 0):
        raise TypeError(
            f"OLTRClassifier: outlier_label: expected a label of the classes' type, "
            f"{'str' if words else classes.dtype}, got {label!r}"
        )
    dtype = np.dtype(object)
    if kind != "O":
        dtype = _common([classes.dtype, found.dtype], [classes, found])
    if label in classes.tolist() or (kind in "mM" and found in classes):  # nanoseconds are ints
        raise ValueError(f"OLTRClassifier: outlier_label: {label!r} is one of the classes")
    return dtype


def _common(dtypes: Sequence[np.dtype[Any]], parts: Sequence[NDArray[Any]]) -> np.dtype[Any]:
    """That of numpy, but for uint64 beside signed integers, which it makes floats."""
    dtype = np.result_type(*dtypes)
    if dtype.kind != "f":
        return dtype
    if any(each.kind not in "iu" for each in dtypes):
        whole = [part for part in parts if part.dtype.kind in "iu"]
        if any(part.max(initial=0) > EXACT or part.min(initial=0) < -EXACT for part in whole):
            raise TypeError(
                f"OLTRClassifier: integers as labels above {EXACT} and floats have no type of "
                f"numbers that tells them apart"
            )
        return dtype
    if any(part.max(initial=0) > LARGEST for part in parts):
        raise TypeError(
            f"OLTRClassifier: labels above {LARGEST} and signed ones have no type of integers"
        )
    return np.dtype(np.int64)
