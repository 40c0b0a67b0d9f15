"""Embedded icons: 50 long-tailed known classes, strangers, and splits no designer crosses.

A class is the name of an icon, a source is an icon set. ``build.py`` says how the array came about,
``ATTRIBUTION.md`` whose work it is. It loads with numpy and the standard library.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["NUM_KNOWN", "SPLITS", "Icons", "load_icons"]

NUM_KNOWN = 50
SPLITS = ("train", "val", "test", "open_val", "open_test")


@dataclass(frozen=True)
class Icons:
    """The whole data set: N images of 32 x 32 pixels, ink bright on black.

    The sides train, validation (``val`` and ``open_val``) and test (``test`` and ``open_test``)
    share no icon set and no designer; the open classes of validation and test differ.

    Attributes:
        images: (N, 32, 32) uint8.
        class_index: (N,) int64, position in ``class_names``; from 50 on the class is open.
        part: (N,) str, one of ``SPLITS``.
        set_name: (N,) str, prefix of the icon set.
        icon_name: (N,) str, name of the icon in its set.
        class_names: the 50 known classes by falling training count, then the open ones.
    """

    images: np.ndarray
    class_index: np.ndarray
    part: np.ndarray
    set_name: np.ndarray
    icon_name: np.ndarray
    class_names: list[str]

    @property
    def known_names(self) -> list[str]:
        """Names of labels 0 to 49."""
        return self.class_names[:NUM_KNOWN]

    @property
    def train_counts(self) -> Tensor:
        """(50,) int64, training images of each known class."""
        return torch.from_numpy(
            np.bincount(self.class_index[self.part == "train"], minlength=NUM_KNOWN)
        )

    def rows(self, name: str) -> np.ndarray:
        """(n,) int64, positions of one split. Raises ValueError for a name not in ``SPLITS``."""
        if name not in SPLITS:
            raise ValueError(f"Icons: expected a split of {', '.join(SPLITS)}, got {name!r}")
        return np.flatnonzero(self.part == name)

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """Images (n, 1, 32, 32) uint8 and labels (n,) int64 of one split; open classes are -1."""
        rows = self.rows(name)
        label = self.class_index[rows]
        label = np.where(label < NUM_KNOWN, label, -1)
        return torch.from_numpy(self.images[rows]).unsqueeze(1), torch.from_numpy(label)


@lru_cache(maxsize=1)
def load_icons() -> Icons:
    """Read the array beside this file, once a process.

    Raises:
        FileNotFoundError: ``icons.npz`` was not installed.
        ValueError: the pixels do not match their recorded SHA-256.
    """
    path = Path(__file__).with_name("icons.npz")
    with np.load(path, allow_pickle=False) as file:
        pixels = lzma.decompress(file["images"].tobytes())
        text = json.loads(lzma.decompress(file["text"].tobytes()))
        class_index = file["class_index"].astype(np.int64)
        part = np.array(SPLITS)[file["split"]]
        set_name = np.array(text["set_names"])[file["set_index"]]
        digest = file["sha256"].tobytes()
    if hashlib.sha256(pixels).digest() != digest:
        raise ValueError(f"load_icons: {path} is damaged: its SHA-256 is not the recorded one")
    images = np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, 32, 32)  # writable copy
    return Icons(
        images, class_index, part, set_name, np.array(text["icon_names"]), text["class_names"]
    )
