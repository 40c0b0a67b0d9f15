"""What is settled once a model is trained, without training: how frequent it takes classes to be in
what it will see, what it keeps of the training's features, and its threshold for "unknown"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.config.schema import Config, OpenSet, TestPrior
from oltr_ext.engine.build import class_frequencies
from oltr_ext.engine.evaluate import AUTO, Outputs, calibrate, collect, stream
from oltr_ext.engine.observed import observation_thresholds
from oltr_ext.engine.splits import Splits
from oltr_ext.metrics import auroc, shot_accuracy
from oltr_ext.models import OLTRModel
from oltr_ext.nn import FeatureBank, Head, PriorHead, prior_share
from oltr_ext.nn.feature_bank import NEEDS
from oltr_ext.nn.scores import BANK_SCORES, SCORES, SUM_SCORES

__all__ = [
    "check_score",
    "class_worth",
    "expect",
    "expectation",
    "expected_accuracy",
    "expects",
    "found_share",
    "has_prior",
    "settle",
    "settled_by",
    "share_of",
]


BANK = 1 << 26
"""Numbers of training features that a model keeps unless told otherwise: 268 MB."""


def has_prior(head: Head) -> bool:
    """Whether what a head expects of test images can be set: it learned under a class prior."""
    return isinstance(head, PriorHead) and head.class_prior is not None


def found_share(splits: Splits) -> float:
    """How much of the training's tail the validation images have, by `prior_share`: 0 where all
    classes are as frequent, 1 where they are as in training."""
    counts = torch.from_numpy(_val_counts(splits))
    return prior_share(counts, class_frequencies(splits.train_counts))


def share_of(test_prior: TestPrior, splits: Splits) -> float:
    """The share of the training's tail that a setting asks to expect. `val` never asks for more
    than all of it, nor for an inverted one: validation images that were taken from where there were
    enough have a longer tail than the training, and say nothing of test images by that."""
    if test_prior == "balanced":
        return 0.0
    return min(max(found_share(splits), 0.0), 1.0) if test_prior == "val" else test_prior


def class_worth(test_prior: TestPrior, splits: Splits) -> Tensor:
    """(C,) float64: what to count a validation image of each class for, so that classes weigh as
    `test_prior` expects them; zero for a class without any."""
    counts = torch.from_numpy(_val_counts(splits)).double()
    if test_prior == "val":
        return torch.ones_like(counts)
    expected = class_frequencies(splits.train_counts).double() ** share_of(test_prior, splits)
    return torch.where(counts > 0, expected / counts.clamp_min(1), 0)


def expected_accuracy(seen: Outputs, test_prior: TestPrior, splits: Splits) -> float:
    """Accuracy on validation images whose classes count as `test_prior` expects them."""
    known = seen.target >= 0
    target, worth = seen.target[known], class_worth(test_prior, splits).numpy()
    return float(worth[target][seen.pred[known] == target].sum() / worth[target].sum())


def expect(head: Head, share: float) -> None:
    """Make a head expect a share of the training's tail, if it learned under a prior."""
    if isinstance(head, PriorHead) and head.class_prior is not None:
        head.prior_share.fill_(share)


def expects(head: Head) -> str:
    """What a head expects of test images, in a word for tables: ``alike`` (all classes),
    ``training`` (its frequencies), a share between them, or ``-``: nothing that could be set."""
    if not isinstance(head, PriorHead) or head.class_prior is None:
        return "-"
    share = float(head.prior_share)
    return {0.0: "alike", 1.0: "training"}.get(share, f"{share:.2f}")


def expectation(share: float) -> str:
    """The same in a sentence."""
    if share in (0, 1):
        return "all classes alike" if share == 0 else "classes as frequent as in training"
    return f"{share:.2f} of the training's tail"


def settled_by() -> list[str]:
    """What a model is settled by today: how a score is chosen, and among which, and that sizes of
    observations have thresholds. A finished run that was settled by others is settled anew, without
    training."""
    return [AUTO, *SCORES, "observations"]


def check_score(settings: OpenSet, model: OLTRModel) -> None:
    """Raises ValueError where a model's head will not have the score that `open_set` names."""
    if settings.score == "auto":
        return
    if settings.score in BANK_SCORES:
        parts = SUM_SCORES.get(settings.score, (settings.score,))
        near = [part for part in parts if "rows" in NEEDS.get(part, ())]
        if settings.features == 0 and near:
            raise ValueError(f"open_set.score: {near[0]} needs some, and open_set.features = 0")
        return
    device = model.head.threshold.device
    with torch.no_grad():
        out = model.head.parted(torch.zeros(1, model.feature_dim, device=device))
    try:
        model.head.score_of(out, settings.score)
    except ValueError as error:
        raise ValueError(f"open_set.score: {error}") from None


@torch.no_grad()
def settle(
    model: OLTRModel,
    config: Config,
    splits: Splits,
    device: torch.device,
    say: Callable[[str], None] = lambda _: None,
    *,
    fit: bool = True,
) -> tuple[dict[str, Any], Outputs]:
    """Set what a trained model's head expects, its bank, and its threshold under both.

    The bank is of the training images as they are, not augmented. What a sum of scores shifts and
    scales by, the score and the threshold are those of validation images. In several processes,
    all of them call this.

    Args:
        say: gets a line on what is expected, and what the other choice is worth on these images,
            as frequent as they are and with all classes alike; and one on the score and what is
            kept.
        fit: False leaves the bank as it is.

    Returns:
        What `calibrate` returns, with ``observations``, as of `observation_thresholds`; and what
        the model now answers for the validation images.

    Raises:
        ValueError: a score or rule that this head or these data do not have.
    """
    head, asked = model.head, config.test_prior
    check_score(config.open_set, model)
    if fit:
        most = config.open_set.features
        expect(head, 0.0)  # vim matches its logits, and stays where another tail is expected
        head.fit_bank(
            stream(model, splits.plain, device, workers=splits.workers),
            splits.train_counts.tolist(),
            most=BANK // model.feature_dim if most is None else most,
            neighbours=config.open_set.neighbours,
        )

    def seen_under(share: float) -> Outputs:
        expect(head, share)
        return collect(model, splits.val, device, workers=splits.workers, true=True)

    if has_prior(head):
        share, found = share_of(asked, splits), found_share(splits)
        other = min(max(found, 0.0), 1.0) if share == 0 else 0.0
        if abs(share - other) >= 0.05:
            there = _accuracies(seen_under(other), config, splits)
        seen = seen_under(share)
        here = _accuracies(seen, config, splits)
        line = f"test_prior: {asked}: expects {expectation(share)}; validation {here}"
        if abs(share - other) >= 0.05:
            how = "balanced" if other == 0 else "val"
            line += (
                f"\nexpecting {expectation(other)}: validation {there}; oltr eval RUN --test-prior "
                f"{how} judges so"
            )
        say(line)
    else:
        seen = seen_under(0.0)
    opened = None
    if splits.open_val is not None:
        opened = collect(model, splits.open_val, device, workers=splits.workers)
    _add_sums(head.bank, seen, opened)
    if config.open_set.score not in ("auto", *seen.scores):
        raise ValueError(
            f"open_set.score: {config.open_set.score} needs a training feature of each class, and "
            f"open_set.features = {config.open_set.features} for "
            f"{counted(splits.num_classes, 'class')}"
        )
    threshold = calibrate(head, seen, opened, config.open_set)
    say(_score_line(threshold["score"], seen, opened, head.bank, len(splits.train)))
    kept = config.open_set.value if threshold["rule"] == "known_recall" else None
    threshold["observations"] = observation_thresholds(model, splits, seen, device, threshold, kept)
    return threshold, seen


def _add_sums(bank: FeatureBank, seen: Outputs, opened: Outputs | None) -> None:
    """The scores that are standardised on the validation images of known classes."""
    if not bank.names:
        return
    known = seen.target >= 0
    bank.standardise({name: torch.from_numpy(v[known]) for name, v in seen.scores.items()})
    for part in (seen, opened):
        if part is not None:
            sums = bank.sums({name: torch.from_numpy(v) for name, v in part.scores.items()})
            part.scores.update({name: v.numpy() for name, v in sums.items()})


def _score_line(
    name: str, seen: Outputs, opened: Outputs | None, bank: FeatureBank, images: int
) -> str:
    line = f"unknown: told by {name}"
    both = seen if opened is None else Outputs.join([seen, opened])
    if (both.target < 0).any():
        areas = {
            each: 100 * auroc(both.scores[each], both.target) for each in (name, "max_softmax")
        }
        line += f", AUROC {areas[name]:.1f} on validation images"
        line += "" if name == "max_softmax" else f" (max_softmax {areas['max_softmax']:.1f})"
    rows = 0 if bank.rows is None else len(bank.rows)
    kept = f"{rows:,}" if rows == images else f"{rows:,} of {images:,}"
    return f"{line}; {kept} training features kept, the bank is {bank.size / 1e6:.1f} MB"


def _accuracies(seen: Outputs, config: Config, splits: Splits) -> str:
    """What each kind of test images would get: frequent as these, or all classes alike."""
    found = shot_accuracy(seen.pred, seen.target, splits.train_counts, config.data.shots)
    few = "" if np.isnan(found["few"]) else f", few-shot {100 * found['few']:.1f}"
    alike = np.nanmean(found["per_class"])
    return f"{100 * found['overall']:.1f} % as it is, {100 * alike:.1f} by class{few}"


def _val_counts(splits: Splits) -> NDArray[np.int64]:
    labels = splits.val.labels
    return np.bincount(labels[labels >= 0], minlength=splits.num_classes)  # -1: open
