"""What every metric does with its arguments: to numpy, one shape, no NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

UNKNOWN = -1
"""Label of an image of an open class, and the prediction for a rejected image."""


def to_numpy(value: Any) -> NDArray[Any]:
    """numpy view of an array, sequence or torch tensor (any device, any dtype)."""
    if hasattr(value, "detach"):
        value = value.detach()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # numpy has no bfloat16
        value = value.cpu().numpy()
    return np.asarray(value)


def as_scores(value: Any, where: str, *, ndim: int = 1) -> FloatArray:
    """float64 copy-if-needed of scores or logits; infinities are ordered, NaN is refused.

    Raises:
        ValueError: wrong number of dimensions, not real numbers, or a NaN among them.
    """
    array = to_numpy(value)
    if array.size == 0:
        array = array.astype(np.float64)
    if array.ndim != ndim or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{where}: expected {ndim}-D real numbers, got shape {array.shape} of {array.dtype}"
        )
    scores = array.astype(np.float64, copy=False)
    if np.isnan(scores).any():
        raise ValueError(f"{where}: {int(np.isnan(scores).sum())} of {scores.size} values are NaN")
    return scores


def as_labels(
    value: Any,
    where: str,
    *,
    size: int | None = None,
    low: int = UNKNOWN,
    below: int | None = None,
) -> IntArray:
    """int64 labels, checked to be whole numbers >= low and, where these are given, < below and
    as many as size.

    Raises:
        ValueError: not 1-D, not integers, a label out of range, or another length than size.
    """
    array = to_numpy(value)
    if array.size == 0:
        array = array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise ValueError(
            f"{where}: expected 1-D integers, got shape {array.shape} of {array.dtype}"
        )
    labels = array.astype(np.int64, copy=False)
    if size is not None and len(labels) != size:
        raise ValueError(f"{where}: expected {size} labels, got {len(labels)}")
    if len(labels) and labels.min() < low:
        raise ValueError(f"{where}: labels start at {low}, got {labels.min()}")
    if below is not None and len(labels) and labels.max() >= below:
        raise ValueError(f"{where}: expected labels in [{low}, {below}), got {labels.max()}")
    return labels


def ratio(part: float, whole: float) -> float:
    """part / whole, and nan for nothing out of nothing."""
    return float(part) / float(whole) if whole else float("nan")
