"""`OLTRClassifier`: OLTR on features, with scikit-learn's conventions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor
from tqdm import tqdm

from oltr_ext import ops
from oltr_ext.estimator.rows import held_out, kept, shuffled_order
from oltr_ext.estimator.training import Plan, class_statistics, extended, started, train
from oltr_ext.nn import OLTRHead

__all__ = ["OLTRClassifier"]

LENGTH = 10.0
"""Root mean square length of the centred features that the head sees."""
HEIGHT = 3.0
"""One more feature, the same in all rows: by direction alone the middle has no place."""
NEVER = -1e4
"""Logit of a class that no row was given of; those of the head lie within 16 and its prior."""
FIRST = 0.5
"""Of the epochs, those before calibration, without the rows that it takes."""
AGAIN = 0.3
"""Times the epochs and the learning rate, in `partial_fit`."""


class OLTRClassifier(ClassifierMixin, BaseEstimator):
    """Rare classes as well as common ones, and on request an outlier label for everything else.

    A memory head (`oltr_ext.nn.OLTRHead`) on features as they are, but for their mean and length:
    it starts at the class means and learns on natural batches under the class prior. A tenth of
    the distinct rows of each class, at least one of a class that has two, calibrate the rejection
    before they are trained on.

    Parameters
    ----------
    outlier_label : label or None, default=None
        What `predict` answers for a row whose `score_samples` is below `offset_`. A label of the
        type of the classes, and none of them, such as -1. None: no row is rejected.
    known_recall : float in (0, 1), default=0.95
        Share of rows of known classes that are to be kept; sets `offset_`.
    test_prior : "balanced" or float in [0, 2], default="balanced"
        How frequent classes are in what is predicted: all alike, or a share of the training's tail,
        1 being its frequencies.
    epochs : "auto" or int, default="auto"
        Passes over the data; by the number of rows from 60 to 6.
    batch_size : int, default=128
    bank_size : int, default=16384
        Rows kept for the score, and for `partial_fit` to go on from; of more, the largest classes
        keep as many each as fit.
    random_state : int, RandomState or None, default=None
        Orders the batches and chooses what calibrates.
    n_jobs : int or None, default=None
        Threads; None: as torch is set, -1: all processors. Answers do not depend on it.
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
    _bank: Tensor
    _bank_y: Tensor
    _bank_order: NDArray[np.uint64]
    _means: Tensor
    _total: Tensor
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

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Learn from features (N, D) and labels (N,).

        Parameters
        ----------
        sample_weight : (N,), default=None
            Times that a row counts, in its class's mean and frequency and in the loss; a row of
            weight 0 is as if it were not there.

        Raises
        ------
        ValueError, TypeError : a parameter, X or y that does not hold.
        """
        rows, labels, weight = self._checked(X, y, sample_weight, reset=True)
        self.classes_ = np.unique(labels)
        self._check_outlier_label()
        return self._fit(rows, labels, weight)

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
        `offset_`. Mean and length of the features stay those of the first call.

        Parameters
        ----------
        classes : (C,), default=None
            May name classes that are yet to come. They are in `classes_` from then on.
        """
        first = not hasattr(self, "classes_")
        rows, labels, weight = self._checked(X, y, sample_weight, reset=first)
        old = np.array([], labels.dtype) if first else self.classes_
        before = None if first else self.classes_[self.seen_]
        named = [] if classes is None else [np.asarray(classes)]
        self.classes_ = np.unique(np.concatenate([*named, *([] if first else [old]), labels]))
        self._check_outlier_label()
        if first:
            return self._fit(rows, labels, weight)
        assert before is not None
        fresh = np.setdiff1d(labels, before)
        self.seen_ = np.searchsorted(self.classes_, np.concatenate([before, fresh]))
        with self._threads(), self._bar("more") as tick:
            self._more(rows, labels, weight, len(before), tick)
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (N,), or `outlier_label` where that is set and a row scores below `offset_`."""
        logits, score = self._answers(X, scored=self.outlier_label is not None)
        found = self.classes_[self.seen_[logits.argmax(1).numpy()]]
        if self.outlier_label is None:
            return np.asarray(found)
        label = np.asarray([self.outlier_label])
        out = score.numpy() < self.offset_
        dtype = object if found.dtype == object else np.result_type(found, label)
        return np.where(out, label.astype(dtype), found.astype(dtype))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N, C) over `classes_`, rejection aside."""
        logits, _ = self._answers(X, scored=False)
        found = np.zeros((len(logits), len(self.classes_)))
        found[:, self.seen_] = logits.double().softmax(1).numpy()
        return found

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits (N, C); of two classes (N,), what the second has over the first."""
        logits, _ = self._answers(X, scored=False)
        found = np.full((len(logits), len(self.classes_)), NEVER)
        found[:, self.seen_] = logits.double().numpy()
        return found[:, 1] - found[:, 0] if len(self.classes_) == 2 else found

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """(N,), higher for known classes: largest logit less distance to the nearest training row's
        direction, each in deviations of the rows that calibrated it."""
        return np.asarray(self._answers(X, scored=True)[1].numpy())

    # --- beneath ------------------------------------------------------------------------------

    def _fit(self, rows: NDArray[Any], labels: NDArray[Any], weight: Tensor) -> Any:
        seen, target = np.unique(labels, return_inverse=True)
        self.seen_ = np.searchsorted(self.classes_, seen)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        mean = np.average(rows, axis=0, weights=weight.numpy(), keepdims=True)
        self.mean_ = np.asarray(mean[0], np.float64)
        square = np.square(rows - mean, dtype=np.float64).sum(1)
        self.scale_ = math.sqrt(np.average(square, weights=weight.numpy())) / LENGTH or 1.0
        self._dtype = str(rows.dtype)
        x, y, classes = self._scaled(rows), torch.from_numpy(target), len(seen)
        order, generator = shuffled_order(rows, self._seed), self._generator()
        out = torch.from_numpy(held_out(order, target, classes))
        plan = Plan.of(len(x), self.epochs, self.batch_size)
        with self._threads(), self._bar("fit") as tick:
            if not out.any():
                self._start(x, y, weight, None)
                train(self.head_, x, y, weight, plan, generator, tick=tick)
                self._pairs = torch.stack(self._pair(x), 1)
                self._pairs[:, 1] = 0  # of rows that it was trained on, nothing is known
                self._settle(calibrated=False)
            else:
                here = ~out
                first = Plan(
                    max(1, round(FIRST * plan.epochs)), min(plan.batch_size, int(here.sum()))
                )
                self._start(x[here], y[here], weight[here], None)
                self._keep(x[here], target[here.numpy()], order[here.numpy()])
                train(self.head_, x[here], y[here], weight[here], first, generator, tick=tick)
                self._pairs = torch.stack(self._pair(x[out]), 1)
                self._settle(calibrated=True)
                rest = Plan(max(1, plan.epochs - first.epochs), plan.batch_size)
                self._start(x, y, weight, self.head_)
                train(self.head_, x, y, weight, rest, generator, tick=tick)
            self._keep(x, target, order)
        self.n_iter_ = plan.epochs
        return self

    def _more(
        self,
        rows: NDArray[Any],
        labels: NDArray[Any],
        weight: Tensor,
        known: int,
        tick: Callable[[float], None],
    ) -> None:
        x, names = self._scaled(rows.astype(self._dtype)), self.classes_[self.seen_]
        sorter = np.argsort(names)
        target = sorter[np.searchsorted(names, labels, sorter=sorter)]
        y, order = torch.from_numpy(target), shuffled_order(rows.astype(self._dtype), self._seed)
        old = y < known
        if old.any():  # not trained on yet
            self._pairs = torch.cat([self._pairs, torch.stack(self._pair(x[old]), 1)])[-4096:]
            self._settle(calibrated=True)
        sums = torch.zeros(len(names), x.shape[1], dtype=torch.float64)
        total = torch.zeros(len(names), dtype=torch.float64)
        sums[:known], total[:known] = self._means * self._total[:, None], self._total
        means, more = class_statistics(x, y, weight, len(names))
        there = more > 0
        sums[there] += means[there] * more[there, None]
        total += more
        share = self._total / torch.bincount(self._bank_y, minlength=known)
        bank_weight = share[self._bank_y].to(weight)
        self._means, self._total = sums / total[:, None], total
        self.head_ = extended(self.head_, self._means, total, x.dtype)
        both = torch.cat([self._bank, x]), torch.cat([self._bank_y, y])
        plan = Plan.of(len(both[0]), self.epochs, self.batch_size)
        plan = Plan(max(1, round(AGAIN * plan.epochs)), plan.batch_size)
        worth = torch.cat([bank_weight, weight])
        train(self.head_, *both, worth, plan, self._generator(), rate=AGAIN, tick=tick)
        self._keep(both[0], both[1].numpy(), np.concatenate([self._bank_order, order]))

    def _start(self, x: Tensor, y: Tensor, weight: Tensor, old: OLTRHead | None) -> None:
        self._means, self._total = class_statistics(x, y, weight, len(self.seen_))
        if old is None:
            self.head_ = started(self._means, self._total, x.dtype)
        else:
            self.head_ = extended(old, self._means, self._total, x.dtype)

    def _keep(self, x: Tensor, target: NDArray[np.int64], order: NDArray[np.uint64]) -> None:
        places = kept(order, target, len(self.seen_), self.bank_size)
        self._bank, self._bank_y = x[places].clone(), torch.from_numpy(target[places])
        self._bank_order = order[places]

    def _pair(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Largest logit and nearness (N,) of scaled rows, float64."""
        with torch.no_grad():
            logit = self._logits(x).amax(1).double()
            if not hasattr(self, "_bank"):
                return logit, torch.zeros_like(logit)
            return logit, self._nearness(x)

    def _nearness(self, x: Tensor) -> Tensor:
        """(N,) distance to the nearest direction of the bank with its sign turned; where there is
        one class, whose mean is the origin, to the nearest row."""
        rows, bank = (x, self._bank) if len(self.seen_) == 1 else map(F.normalize, (x, self._bank))
        return -ops.nearest_centroid(rows, bank).distance.double()

    def _settle(self, *, calibrated: bool) -> None:
        self._location = self._pairs.mean(0)
        spread = self._pairs.std(0, correction=0)
        self._spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
        if len(self.seen_) == 1:
            self._spread[0] = math.inf  # a logit says nothing where there is no other
        score = ((self._pairs - self._location) / self._spread).sum(1).numpy()
        low = np.quantile(score, 1 - self.known_recall, method="lower")
        self.offset_ = float(low) if calibrated else -math.inf

    def _logits(self, x: Tensor) -> Tensor:
        share = 0.0 if self.test_prior == "balanced" else float(self.test_prior)
        self.head_.prior_share.fill_(share)
        return torch.cat([self.head_.outputs(rows).logits for rows in self.head_.pieces(x)])

    @torch.no_grad()
    def _answers(self, X: ArrayLike, *, scored: bool) -> tuple[Tensor, Tensor]:
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        with self._threads():
            x = self._scaled(rows.astype(self._dtype, copy=False))
            if not scored:
                return self._logits(x), torch.empty(0)
            logits = self._logits(x)
            pair = torch.stack([logits.amax(1).double(), self._nearness(x)], 1)
        return logits, ((pair - self._location) / self._spread).sum(1)

    def _scaled(self, rows: NDArray[Any]) -> Tensor:
        scaled = np.full((len(rows), rows.shape[1] + 1), HEIGHT, self._dtype)
        scaled[:, :-1] = (rows - self.mean_) / self.scale_
        return torch.from_numpy(scaled)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed)

    def _checked(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None, *, reset: bool
    ) -> tuple[NDArray[Any], NDArray[Any], Tensor]:
        self._check_parameters()
        rows, labels = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=reset)
        check_classification_targets(labels)
        weight = _check_sample_weight(
            sample_weight, rows, dtype=np.float64, ensure_non_negative=True
        )
        there = weight > 0
        if not there.any():
            raise ValueError("OLTRClassifier: expected a row of positive weight, got none")
        if not there.all():
            rows, labels, weight = rows[there], labels[there], weight[there]
        return rows, labels, torch.from_numpy(weight.astype(rows.dtype))

    def _check_parameters(self) -> None:
        def wrong(name: str, expected: str) -> ValueError:
            return ValueError(
                f"OLTRClassifier: {name}: expected {expected}, got {getattr(self, name)!r}"
            )

        if not (isinstance(self.known_recall, Real) and 0 < float(self.known_recall) < 1):
            raise wrong("known_recall", "a number between 0 and 1")
        for name in ("batch_size", "bank_size"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or int(value) < 1:
                raise wrong(name, "a positive integer")
        epochs = self.epochs
        if epochs != "auto" and not (isinstance(epochs, Integral) and int(epochs) >= 1):
            raise wrong("epochs", "'auto' or a positive integer")
        share = self.test_prior
        if share != "balanced" and not (isinstance(share, Real) and 0 <= float(share) <= 2):
            raise wrong("test_prior", "'balanced' or a number from 0 to 2")
        jobs = self.n_jobs
        if jobs is not None and not (isinstance(jobs, Integral) and int(jobs) != 0):
            raise wrong("n_jobs", "None or an integer other than 0")

    def _check_outlier_label(self) -> None:
        label, kind = self.outlier_label, self.classes_.dtype.kind
        if label is None:
            return
        kinds = {"i": "iu", "u": "iu", "f": "iuf", "U": "U", "S": "S", "b": "b"}.get(kind)
        if kinds is not None and np.asarray(label).dtype.kind not in kinds:
            raise TypeError(
                f"OLTRClassifier: outlier_label: expected a label of the classes' type, "
                f"{self.classes_.dtype}, got {label!r}"
            )
        if label in self.classes_.tolist():
            raise ValueError(f"OLTRClassifier: outlier_label: {label!r} is one of the classes")

    @contextmanager
    def _threads(self) -> Iterator[None]:
        if self.n_jobs is None:
            yield
            return
        before, processors = torch.get_num_threads(), os.cpu_count() or 1
        jobs = int(self.n_jobs)
        torch.set_num_threads(jobs if jobs > 0 else max(1, processors + 1 + jobs))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Callable[[float], None]]:
        with tqdm(desc=f"OLTRClassifier.{name}", unit="step", disable=not self.verbose) as bar:

            def tick(loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()

            yield tick
