"""The classes that a row may be of, for `OLTRClassifier`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_consistent_length, column_or_1d
from torch import Tensor

from oltr_ext.estimator.checks import of_one_dtype
from oltr_ext.estimator.running import threads, whole_or_not
from oltr_ext.metrics import SHOT_NAMES, PredictionSets, fitting_bounds, shot_groups
from oltr_ext.nn import OLTRHead
from oltr_ext.nn.sets import set_members, set_thresholds, true_log_probability

__all__ = ["PredictsSets"]

MOST = 4096
"""Calibration rows that `partial_fit` keeps, the newest."""


class PredictsSets:
    """`predict_set` of an estimator that has a head, and what it goes by."""

    classes_: NDArray[Any]
    seen_: NDArray[np.int64]
    head_: OLTRHead
    n_jobs: int | None
    offset_: float
    _total: Tensor
    _rows: Tensor
    _judged: Tensor
    _judged_y: Tensor
    _calibrated: int
    """Of how many first classes of `seen_` the probabilities are by which it was calibrated."""

    def predict_set(self, X: ArrayLike, alpha: float = 0.1, *, method: str = "shots") -> Any:
        """The classes that each row may be of: of rows of known classes, a share of 1 - alpha has
        its own in its set.

        By default that goes by the rows that `fit` held out and trained on afterwards, so that it
        is as good as that and no proof; `calibrate_sets` makes it one.

        Parameters
        ----------
        alpha : float in (0, 1), default=0.1
            Share of sets that may lack the true class.
        method : {"shots", "marginal", "pas", "class", "interp"}, default="shots"
            Over what: "shots" within each third of the classes by their number of training rows,
            "marginal" over all rows; see `oltr_ext.nn.sets.set_thresholds`.

        Returns
        -------
        oltr_ext.metrics.PredictionSets : the members alone, likeliest first. ``unknown`` says
            whether a row scores below `offset_`, whatever `outlier_label`. A class that there was
            no row of is in no set.

        Raises
        ------
        ValueError : no such method or alpha.
        """
        x = self._asked(X)
        with threads(self.n_jobs), torch.no_grad():
            lowest, known = self._lowest(method, alpha), self._calibrated
            pieces = [
                (logits.amax(1), *set_members(answer, lowest, known))
                for logits, answer in self._pieces(x)
            ]
            largest, sizes, members, log_prob = map(torch.cat, zip(*pieces, strict=True))
            score = self._score(largest.double(), self._nearness(x))
        always = np.zeros(len(self.classes_), np.bool_)
        always[self.seen_] = (lowest == -torch.inf).numpy()
        return PredictionSets(
            indptr=np.concatenate([[0], sizes.cumsum(0).numpy()]),
            indices=self.seen_[members.numpy()],
            probability=log_prob.double().exp().numpy(),
            unknown=score < self.offset_,
            classes=self.classes_,
            always=always,
            alpha=alpha,
            method=method,
        )

    @whole_or_not
    def calibrate_sets(self, X: ArrayLike, y: ArrayLike) -> Any:
        """Let `predict_set` go by rows that were not trained on, in place of those of `fit`. Then
        1 - alpha is a promise, for rows drawn as these.

        Raises
        ------
        ValueError : a label that no training row had. TypeError : one of a type that does not go
            with the classes'.
        """
        x = self._asked(X)
        labels = column_or_1d(y)
        check_consistent_length(x, labels)
        known, labels = of_one_dtype([self.classes_[self.seen_], labels])
        strange = np.setdiff1d(labels, known)
        if len(strange):
            raise ValueError(
                f"calibrate_sets: no training row was of class {strange.tolist()[0]!r}"
            )
        order = np.argsort(known)
        places = order[np.searchsorted(known, labels, sorter=order)]
        self._hold(x, torch.from_numpy(places), anew=True)
        return self

    def _hold(self, x: Tensor, y: Tensor, *, anew: bool) -> None:
        """Calibrate on scaled rows (N, D) of classes (N,), places in `seen_`."""
        if anew:
            self._calibrated = len(self.seen_)
        parts, done = [], 0
        with threads(self.n_jobs), torch.no_grad():
            for _, answer in self._pieces(x):
                own = y[done : done + len(answer)]
                parts.append(true_log_probability(answer, own, self._calibrated))
                done += len(answer)
        old, old_y = ([], []) if anew else ([self._judged], [self._judged_y])
        self._judged = torch.cat([*old, *parts])
        self._judged_y = torch.cat([*old_y, y])
        if not anew:
            self._judged, self._judged_y = self._judged[-MOST:], self._judged_y[-MOST:]

    def _lowest(self, method: str, alpha: float) -> Tensor:
        counts = self._rows.numpy()
        bounds = fitting_bounds(counts)
        groups = np.zeros(len(counts), np.int64)
        if bounds is not None:
            masks = shot_groups(counts, bounds)
            groups = np.select([masks[name] for name in SHOT_NAMES[::-1]], [0, 1, 2])
        frequency = (self._total / self._total.sum()) ** float(self.head_.prior_share)
        return set_thresholds(
            method,
            alpha,
            self._judged,
            self._judged_y,
            len(counts),
            groups=torch.from_numpy(groups),
            prevalence=frequency / frequency.sum(),
        )

    if TYPE_CHECKING:  # the estimator has them

        def _asked(self, X: ArrayLike) -> Tensor: ...
        def _nearness(self, x: Tensor) -> Tensor: ...
        def _score(self, largest: Tensor, nearness: Tensor) -> NDArray[np.float64]: ...
        def _pieces(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]: ...
