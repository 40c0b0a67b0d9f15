"""The classes that an image may be of, by a trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext._words import counted
from oltr_ext.engine.evaluate import collect
from oltr_ext.engine.sets import Calibration, thresholds_of
from oltr_ext.engine.splits import Splits, load_splits
from oltr_ext.metrics import PredictionSets
from oltr_ext.nn.sets import set_members
from oltr_ext.serve.predict import Picture, image_features
from oltr_ext.serve.trained import Trained

__all__ = ["DEFAULT", "SetAnswer", "calibration_of", "image_sets"]

DEFAULT = "shots"


@dataclass
class SetRow:
    """The set of one image, before it is put with others."""

    path: str
    indices: NDArray[np.int64]
    log_prob: NDArray[np.float32]
    unknown: bool


class SetAnswer:
    """Answers by sets, of the classes as they are by now.

    A class that joined has no validation images: it goes by the threshold of the classes of as few
    images, where a method has one threshold a class it is always in. One that was removed never is,
    and its images set no threshold.

    Attributes:
        calibrated_by: how many validation images did.

    Raises:
        ValueError: see `set_thresholds` and `calibration_of`.
    """

    @own_defaults()
    def __init__(self, trained: Trained, alpha: float, method: str = DEFAULT) -> None:
        self.head = trained.model.head
        held = calibration_of(trained).without(trained.roster.removed)
        entries, known = list(trained.roster), len(trained.train_counts)
        counts = trained.train_counts + [entry.images or 1 for entry in entries[known:]]
        self.names = np.array(trained.names, np.object_)
        self.alpha, self.method, self.calibrated_by = alpha, method, len(held.target)
        found = thresholds_of(method, alpha, held, self.head, trained.config, counts)
        found[trained.roster.removed] = torch.inf
        self.thresholds = found

    def __call__(self, features: Tensor, paths: Sequence[str]) -> list[SetRow]:
        """A row for each of features (B, D), which are called by these names."""
        found = list[SetRow]()
        for piece in self.head.pieces(features):
            out = self.head.outputs(piece)
            label, _ = self.head.answer(out)
            sizes, indices, values = set_members(
                out.logits, self.thresholds.to(out.logits.device), self.head.num_trained
            )
            ends = sizes.cumsum(0)[:-1].tolist()
            parts = zip(
                paths[len(found) : len(found) + len(piece)],
                np.split(indices.cpu().numpy(), ends),
                np.split(values.cpu().numpy(), ends),
                (label < 0).tolist(),
                strict=True,
            )
            found += [SetRow(*part) for part in parts]
        return found

    def gathered(self, rows: Sequence[SetRow]) -> PredictionSets:
        """Rows in order, as one."""
        none = np.empty(0)
        log_prob = np.concatenate([none, *(row.log_prob for row in rows)])
        return PredictionSets(
            indptr=np.cumsum([0, *(len(row.indices) for row in rows)]),
            indices=np.concatenate([none.astype(np.int64), *(row.indices for row in rows)]),
            probability=np.exp(log_prob),
            unknown=np.array([row.unknown for row in rows], np.bool_),
            classes=self.names,
            always=(self.thresholds == -np.inf).cpu().numpy(),
            alpha=self.alpha,
            method=self.method,
        )


@own_defaults()
@torch.no_grad()
def image_sets(
    trained: Trained,
    images: Sequence[Picture],
    asked: SetAnswer,
    on_error: Callable[[Exception], None] | None = None,
) -> list[SetRow]:
    """The set of each image, as `predict_images` takes them."""
    given = image_features(trained, images, on_error=on_error)
    return [row for names, features in given for row in asked(features, names)]


@own_defaults()
def calibration_of(trained: Trained, splits: Splits | None = None) -> Calibration:
    """What a run's sets go by; of a run from before they were kept, made of its validation images.

    Args:
        splits: its data, where they have been read.

    Raises:
        ValueError: those images are not there, or of other classes.
    """
    if trained.calibration is None:
        try:
            splits = splits or load_splits(trained.config.data)
            if splits.class_names != trained.class_names:
                raise ValueError(f"they are of {counted(len(splits.class_names), 'other class')}")
            model, device, workers = trained.model, trained.device, splits.workers
            seen = collect(model, splits.val, device, workers=workers, true=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{trained.path} has no calibration scores, which the model of a run finished "
                f"since there are prediction sets has, and its validation images cannot be had "
                f"({error}): where they are, oltr train with its configuration and --out "
                f"{trained.path.parent} settles a finished run anew without training"
            ) from None
        trained.calibration = Calibration.of(seen)
    return trained.calibration
