"""Heads: features in; logits, loss and an open-set answer out. Here what all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from oltr_ext.nn.checks import checked_prior, of_width
from oltr_ext.nn.enroll import Enrolling
from oltr_ext.nn.exact import indices, moved_exactly
from oltr_ext.nn.feature_bank import FeatureBank
from oltr_ext.nn.mark import mark_values
from oltr_ext.nn.parted import PartedLogits, SharedLogits, strongest_of
from oltr_ext.nn.room import Rooms
from oltr_ext.nn.scores import ENTROPY_SCORES, SCORES, all_scores

Gather = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Features and labels of this process to those of the whole batch, with gradients."""

LOGITS = 1 << 26
"""Logits that `Head.predict` holds at a time: 256 MB of float32."""


def alone(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Gathers over one process: what it has is the whole batch."""
    return features, target


class HeadOutput(NamedTuple):
    """What a head makes of features (B, D); what it lacks is None."""

    logits: Any
    """(B, C): a tensor, or `PartedLogits` where they are never whole."""
    distance: Tensor | None = None
    """(B,) to the nearest centroid."""
    nearest: Tensor | None = None
    """Class (B,) int64 of the nearest centroid."""
    embedding: Tensor | None = None
    """(B, D)."""
    memory_feature: Tensor | None = None
    """(B, D), recalled by attention."""
    selector: Tensor | None = None
    """(B, D) in [-1, 1]."""
    unknown: Tensor | None = None
    """(B,) probability of the class "unknown"."""
    features: Tensor | None = None
    """(B, D), what it was made of; without them there are no scores of the bank."""


class Best(NamedTuple):
    """What `Head.best` says of features (B, D)."""

    logits: Tensor
    """(B, K) float64, the largest first."""
    classes: Tensor
    """(B, K) int64; of equal logits the lower class is first."""
    scores: dict[str, Tensor]
    """(B,) float64 under each name."""


class Head(Enrolling, ABC):
    """The open-set answer that all heads share: a score, and the threshold below which a feature
    is unknown. Both live in buffers, so that a state dict holds the calibrated head.

    What a head derives from its tensors and keeps is derived anew after an optimizer's step or a
    write in place, and after ``train()`` or ``eval()``: call one of them after writes that torch
    does not count, which are those through ``.data``, by collectives of `torch.distributed` and by
    a fused optimizer in a compiled graph.

    Attributes:
        bank: scores by the training's features; empty until it is fitted.
        EXACT: buffers that keep their dtype when the module is cast, as by ``half()``. A device
            without float64 (MPS) has those of float64 in float32. Whole numbers that a head is read
            by are among them, as `indices` has them.
    """

    EXACT: ClassVar[dict[str, torch.dtype]] = {
        "threshold": torch.float64,
        "score_index": torch.float64,
        "removed": torch.float64,
        "enrolled": torch.float64,
        "enrolled_means": torch.float32,
    }

    threshold: Tensor
    score_index: Tensor
    _score = "max_softmax"  # what score_index says, for a graph cannot ask it; and which one said
    _said_by: Any = ()

    def __init__(self) -> None:
        super().__init__()
        # The released code's rule, until a threshold is calibrated.
        self.register_buffer("threshold", torch.tensor(0.1, dtype=torch.float64))
        self.register_buffer("score_index", indices([SCORES.index(self._score)])[0])
        self.bank = FeatureBank()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: self._buffers[name] for name in self.EXACT}
        self._buffers.update(dict.fromkeys(kept))  # None is passed over
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers.update(kept)
        for name, buffer in kept.items():
            if buffer is not None:
                self._buffers[name] = moved_exactly(buffer, fn, self.EXACT[name])
        self._rooms = Rooms()  # what they hold is of the tensors before
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        self.bank.make_room(state, f"{prefix}bank.", self.threshold.device)
        if self.is_whole(state, prefix):
            self.make_room(state, prefix)
        super()._load_from_state_dict(state, prefix, *args)
        self._read_score()
        self.loaded()

    def train(self, mode: bool = True) -> Any:
        """As of any module; what is kept of tensors is derived anew."""
        self._said_by = ()
        self._rooms.kept.clear()
        return super().train(mode)

    def _read_score(self) -> None:
        if not self.score_index.is_meta:  # still, where nothing was assigned
            number = float(self.score_index)
            if not -0.5 < number < len(SCORES) - 0.5:
                raise ValueError(
                    f"{type(self).__name__}: expected score_index to be a score's number, 0 to "
                    f"{len(SCORES) - 1}, got {number}: the state dict is damaged or of a later "
                    "version"
                )
            self._score = SCORES[round(number)]
        self._said_by = mark_values(self.score_index)

    @property
    def score(self) -> str:
        """Name of the score that is compared with the threshold."""
        if not torch.compiler.is_compiling() and mark_values(self.score_index) != self._said_by:
            self._read_score()
        return self._score

    def set_threshold(self, value: float, score: str) -> None:
        """Calls unknown what scores below ``value`` by ``score`` (see oltr_ext.nn.scores).

        Raises:
            ValueError: no such score, or the value is NaN.
        """
        if score not in SCORES:
            raise ValueError(f"set_threshold: expected one of {', '.join(SCORES)}, got {score!r}")
        if value != value:
            raise ValueError("set_threshold: expected a number, got NaN")
        self.threshold.fill_(value)
        self.score_index.fill_(SCORES.index(score))
        self._score, self._said_by = score, mark_values(self.score_index)

    @abstractmethod
    def loss(self, features: Tensor, target: Tensor, *, gather: Gather = alone) -> Tensor:
        """Training loss, a scalar, of features (B, D) and labels (B,) int64 in [0, C).

        Args:
            gather: where a batch is spread over processes. A term that couples its rows (pairs, a
                function of a mean) is computed on what this gives, so on the whole batch; any
                other is the mean over the rows given. The mean of the processes' losses is then
                the loss of the whole batch, and gradients likewise.
        """

    @abstractmethod
    def outputs(self, features: Tensor) -> HeadOutput:
        """All that the head makes of features (B, D). Where processes share the classes, each gets
        whole logits, B x C; see `best` and `parted`."""

    def parted(self, features: Tensor) -> HeadOutput:
        """As `outputs`, but where processes share the classes: there it takes features (B, D) that
        all of them are given, and logits stay where they are, as `SharedLogits`."""
        return self.outputs(features)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to logits (B, C)."""
        logits: Tensor = self.outputs(features).logits
        return logits

    @property
    def origin(self) -> Tensor | None:
        """(D,) float64, the feature at which the logits are zero; None for no other than 0."""
        return None

    def fit_bank(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        counts: Tensor | Sequence[int],
        *,
        most: int | None = None,
        neighbours: int | None = None,
    ) -> None:
        """`FeatureBank.fit` with all scores, those that need the head's logits among them. Where
        processes share the classes, each is given all batches, and they share the bank's means.

        Raises:
            ValueError: also where classes are enrolled, whose features the old bank holds, and for
                features of another width.
        """
        if enrolled := self.num_classes - self.num_trained:
            raise ValueError(
                f"{type(self).__name__}.fit_bank: expected trained classes alone, got {enrolled} "
                "that were enrolled: remove them, fit, and enroll them again"
            )

        own, where = next(self.parameters()).dtype, f"{type(self).__name__}.fit_bank"

        def largest(features: Tensor) -> Tensor:
            parts = self.pieces(features.to(self.threshold.device, own))
            return torch.cat([self.parted(part).logits.amax(dim=1) for part in parts])

        with self.layout.same_rows():
            self.bank.fit(
                of_width(where, batches, self.feat_dim),
                counts,
                most=most,
                neighbours=neighbours,
                max_logit=largest,
                origin=self.origin,
                layout=self.layout,
            )

    def own_scores(self, out: HeadOutput, names: Iterable[str] = SCORES) -> dict[str, Tensor]:
        """As `scores`, those that need no training features."""
        return all_scores(out.logits, out.distance, out.unknown, names=names)

    def scores(self, out: HeadOutput, names: Iterable[str] = SCORES) -> dict[str, Tensor]:
        """(B,) float64 under the name of each score that an output has; higher means known.

        Args:
            names: which to compute of those that cost something: ``gen``, and the bank's, each a
                pass over what it holds.
        """
        scores = self.own_scores(out, names)
        if out.features is not None:
            most, energy = scores["max_logit"], scores["energy"]
            bank = self.bank.scores(out.features, most, names, energy=energy, layout=self.layout)
            scores.update(bank)
        return scores

    def score_of(self, out: HeadOutput, name: str | None = None) -> Tensor:
        """One of `scores`, by default the chosen one.

        Raises:
            ValueError: this head has no such score.
        """
        name = name or self.score
        scores = self.scores(out, (name,))
        if name not in scores:
            there = ", ".join(dict.fromkeys((*scores, *ENTROPY_SCORES, *self.bank.names)))
            how = "" if self.bank.names else "; fit_bank gives it those by features of training"
            raise ValueError(f"{type(self).__name__} has no score {name}; it has {there}{how}")
        return scores[name]

    def pieces(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows (B, ...) in pieces of at most `LOGITS` logits each, and as many distances to rows
        of the bank; whole in a compiled graph, which is made for a number of pieces."""
        if torch.compiler.is_compiling():
            return (rows,)
        bank = 0 if self.bank.rows is None else len(self.bank.rows)
        return rows.split(max(1, LOGITS // max(self.layout.most(self.num_classes), bank)))

    @torch.no_grad()
    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The answer for features (B, D), in memory that does not grow with B x C.

        A row alone may differ from the same in a batch by the rounding of float32 products, which
        is that of bfloat16 under ``torch.set_float32_matmul_precision("medium")``. On a CPU a
        memory head's natively does not differ where it has up to 512 classes, nor in a batch of up
        to 64 rows where D is up to 512, else by that of sums; and a distance nowhere.

        Returns:
            (label (B,) int64 with -1 for unknown, confidence (B,) float64). The confidence is the
            value of ``self.score``; a row of which it is NaN or infinity is unknown.

        Raises:
            ValueError: features of another number of dimensions.
        """
        if features.dim() != 2:
            raise ValueError(
                f"{type(self).__name__}.predict: expected features (B, D), got "
                f"{tuple(features.shape)}"
            )
        if torch.compiler.is_compiling():
            return self.answer(self.outputs(features))
        with self.reading():
            label, confidence = self.layout.each(self._predict, features)
        return label, confidence

    def _predict(self, features: Tensor) -> tuple[Tensor, ...]:
        parts = [self.answer(self.parted(piece)) for piece in self.pieces(features)]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    @torch.no_grad()
    def best(self, features: Tensor, count: int = 5, names: Sequence[str] = ()) -> Best:
        """The likeliest classes of features (B, D), and scores of theirs, in memory of `predict`.

        Args:
            count: K, how many; all where there are fewer.
            names: of `scores`.

        Raises:
            ValueError: this head has no such score.
        """

        def found(rows: Tensor) -> tuple[Tensor, ...]:
            parts = []
            for piece in self.pieces(rows):
                out = self.parted(piece)
                scores = [self.score_of(out, name) for name in names]
                if isinstance(out.logits, PartedLogits):
                    logits, classes = out.logits.largest(count)
                else:
                    logits, classes = strongest_of(out.logits, count)
                parts.append((logits.double(), classes, *scores))
            return tuple(map(torch.cat, zip(*parts, strict=True)))

        with self.reading():
            logits, classes, *scores = self.layout.each(found, features)
        return Best(logits, classes, dict(zip(names, scores, strict=True)))

    def answer(self, out: HeadOutput) -> tuple[Tensor, Tensor]:
        """As `predict`, from what `outputs` gave."""
        confidence, label = self.score_of(out), out.logits.argmax(dim=1)
        # NaN and infinity are of what overflowed
        known = (confidence >= self.threshold.to(confidence)) & (confidence < torch.inf)
        return torch.where(known, label, torch.full_like(label, -1)), confidence


class PriorHead(Head):
    """A head that may learn on ``logits + log class_prior``, and expect that prior again later.

    Args:
        class_prior: class frequencies (C,), or a power of them; None: no prior.
        num_classes: C.

    Attributes:
        prior_share: how many times ``log class_prior`` is added to the logits of `outputs`, never
            to those of the loss: 0, as it is at first, where all classes are as likely, 1 where
            they are as in training.
    """

    EXACT: ClassVar = {**Head.EXACT, "class_prior": torch.float32, "prior_share": torch.float32}

    CLASS_TENSORS: ClassVar = {"class_prior": None}

    class_prior: Tensor | None
    prior_share: Tensor

    def __init__(self, class_prior: Tensor | None, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("class_prior", checked_prior(class_prior, num_classes))
        self.register_buffer("prior_share", torch.zeros((), dtype=torch.float32))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.is_whole(state, prefix):  # of version 0.1 without this
            none = torch.zeros_like(state[f"{prefix}threshold"], dtype=torch.float32)
            state.setdefault(f"{prefix}prior_share", none)
        super()._load_from_state_dict(state, prefix, *args)

    def parted(self, features: Tensor) -> HeadOutput:
        if self.layout.shard is None:
            return self.outputs(features)
        return self._outputs(features, whole=False)._replace(features=features)

    @abstractmethod
    def _outputs(self, features: Tensor, *, whole: bool = True) -> HeadOutput:
        """Of rows that all processes have; see `expected`."""

    def expected(self, logits: Tensor, *, whole: bool = True) -> Tensor | SharedLogits:
        """Logits (B, C) with the share of the prior that is expected of what is predicted, from
        those without, of the classes that this process has.

        Args:
            whole: False leaves those of other processes there.
        """
        if self.class_prior is not None:
            prior = self.layout.raw(self.class_prior)
            log_prior = prior.clamp_min(1e-30).log()  # 0 times -inf is no number
            logits = logits + (self.prior_share * log_prior).to(logits.dtype)
        if not whole and self.layout.shard is not None:  # whose classes are those of training
            return SharedLogits(logits, self.layout.shard)
        return self.without_removed(self.layout.whole(logits))


def __getattr__(name: str) -> Any:
    if name == "LinearHead":  # pickles of before it had a file of its own look for it here
        from oltr_ext.nn.linear_head import LinearHead

        return LinearHead
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
