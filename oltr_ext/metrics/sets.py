"""Prediction sets of many rows, and how often they hold the true class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .arrays import BoolArray, FloatArray, IntArray, as_labels, ratio
from .shots import Convention, shot_accuracy


@dataclass(frozen=True, eq=False)
class PredictionSet:
    """The classes that one row may be of, likeliest first."""

    labels: NDArray[Any]
    """(K,) names of classes; K may be 0."""
    probability: FloatArray
    """(K,) that the model gives each."""
    unknown: bool
    """Whether the row scores below the model's threshold for "unknown". The set says what it would
    be if it were of a known class."""

    def __len__(self) -> int:
        return len(self.labels)

    def __contains__(self, label: object) -> bool:
        return bool((self.labels == label).any())


@dataclass(frozen=True, eq=False)
class PredictionSets(Sequence[PredictionSet]):
    """Sets of N rows, kept as their members alone: row n has those from ``indptr[n]`` to
    ``indptr[n + 1]``, likeliest first, as in `scipy.sparse.csr_array`."""

    indptr: IntArray
    """(N + 1,)"""
    indices: IntArray
    """(total,) places in `classes`."""
    probability: FloatArray
    """(total,) float64."""
    unknown: BoolArray
    """(N,), see `PredictionSet`."""
    classes: NDArray[Any]
    """(C,) names."""
    always: BoolArray
    """(C,) classes that are in every set, as there were too few calibration rows for them."""
    alpha: float
    method: str

    @overload
    def __getitem__(self, index: int) -> PredictionSet: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[PredictionSet]: ...
    def __getitem__(self, index: int | slice) -> PredictionSet | Sequence[PredictionSet]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        n = range(len(self))[index]
        part = slice(self.indptr[n], self.indptr[n + 1])
        labels = self.classes[self.indices[part]]
        return PredictionSet(labels, self.probability[part], bool(self.unknown[n]))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __repr__(self) -> str:
        some = f"{len(self)} rows, {self.size.mean():.3g} classes each" if len(self) else "no rows"
        return f"PredictionSets({some}, alpha={self.alpha:g}, method={self.method!r})"

    @property
    def size(self) -> IntArray:
        """(N,) classes in each set."""
        return np.diff(self.indptr)

    def covers(self, target: Any) -> BoolArray:
        """(N,) whether each set holds the true class; False for an open row.

        Args:
            target: (N,) places in `classes`, -1 = open.
        """
        t = as_labels(target, "covers: target", size=len(self))
        found = np.zeros(len(self), np.bool_)
        row = np.repeat(np.arange(len(self)), self.size)
        found[row[self.indices == t[row]]] = True
        return found


def set_coverage(
    covered: Any, size: Any, target: Any, train_counts: Any, convention: Convention = "oltr"
) -> dict[str, float]:
    """How often sets hold the true class, and how large they are, over rows of known classes.

    Args:
        covered: (N,) bool, whether each set holds the true class. size: (N,) classes in it.
        target: (N,) class, -1 = open. train_counts, convention: see `shot_groups`.

    Returns:
        "coverage": mean over rows; "macro": mean over classes; "many", "medium", "few": over the
        classes of a group; "worst": of the class least covered; "size": mean, over rows; "empty":
        share of rows without any class. nan where there is no row to say.

    Raises:
        ValueError: lengths that differ, a size below 0, a class that `train_counts` has not, or no
            such convention.
    """
    t = as_labels(target, "set_coverage: target")
    whether = np.asarray(covered, np.bool_)
    if whether.shape != t.shape:
        raise ValueError(f"set_coverage: covered: expected shape {t.shape}, got {whether.shape}")
    inside = np.where(whether, t, -1)
    found = shot_accuracy(inside, t, train_counts, convention)
    sizes = as_labels(size, "set_coverage: size", size=len(t), low=0)[t >= 0]
    return {
        "coverage": found["overall"],
        "macro": found["balanced"],
        **{name: found[name] for name in ("many", "medium", "few", "worst")},
        "size": ratio(float(sizes.sum()), len(sizes)),
        "empty": ratio(float((sizes == 0).sum()), len(sizes)),
    }
