"""Run a model over images; find its threshold for "unknown"; put all its metrics together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext.data import ImageList
from oltr_ext.data.lists import UNREADABLE
from oltr_ext.engine import distributed
from oltr_ext.engine.build import Images, make_loader
from oltr_ext.engine.config import OpenSet
from oltr_ext.metrics import calibrate_threshold, open_scores, open_set_metrics, shot_accuracy
from oltr_ext.models import OLTRModel
from oltr_ext.nn import Head

__all__ = ["Outputs", "calibrate", "collect", "stream", "validate"]

BATCH = 256

Floats = NDArray[np.float64]


@dataclass
class Outputs:
    """What a model gives for a set of images, on the CPU."""

    features: Tensor  # (N, D)
    logits: Tensor  # (N, C)
    distance: Tensor | None  # (N,) to the nearest centroid; None for a head without memory
    target: Tensor  # (N,) class, -1 = open
    unknown: Tensor | None = None  # (N,) probability of "unknown", from a head that gives one

    @staticmethod
    def join(parts: list[Outputs]) -> Outputs:
        distances = [p.distance for p in parts if p.distance is not None]
        unknowns = [p.unknown for p in parts if p.unknown is not None]
        return Outputs(
            torch.cat([p.features for p in parts]),
            torch.cat([p.logits for p in parts]),
            torch.cat(distances) if distances else None,
            torch.cat([p.target for p in parts]),
            torch.cat(unknowns) if unknowns else None,
        )

    def scores(self) -> dict[str, Floats]:
        """Every open-set score that the model's head has, (N,) each."""
        return open_scores(self.logits, self.distance, self.unknown)


@torch.no_grad()
def stream(
    model: OLTRModel, images: Images, device: torch.device, *, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (B, D) float32 and labels (B,) on `device`, batch by batch.

    Every image in order, in eval mode and without augmentation. Several processes take turns at
    the batches, and each gets them all. Images that cannot be read are left out, and at the end
    taken off `images`, so that its rows stay those of the results.
    """
    training = model.training
    model.eval()
    batches = np.split(np.arange(len(images)), range(BATCH, len(images), BATCH))
    turns = range(0, len(batches), distributed.world())
    # where the last turn has too few batches, some process makes the last one for nobody
    own = [batches[min(turn + distributed.rank(), len(batches) - 1)] for turn in turns]
    bad: list[int] = []
    try:
        for turn, (pixels, target) in zip(
            turns, make_loader(images, own, min(workers, len(own))), strict=True
        ):
            features = model.features(pixels.to(device)).float()
            everyones = batches[turn : turn + distributed.world()]
            most = max(len(rows) for rows in everyones)
            for rows, x, y in zip(
                everyones,
                distributed.all_gather(_padded(features, most)),
                distributed.all_gather(_padded(target.to(device), most)),
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


@torch.no_grad()
def collect(model: OLTRModel, images: Images, device: torch.device, *, workers: int = 0) -> Outputs:
    """Outputs for every image in order, in eval mode and without augmentation; see `stream`."""
    parts = []
    for features, target in stream(model, images, device, workers=workers):
        out = model.head.outputs(features)
        distance = None if out.distance is None else out.distance.float().cpu()
        unknown = None if out.unknown is None else out.unknown.cpu()
        parts.append(
            Outputs(features.cpu(), out.logits.float().cpu(), distance, target.cpu(), unknown)
        )
    return Outputs.join(parts)


def validate(
    seen: Outputs, opened: Outputs | None, train_counts: NDArray[np.int64], shots: Any
) -> dict[str, float]:
    """The numbers a training log shows: closed accuracies, and AUROC of max softmax."""
    pred = seen.logits.argmax(dim=1)
    shot = shot_accuracy(pred, seen.target, train_counts, shots)
    row = {f"val_{k}": float(shot[k]) for k in ("overall", "many", "medium", "few")}
    if opened is not None:
        both = Outputs.join([seen, opened])
        score = open_scores(both.logits)["max_softmax"]
        row["val_auroc"] = float(open_set_metrics(score, both.target)["auroc"])
    return {k: v for k, v in row.items() if np.isfinite(v)}


def calibrate(
    head: Head, seen: Outputs, opened: Outputs | None, settings: OpenSet
) -> dict[str, Any]:
    """Set the head's threshold by the configured rule on validation data.

    The scores come from `head.predict` itself, so what is calibrated is what will be compared.

    Returns:
        JSON-able: score, value, rule, and the rule in words.

    Raises:
        ValueError: the rule needs open validation images and there are none.
    """
    name = _pick_score(settings.score, seen, opened)
    both = seen if opened is None else Outputs.join([seen, opened])
    confidence = confidences(head, both.features, name)
    known = both.target.numpy() >= 0
    strangers = confidence[~known]
    if settings.rule != "known_recall" and len(strangers) == 0:
        raise ValueError(f"open_set.rule: {settings.rule} needs open validation images")
    correct = (both.logits.argmax(dim=1) == both.target).numpy()[known]
    value = calibrate_threshold(
        confidence[known],
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


@torch.no_grad()
def confidences(head: Head, features: Tensor, score: str) -> NDArray[np.float32]:
    """(N,) the confidence `head.predict` gives by this score; higher means known."""
    head.set_threshold(float("-inf"), score)
    device = next(head.parameters()).device
    _, confidence = head.predict(features.to(device))
    return confidence.cpu().numpy()


def _pick_score(name: str, seen: Outputs, opened: Outputs | None) -> str:
    """The configured score; `auto` takes the one that best tells strangers on validation data."""
    if name != "auto":
        # in stage 1 there is no memory yet to measure a distance to
        return name if name in seen.scores() else "max_softmax"
    if opened is None:
        return "max_softmax"
    both = Outputs.join([seen, opened])
    auroc = {k: open_set_metrics(v, both.target)["auroc"] for k, v in both.scores().items()}
    return max(auroc, key=lambda k: auroc[k])
