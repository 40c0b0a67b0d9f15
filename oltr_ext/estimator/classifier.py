"""`OLTRClassifier`: OLTR on features, with scikit-learn's conventions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from oltr_ext.estimator.blending import Blend, class_similarity, judges
from oltr_ext.estimator.checks import (
    answer_dtype,
    check_parameters,
    checked_rows,
    of_one_dtype,
    sorted_classes,
)
from oltr_ext.estimator.joining import Joins
from oltr_ext.estimator.rejecting import Rejects
from oltr_ext.estimator.rows import held_out, kept, shuffled_order
from oltr_ext.estimator.running import bar, threads, whole_or_not
from oltr_ext.estimator.scaling import Scaling
from oltr_ext.estimator.sets import PredictsSets
from oltr_ext.estimator.training import LEAST, Plan, class_statistics, extended, started, train
from oltr_ext.nn import OLTRHead
from oltr_ext.nn.heads import LOGITS

__all__ = ["OLTRClassifier"]

NEVER = -1e4
"""Logit of a class that no row was given of; those of the head lie within 16 and its prior."""
FIRST = 0.5
"""Of the epochs, those before calibration, without the rows that it takes; the others begin anew,
so that what calibrates is like what answers. Also those of `partial_fit`."""


class OLTRClassifier(Joins, PredictsSets, Rejects, ClassifierMixin, BaseEstimator):
    """Rare classes as well as common ones, and on request an outlier label for everything else.

    A memory head (`oltr_ext.nn.OLTRHead`) on features as they are, but for their mean and length:
    it starts at the class means and learns on natural batches under the class prior. A tenth of
    the distinct rows of each class, or of more than 40,960 a share that makes 4,096, at least one
    of a class that has two, calibrate the rejection before they are trained on, and say how much
    the nearest training row of each class is worth beside the head.

    Parameters
    ----------
    outlier_label : label or None, default=None
        What `predict` answers for a row whose `score_samples` is below `offset_`. A label of the
        type of the classes, and none of them, such as -1. None: no row is rejected. May be set
        after `fit`, too.
    known_recall : float in (0, 1), default=0.95
        Share of rows of known classes that are to be kept; sets `offset_`.
    test_prior : "balanced" or float in [0, 2], default="balanced"
        How frequent classes are in what is predicted: all alike, or a share of the training's tail,
        1 being its frequencies.
    epochs : "auto" or int, default="auto"
        Passes over the data; by the number of rows from 30 to 4.
    batch_size : int, default=128
    bank_size : int, default=16384
        Rows kept for answers and scores, and for `partial_fit` to go on from; of more, the largest
        classes keep as many each as fit.
    random_state : int, RandomState or None, default=None
        Orders the batches and chooses what calibrates.
    n_jobs : int or None, default=None
        Threads, set in torch for the time of a call; None: as torch is set, -1: all processors that
        the process may use. Answers do not depend on it.
    verbose : bool, default=False
        Shows a progress bar.

    Attributes
    ----------
    classes_ : (C,), sorted.
    offset_ : float
        `score_samples` below it is an outlier; -inf where no class has a row to spare.
    head_ : OLTRHead
        Over the classes that there were rows of, in the order of `seen_`, places in `classes_`.
    n_features_in_, feature_names_in_ : as everywhere in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> from oltr_ext import OLTRClassifier
    >>> draw = np.random.default_rng(0)
    >>> X, y = draw.normal(size=(60, 4)) + 9 * np.eye(3, 4).repeat(20, 0), np.arange(3).repeat(20)
    >>> clf = OLTRClassifier(outlier_label=-1, random_state=0).fit(X, y)
    >>> clf.predict([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 40]])
    array([ 0,  1, -1])
    """

    classes_: NDArray[Any]
    seen_: NDArray[np.int64]
    head_: OLTRHead
    _scaling: Scaling
    _bank: Tensor
    _bank_y: Tensor
    _bank_order: NDArray[np.uint64]
    _means: Tensor
    _total: Tensor
    _rows: Tensor
    _blend: Blend
    _pairs: Tensor

    def __init__(
        self,
        *,
        outlier_label: Any = None,
        known_recall: float = 0.95,
        test_prior: str | float = "balanced",
        epochs: str | int = "auto",
        batch_size: int = 128,
        bank_size: int = 16384,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.outlier_label = outlier_label
        self.known_recall = known_recall
        self.test_prior = test_prior
        self.epochs = epochs
        self.batch_size = batch_size
        self.bank_size = bank_size
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    @whole_or_not
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Learn from features (N, D) and labels (N,).

        Parameters
        ----------
        sample_weight : (N,), default=None
            Times that a row counts, in its class's mean and frequency, in the loss and in
            `offset_`; a row of weight 0 is as if it were not there.

        Raises
        ------
        ValueError, TypeError : a parameter, X or y that does not hold.
        """
        check_parameters(self)
        rows, labels, weight = checked_rows(self, X, y, sample_weight, reset=True)
        return self._fit(np.unique(labels), rows, labels, weight)

    @whole_or_not
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Any:
        """Go on learning, from rows that may be of new classes.

        The first call is `fit`. Later ones update class means by all rows seen, and train on the
        new rows with the bank's. New rows of classes known before them are scored first, and move
        `offset_`; rows that the bank has do not. Mean and length of the features stay those of the
        first call. Where there was one class, or no class had a row to spare and new rows of them
        are few, or `test_prior` was set otherwise, all is learned anew from the bank and the new
        rows.

        Parameters
        ----------
        classes : (C,), default=None
            May name classes that are yet to come. They are in `classes_` from then on.

        Raises
        ------
        ValueError, TypeError : as `fit`, or labels of another type than before. It stays as it
            was, also where it is interrupted.
        """
        first = not hasattr(self, "classes_")
        check_parameters(self)
        rows, labels, weight = checked_rows(self, X, y, sample_weight, reset=first)
        named = [labels] if classes is None else [labels, column_or_1d(classes)]
        if first:
            return self._fit(sorted_classes(named), rows, labels, weight)
        together = sorted_classes([self.classes_, *named])
        self._check_outlier_label(together)
        _, before, labels = of_one_dtype([together, self.classes_[self.seen_], labels])
        fresh = np.setdiff1d(labels, before)
        self.classes_ = together
        self.seen_ = np.searchsorted(together, np.concatenate([before, fresh]))
        self._more(rows, labels, weight, len(before))
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,), or `outlier_label` where that is set and a row scores below `offset_`."""
        label, x = self.outlier_label, self._asked(X)
        if label is not None:
            dtype = answer_dtype(self.classes_, label)
        with threads(self.n_jobs):
            largest, found = self._best(x)
            answer = self.classes_[self.seen_[found.numpy()]]
            if label is None:
                return np.asarray(answer)
            answer = answer.astype(dtype)
            answer[self._score(largest, self._nearness(x)) < self.offset_] = label
        return np.asarray(answer)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N, C) over `classes_`, rejection aside."""
        logits = self._logits(X)
        found = np.zeros((len(logits), len(self.classes_)))
        found[:, self.seen_] = logits.double().softmax(1).numpy()
        return found

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits (N, C); of two classes (N,), what the second has over the first."""
        logits = self._logits(X)
        found = np.full((len(logits), len(self.classes_)), NEVER)
        found[:, self.seen_] = logits.double().numpy()
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    # --- beneath ------------------------------------------------------------------------------

    def _check_outlier_label(self, classes: NDArray[Any]) -> None:
        if self.outlier_label is not None:
            answer_dtype(classes, self.outlier_label)

    def _fit(
        self, classes: NDArray[Any], rows: NDArray[Any], labels: NDArray[Any], weight: Tensor
    ) -> Any:
        self._check_outlier_label(classes)
        seen, target = np.unique(labels, return_inverse=True)
        self.classes_, self.seen_ = classes, np.searchsorted(classes, seen.astype(classes.dtype))
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        order = shuffled_order(rows, self._seed)
        self._learn("fit", rows, torch.from_numpy(target), weight, order)
        return self

    def _learn(
        self, name: str, rows: NDArray[Any], y: Tensor, weight: Tensor, order: NDArray[np.uint64]
    ) -> None:
        """From all rows (N, D), and places (N,) in `seen_`."""
        self._scaling = Scaling.of(rows, weight.numpy())
        x, generator = self._scaling(rows), torch.Generator().manual_seed(self._seed)
        out = torch.from_numpy(held_out(order, y.numpy(), len(self.seen_)))
        here, calibrated = ~out, bool(out.any())
        plan, some = Plan.of(len(x), self.epochs, self.batch_size), int(here.sum())
        self.n_iter_, steps, self._blend = plan.epochs, 0, Blend()
        if calibrated:
            first = Plan(max(1, round(FIRST * plan.epochs)), min(plan.batch_size, some))
            plan = Plan(max(1, plan.epochs - first.epochs), plan.batch_size)
            steps = first.steps(some)
        with (
            threads(self.n_jobs),
            bar(name, steps + plan.steps(len(x)), shown=self.verbose) as tick,
        ):
            if calibrated:
                part = (x[here], y[here], weight[here])
                self._start(*part)
                self._keep(*part[:2], order[here.numpy()])
                train(self.head_, *part, first, generator, tick=tick)
                self._judge(x[out], y[out], weight[out], order[out.numpy()])
                self._hold(x[out], y[out], anew=True)
            self._start(x, y, weight)
            train(self.head_, x, y, weight, plan, generator, tick=tick)
            self._keep(x, y, order)
            if not calibrated:
                self._pairs = self._pair(x, weight)
                self._pairs[:, 1] = 0  # of rows that it was trained on, nothing is known
                self._hold(x[:0], y[:0], anew=True)
            self._settle(calibrated)

    def _more(self, rows: NDArray[Any], labels: NDArray[Any], weight: Tensor, known: int) -> None:
        names = self.classes_[self.seen_]
        sorter = np.argsort(names)
        y = torch.from_numpy(sorter[np.searchsorted(names, labels, sorter=sorter)])
        order = shuffled_order(rows.astype(self._scaling.dtype), self._seed)
        share = self._total / torch.bincount(self._bank_y, minlength=known)
        both_y, orders = torch.cat([self._bank_y, y]), np.concatenate([self._bank_order, order])
        worth = torch.cat([share[self._bank_y], weight])
        asked = (y.numpy() < known) & ~np.isin(order, self._bank_order)  # not trained on yet
        anew = known == 1 < len(names)  # one class does not go by what many do
        # What calibrated it was measured under the prior that was expected.
        anew |= not math.isclose(self._expected(), float(self.head_.prior_share), rel_tol=1e-6)
        if self.offset_ == -math.inf:
            self._pairs = self._pairs[:0]
            anew |= bool(asked.sum() < held_out(orders, both_y.numpy(), len(names)).sum())
        if anew:
            old = self._scaling.undone(self._bank)
            rows = np.concatenate([old, rows], dtype=self._scaling.dtype)
            self._learn("partial_fit", rows, both_y, worth, orders)
            return
        x = self._scaling(rows)
        both = torch.cat([self._bank, x])
        plan = Plan.of(len(both), self.epochs, self.batch_size)
        plan = Plan(max(1, round(FIRST * plan.epochs)), plan.batch_size)
        with (
            threads(self.n_jobs),
            bar("partial_fit", plan.steps(len(both)), shown=self.verbose) as tick,
        ):
            if asked.any():
                fresh = self._pair(x[asked], weight[asked])
                self._pairs = torch.cat([self._pairs, fresh])[-4096:]
                self._hold(x[asked], y[asked], anew=False)
                self._settle(calibrated=True)
            means, total = class_statistics(x, y, weight, len(names))
            sums = torch.where(total[:, None] > 0, means * total[:, None], 0)
            sums[:known] += self._means * self._total[:, None]
            total[:known] += self._total
            self._means, self._total = sums / total[:, None], total
            self._rows = F.pad(self._rows, (0, len(names) - known)) + y.bincount(
                minlength=len(sums)
            )
            self.head_ = extended(self.head_, self._means, total, x.dtype)
            generator = torch.Generator().manual_seed(self._seed)
            train(self.head_, both, both_y, worth, plan, generator, tick=tick)
            self._keep(both, both_y, orders)

    def _expected(self) -> float:
        """Share of the prior of training that answers go by."""
        return 0.0 if self.test_prior == "balanced" else float(self.test_prior)

    def _start(self, x: Tensor, y: Tensor, weight: Tensor) -> None:
        self._means, self._total = class_statistics(x, y, weight, len(self.seen_))
        self._rows = y.bincount(minlength=len(self.seen_))
        self.head_ = started(self._means, self._total, x.dtype, self._expected())

    def _keep(self, x: Tensor, y: Tensor, order: NDArray[np.uint64]) -> None:
        places = kept(order, y.numpy(), len(self.seen_), self.bank_size)
        self._bank, self._bank_y, self._bank_order = x[places], y[places], order[places]

    def _asked(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._scaling(rows)

    @torch.no_grad()
    def _judge(self, x: Tensor, y: Tensor, weight: Tensor, order: NDArray[np.uint64]) -> None:
        """What calibrates, and the blend, by rows that were not trained on."""
        self._pairs = self._pair(x, weight)
        if len(self.seen_) > 1:
            some = torch.from_numpy(judges(order, len(self.seen_)))
            x, y, weight = x[some], y[some], weight[some]
            logits = self.head_.classifier.cosnorm_classifier(self.head_.outputs(x).embedding)
            similarity = class_similarity(x, self._bank, self._bank_y)
            distinct = len(np.unique(order[some.numpy()]))
            self._blend = Blend.of(logits, similarity, self._share(), y, weight, distinct)

    def _share(self) -> Tensor:
        """(C,) of the weight seen, by class."""
        return (self._total / self._total.sum()).clamp_min(LEAST)

    def _pieces(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (B, C) of the head, and those that answer, for pieces of scaled rows."""
        share, expected = self._share(), float(self.head_.prior_share)
        for rows in x.split(max(1, LOGITS // max(len(self.seen_), len(self._bank)) // 4)):
            logits = self.head_.outputs(rows).logits
            similarity = None
            if self._blend.rows > 0:
                similarity = class_similarity(rows, self._bank, self._bank_y)
            yield logits, self._blend(logits, similarity, share, expected)

    @torch.no_grad()
    def _logits(self, X: ArrayLike) -> Tensor:
        x = self._asked(X)
        with threads(self.n_jobs):
            return torch.cat([answer for _, answer in self._pieces(x)])

    @torch.no_grad()
    def _best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Largest logit of the head (N,) float64 for scaled rows, and whose the answer is, (N,)."""
        best = [(head.amax(1), answer.argmax(1)) for head, answer in self._pieces(x)]
        return torch.cat([b[0] for b in best]).double(), torch.cat([b[1] for b in best])
