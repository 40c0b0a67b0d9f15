"""Classes that join an `OLTRClassifier` without training, are called otherwise, or go."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from oltr_ext.estimator.checks import checked_rows, of_one_dtype, sorted_classes
from oltr_ext.estimator.rows import shuffled_order
from oltr_ext.estimator.running import threads, whole_or_not
from oltr_ext.estimator.scaling import Scaling
from oltr_ext.estimator.training import class_statistics, part_of
from oltr_ext.nn import OLTRHead

__all__ = ["Joins"]


class Joins:
    """`enroll`, `rename` and `remove` of an estimator that has a head."""

    classes_: NDArray[Any]
    seen_: NDArray[np.int64]
    head_: OLTRHead
    n_jobs: int | None
    _scaling: Scaling
    _seed: int
    _bank: Tensor
    _bank_y: Tensor
    _bank_order: NDArray[np.uint64]
    _means: Tensor
    _total: Tensor
    _rows: Tensor
    _judged: Tensor
    _judged_y: Tensor
    _calibrated: int

    @whole_or_not
    def enroll(self, X: ArrayLike, y: ArrayLike) -> Any:
        """Let new classes join from a few rows of each, without training: see `Head.enroll`.

        What was learned stays, `offset_` and what it was found by too. A row counts as much as one
        did so far on average. `partial_fit` trains, and takes rows of classes that are there.

        Raises
        ------
        ValueError, TypeError : as `partial_fit`; a label that there were rows of; a model of one
            class, which has learned to tell nothing apart. It stays as it was.
        """
        check_is_fitted(self)
        rows, labels, weight = checked_rows(self, X, y, None, reset=False)
        together = sorted_classes([self.classes_, labels])
        before, labels = of_one_dtype([self.classes_[self.seen_], labels])
        there = np.intersect1d(labels, before).tolist()
        if there:
            raise ValueError(
                f"enroll: there were rows of class {there[0]!r}; partial_fit takes more of it"
            )
        if len(before) == 1:
            raise ValueError(
                "enroll: expected a model of two classes or more, got one; partial_fit learns anew"
            )
        self._check_outlier_label(together)
        weight *= float(self._total.sum() / self._rows.sum())
        fresh, which = np.unique(labels, return_inverse=True)
        first, x, y_new = len(before), self._scaling(rows), torch.from_numpy(which)
        means, total = class_statistics(x, y_new, weight, len(fresh))
        sorted_by_class = torch.from_numpy(np.argsort(which, kind="stable"))
        with threads(self.n_jobs):
            names = [f"joined {first + int(k)}" for k in y_new[sorted_by_class]]
            self.head_ = copy.deepcopy(self.head_)
            self.head_.enroll(x[sorted_by_class], names)  # ids in order of the names
        self.classes_ = together
        self.seen_ = np.searchsorted(together, np.concatenate([before, fresh]))
        self._means = torch.cat([self._means, means])
        self._total = torch.cat([self._total, total])
        self._rows = torch.cat([self._rows, y_new.bincount()])
        order = shuffled_order(rows.astype(self._scaling.dtype), self._seed)
        self._keep(
            torch.cat([self._bank, x]),
            torch.cat([self._bank_y, y_new + first]),
            np.concatenate([self._bank_order, order]),
        )
        return self

    @whole_or_not
    def rename(self, old: Any, new: Any) -> Any:
        """Call a class otherwise.

        Raises
        ------
        ValueError : no class of that name, another one of the new name, or no name. TypeError : a
            label of another type.
        """
        check_is_fitted(self)
        place = self._place("rename", old)
        if np.ndim(new) > 0 or new is None or new != new:
            raise ValueError(f"rename: expected one label, got {new!r}")
        if new in self.classes_.tolist():
            raise ValueError(f"rename: {new!r} is a class already")
        together = sorted_classes([np.delete(self.classes_, place), np.asarray([new])])
        self._check_outlier_label(together)
        names = self.classes_.astype(together.dtype)
        names[place] = new
        self.classes_, self.seen_ = together, np.searchsorted(together, names[self.seen_])
        return self

    @whole_or_not
    def remove(self, label: Any) -> Any:
        """Forget a class, its rows among those that are kept included.

        After `enroll` it is as it was before, unless the bank was full.

        Raises
        ------
        ValueError : no class of that name, or one of the last two that there were rows of.
        """
        check_is_fitted(self)
        place = self._place("remove", label)
        before = self.classes_[self.seen_]
        stays = self.seen_ != place
        if stays.sum() < 2 and not stays.all():  # one alone is known by other means
            raise ValueError(
                f"remove: expected two classes to stay that there were rows of, got "
                f"{stays.sum()} without {label!r}; fit anew"
            )
        self.classes_ = np.delete(self.classes_, place)
        self.seen_ = np.searchsorted(self.classes_, before[stays])
        if stays.all():  # no row was of it
            return self
        keep = torch.from_numpy(np.flatnonzero(stays))
        number = torch.full((len(stays),), -1)
        number[keep] = torch.arange(len(keep))
        self.head_ = part_of(self.head_, keep, self._means[keep], self._total[keep])
        self._calibrated = int((keep < self._calibrated).sum())
        self._means, self._total = self._means[keep], self._total[keep]
        self._rows = self._rows[keep]
        here = number[self._bank_y] >= 0
        self._bank, self._bank_y = self._bank[here], number[self._bank_y[here]]
        self._bank_order = self._bank_order[here.numpy()]
        here = number[self._judged_y] >= 0
        self._judged, self._judged_y = self._judged[here], number[self._judged_y[here]]
        return self

    def _place(self, where: str, label: Any) -> int:
        found = [n for n, each in enumerate(self.classes_.tolist()) if each == label]
        if not found:
            raise ValueError(f"{where}: no class {label!r} among the {len(self.classes_)}")
        return found[0]

    if TYPE_CHECKING:  # the estimator has them

        def _check_outlier_label(self, classes: NDArray[Any]) -> None: ...
        def _keep(self, x: Tensor, y: Tensor, order: NDArray[np.uint64]) -> None: ...
