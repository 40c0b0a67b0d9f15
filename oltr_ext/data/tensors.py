"""Images that fit in memory, served in whole batches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from oltr_ext.data.augment import Augment

__all__ = ["TensorImages"]


class TensorImages(Dataset[tuple[Tensor, int]]):
    """uint8 images (N, C, H, W) with labels (N,).

    Args:
        images: uint8 (N, C, H, W).
        labels: (N,) int, -1 for open images.
        augment: what whoever trains on them does to the batches.
        seed: the augmentation of an image is a pure function of (seed, position, image).

    Attributes:
        names: N true names, "" where not known; None where none is.

    Raises:
        TypeError: images are not uint8. ValueError: shapes do not fit, or there are no images.
    """

    def __init__(
        self, images: Tensor, labels: ArrayLike, augment: Augment | None = None, *, seed: int = 0
    ) -> None:
        self.labels: NDArray[np.int64] = np.asarray(labels).astype(np.int64)
        if images.dtype != torch.uint8:
            raise TypeError(f"TensorImages: expected uint8 images, got {images.dtype}")
        if images.dim() != 4 or self.labels.shape != images.shape[:1]:
            raise ValueError(
                "TensorImages: expected images (N, C, H, W) and labels (N,), "
                f"got {tuple(images.shape)} and {self.labels.shape}"
            )
        if len(images) == 0:
            raise ValueError("TensorImages: the data set is empty")
        self.images = images
        self.augment = augment
        self.seed = seed
        self.names: list[str] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[int(index)], int(self.labels[index])

    def __getitems__(self, keys: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Batch: uint8 images (B, C, H, W) and labels (B,) for rows of (position, index), or
        indices."""
        index = keys if keys.ndim == 1 else keys[:, 1]
        return self.images[torch.from_numpy(index)], torch.from_numpy(self.labels[index])
