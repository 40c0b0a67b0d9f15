"""Run a model over images; find its threshold for "unknown"; put all its metrics together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext.config.schema import OpenSet
from oltr_ext.data import ImageList
from oltr_ext.data.lists import UNREADABLE
from oltr_ext.engine import distributed
from oltr_ext.engine.splits import Images, make_loader
from oltr_ext.metrics import auroc, auroc_gain, calibrate_threshold, shot_accuracy
from oltr_ext.models import OLTRModel
from oltr_ext.nn import Head
from oltr_ext.nn.sets import set_sizes, true_log_probability

__all__ = ["Outputs", "calibrate", "collect", "stream", "validate"]

BATCH = 256
AUTO_SCORE = "max_logit+relative_mahalanobis+nearest_feature"
AUTO = f"AUROC one standard error above {AUTO_SCORE}"
"""How `auto` chooses a score; models settled by another rule are settled anew."""


@dataclass
class Outputs:
    """What a model answers for a set of images: a few numbers an image, whatever C and D."""

    pred: NDArray[np.int64]  # (N,) class of the largest logit
    target: NDArray[np.int64]  # (N,) class, -1 = open
    scores: dict[str, NDArray[np.float64]]  # (N,) under each name that the head has
    true: NDArray[np.float32] | None = None
    """(N,) log-probability of the true class, -inf for an open image; where asked for."""
    sizes: NDArray[np.int64] | None = None
    """(N, M) classes in the prediction set under each of M thresholds; where asked for."""

    def only(self, rows: NDArray[np.int64]) -> Outputs:
        """For some of the images."""
        scores = {name: score[rows] for name, score in self.scores.items()}
        true = None if self.true is None else self.true[rows]
        sizes = None if self.sizes is None else self.sizes[rows]
        return Outputs(self.pred[rows], self.target[rows], scores, true, sizes)

    @staticmethod
    def join(parts: list[Outputs]) -> Outputs:
        """All of them, with what all of them have."""
        names = parts[0].scores
        true = [p.true for p in parts if p.true is not None]
        sizes = [p.sizes for p in parts if p.sizes is not None]
        return Outputs(
            np.concatenate([p.pred for p in parts]),
            np.concatenate([p.target for p in parts]),
            {name: np.concatenate([p.scores[name] for p in parts]) for name in names},
            np.concatenate(true) if len(true) == len(parts) else None,
            np.concatenate(sizes) if len(sizes) == len(parts) else None,
        )


@torch.no_grad()
def answers(
    head: Head,
    features: Tensor,
    target: Tensor,
    *,
    true: bool = False,
    sets: Tensor | None = None,
) -> Outputs:
    """Outputs for features (B, D) and labels (B,); the logits (B, C)
    end here, and are nowhere whole where processes share the classes. See `collect`."""
    out = head.parted(features)  # `stream` gives all of them to all
    of_sets = (
        true_log_probability(out.logits, target, head.num_trained) if true else None,
        None if sets is None else set_sizes(out.logits, sets, head.num_trained),
    )
    return Outputs(
        out.logits.argmax(dim=1).cpu().numpy(),
        target.cpu().numpy(),
        {name: score.cpu().numpy() for name, score in head.scores(out).items()},
        *(None if found is None else found.cpu().numpy() for found in of_sets),
    )


@torch.no_grad()
def stream(
    model: OLTRModel,
    images: Images,
    device: torch.device,
    *,
    workers: int = 0,
    start: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, D) float32 and labels (B,) on `device`, batch by batch.

    Every image from `start` on, in order, in eval mode and without augmentation. Several processes
    take turns at the batches, and each gets them all. Images that cannot be read are left out, and
    at the end taken off `images`, so that its rows stay those of the results.
    """
    training = model.training
    model.eval()
    rest = np.arange(start, len(images))
    batches = np.split(rest, range(BATCH, len(rest), BATCH))
    turns = range(0, len(batches), distributed.world())
    # where the last turn has too few batches, some process makes the last one for nobody
    own = [batches[min(turn + distributed.rank(), len(batches) - 1)] for turn in turns]
    bad: list[int] = []
    try:
        for turn, (pixels, target) in zip(
            turns, make_loader(images, own, min(workers, len(own)), device), strict=True
        ):
            features = model.features(pixels).float()
            everyones = batches[turn : turn + distributed.world()]
            most = max(len(rows) for rows in everyones)
            for rows, x, y in zip(
                everyones,
                distributed.all_gather(_padded(features, most)),
                distributed.all_gather(_padded(target, most)),
                strict=False,
            ):
                kept = y[: len(rows)] != UNREADABLE
                bad += rows[~kept.cpu().numpy()].tolist()
                if kept.any():
                    yield x[: len(rows)][kept], y[: len(rows)][kept]
    finally:
        model.train(training)
    if bad:
        assert isinstance(images, ImageList)
        images.leave_out(bad)


def _padded(values: Tensor, rows: int) -> Tensor:
    """(rows, ...) of values (B <= rows, ...), with zeros at the end."""
    if len(values) == rows:
        return values
    return torch.cat([values, values.new_zeros(rows - len(values), *values.shape[1:])])


def collect(
    model: OLTRModel,
    images: Images,
    device: torch.device,
    *,
    workers: int = 0,
    true: bool = False,
    sets: Tensor | None = None,
) -> Outputs:
    """Outputs for every image in order, in eval mode and without augmentation; see `stream`.

    Args:
        true: whether to say the log-probability of the true class, by which sets are calibrated and
            judged: a sum over all logits in float64.
        sets: (M, C) on `device`, thresholds under which to count the classes of a prediction set.
    """
    head = model.head
    return Outputs.join(
        [
            answers(head, rows, labels, true=true, sets=sets)
            for features, target in stream(model, images, device, workers=workers)
            for rows, labels in zip(head.pieces(features), head.pieces(target), strict=True)
        ]
    )


def validate(
    seen: Outputs, opened: Outputs | None, train_counts: NDArray[np.int64], shots: Any
) -> dict[str, float]:
    """The numbers a training log shows: closed accuracies, and AUROC of max softmax.

    Raises:
        ValueError: no image of a known class.
    """
    if (seen.target < 0).all():
        raise ValueError("val: none of the images of known classes can be read")
    shot = shot_accuracy(seen.pred, seen.target, train_counts, shots)
    row = {f"val_{k}": float(shot[k]) for k in ("overall", "many", "medium", "few")}
    both = seen if opened is None else Outputs.join([seen, opened])
    if (both.target < 0).any():
        row["val_auroc"] = auroc(both.scores["max_softmax"], both.target)
    return {k: v for k, v in row.items() if np.isfinite(v)}


def calibrate(
    head: Head, seen: Outputs, opened: Outputs | None, settings: OpenSet
) -> dict[str, Any]:
    """Set the head's threshold by the configured rule on validation data.

    The scores are those of `head.predict`, so what is calibrated is what will be compared.

    Returns:
        JSON-able: score, value, rule, and the rule in words.

    Raises:
        ValueError: the rule needs open validation images and there are none.
    """
    both = seen if opened is None else Outputs.join([seen, opened])
    name = _pick_score(settings.score, both)
    scores, known = both.scores[name], both.target >= 0
    strangers = scores[~known]
    if settings.rule != "known_recall" and len(strangers) == 0:
        raise ValueError(f"open_set.rule: {settings.rule} needs open validation images")
    correct = (both.pred == both.target)[known]
    value = calibrate_threshold(
        scores[known],
        rule=settings.rule,
        value=settings.value,
        score_open=strangers if len(strangers) else None,
        correct=correct,
    )
    head.set_threshold(value, name)
    kept = f"{100 * settings.value:g} %"
    words = {
        "known_recall": f"keeps {kept} of the validation images of known classes",
        "f_measure": "highest F-measure on validation data",
        "balanced": "most known images kept and strangers rejected on validation data",
    }[settings.rule]
    return {"score": name, "value": value, "rule": settings.rule, "words": words}


def _pick_score(name: str, both: Outputs) -> str:
    """The configured score; `auto` takes `AUTO_SCORE`, unless another tells validation strangers
    better by more than one standard error of the difference: of many scores that do about as well,
    the highest on a few strangers is more often luck than better."""
    if name != "auto":
        # in stage 1 there is no memory yet to measure a distance to, in training no bank
        return name if name in both.scores else "max_softmax"
    if (both.target >= 0).all():
        return "max_softmax"
    areas = {k: auroc(v, both.target) for k, v in both.scores.items()}
    best = max(areas, key=lambda k: areas[k])
    if AUTO_SCORE not in areas:
        return best
    gain, error = auroc_gain(both.scores[best], both.scores[AUTO_SCORE], both.target)
    return best if gain > error else AUTO_SCORE
