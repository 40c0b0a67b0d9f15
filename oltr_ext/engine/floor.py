"""The least that a network should reach: the nearest class mean of the pixels themselves."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from oltr_ext.data import Embeddings
from oltr_ext.engine.evaluate import Outputs
from oltr_ext.engine.splits import Images, Splits, make_loader
from oltr_ext.ops import class_means, nearest_centroid

__all__ = ["LIMIT", "below_floor", "pixel_accuracy"]

LIMIT = 5_000
"""Training and validation images for which it is asked: loading them once more takes seconds."""

SIDE = 32  # pixels; larger images are averaged to so many
BATCH = 256


def below_floor(splits: Splits, seen: Outputs) -> list[str]:
    """A line where a model trained on few images is worse on the validation images than the class
    means of their pixels; none where it is not, for more than `LIMIT` images, and for embeddings.

    Args:
        seen: what the model that is kept answers for `splits.val`.
    """
    few = len(splits.plain) + len(splits.val) <= LIMIT
    if isinstance(splits.val, Embeddings) or not few:
        return []
    floor, known = pixel_accuracy(splits), seen.target >= 0
    accuracy = float((seen.pred == seen.target)[known].mean())
    if accuracy >= floor:
        return []
    return [
        f"warning: val {100 * accuracy:.1f} % is below the {100 * floor:.1f} % that the nearest "
        "class mean of the pixels themselves reaches; look at data.augment, the learning rates and "
        "the epochs"
    ]


@torch.no_grad()
def pixel_accuracy(splits: Splits) -> float:
    """Share of the known validation images nearest to the mean of their class's training images,
    as colours or greys of at most 32 x 32 pixels."""
    images, labels = _pixels(splits.plain, splits.workers)
    classes, dense = labels.unique(return_inverse=True)  # one without images has no mean
    means, _ = class_means(images, dense, len(classes))
    seen, target = _pixels(splits.val, splits.workers)
    _, nearest = nearest_centroid(seen, means)
    return float((classes[nearest] == target).double().mean())


def _pixels(images: Images, workers: int) -> tuple[Tensor, Tensor]:
    """(N, D) float32 and labels (N,), without open and unreadable images."""
    every = np.arange(len(images))
    batches = np.split(every, range(BATCH, len(every), BATCH))
    parts = []
    for pixels, labels in make_loader(images, batches, min(workers, len(batches))):
        small = F.adaptive_avg_pool2d(pixels, min(pixels.shape[2], SIDE))
        parts.append((small[labels >= 0].flatten(1), labels[labels >= 0]))
    return torch.cat([rows for rows, _ in parts]), torch.cat([labels for _, labels in parts])
