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

__all__ = ["answer_dtype", "check_parameters", "checked_rows", "sorted_classes"]

NUMBERS = "iuf"
LARGEST = np.iinfo(np.int64).max


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
    jobs = estimator.n_jobs
    if jobs is not None and not (isinstance(jobs, Integral) and int(jobs) != 0):
        raise wrong("n_jobs", "None or an integer other than 0")


def checked_rows(
    estimator: Any, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool
) -> tuple[NDArray[Any], NDArray[Any], Tensor]:
    """Rows (N, D), labels (N,) and weights (N,) float64 of those that have one."""
    rows, labels = validate_data(estimator, X, y, dtype=[np.float64, np.float32], reset=reset)
    check_classification_targets(labels)
    weight = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
    there = weight > 0
    if not there.any():
        raise ValueError("OLTRClassifier: expected a row of positive weight, got none")
    if not there.all():
        rows, labels, weight = rows[there], labels[there], weight[there]
    return rows, labels, torch.from_numpy(weight)


def sorted_classes(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All labels of some parts once each, of the type of them all.

    Raises:
        TypeError: numbers and words, say, or integers that no type of integers holds together.
    """
    kinds = {NUMBERS if part.dtype.kind in NUMBERS else part.dtype.kind for part in parts}
    if len(kinds) > 1 and "O" not in kinds:
        told = " and ".join(dict.fromkeys(str(part.dtype) for part in parts))
        raise TypeError(f"OLTRClassifier: expected labels of one type, got {told}")
    dtype = _common([part.dtype for part in parts], parts)
    return np.unique(np.concatenate([part.astype(dtype) for part in parts]))


def answer_dtype(classes: NDArray[Any], label: Any) -> np.dtype[Any]:
    """Of answers, which are classes or the outlier label.

    Raises:
        TypeError: the label is of another type than the classes. ValueError: it is one of them.
    """
    found, kind = np.asarray(label), classes.dtype.kind
    kinds = {"i": "iu", "u": "iu", "f": NUMBERS, "U": "U", "S": "S", "b": "b"}.get(kind)
    if kinds is not None and (found.ndim > 0 or found.dtype.kind not in kinds):
        raise TypeError(
            f"OLTRClassifier: outlier_label: expected a label of the classes' type, "
            f"{classes.dtype}, got {label!r}"
        )
    if label in classes.tolist():
        raise ValueError(f"OLTRClassifier: outlier_label: {label!r} is one of the classes")
    return np.dtype(object) if kind == "O" else _common([classes.dtype, found.dtype], [classes])


def _common(dtypes: Sequence[np.dtype[Any]], parts: Sequence[NDArray[Any]]) -> np.dtype[Any]:
    """That of numpy, but for uint64 beside signed integers, which it makes floats."""
    dtype = np.result_type(*dtypes)
    if dtype.kind != "f" or any(each.kind not in "iu" for each in dtypes):
        return dtype
    if any(part.max(initial=0) > LARGEST for part in parts):
        raise TypeError(
            f"OLTRClassifier: labels above {LARGEST} and signed ones have no type of integers"
        )
    return np.dtype(np.int64)
