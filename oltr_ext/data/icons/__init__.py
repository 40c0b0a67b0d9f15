"""Embedded icons: 50 long-tailed known classes, strangers, and splits no designer crosses.

A class is the name of an icon, a source is an icon set. ``build.py`` says how the array came about,
``ATTRIBUTION.md`` whose work it is. It loads with numpy and the standard library.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from oltr_ext.data.pack import SPLITS, Pack

__all__ = ["NUM_KNOWN", "SPLITS", "Icons", "load_icons"]

NUM_KNOWN = 50


@dataclass(frozen=True)
class Icons(Pack):
    """The embedded data set as a `Pack` of 32 x 32 pixels; its sources are icon sets.

    The sides train, validation (``val`` and ``open_val``) and test (``test`` and ``open_test``)
    share no icon set and no designer; the open classes of validation and test differ. The known
    classes come by falling training count.

    Attributes:
        icon_name: (N,) str, name of the icon in its set.
    """

    icon_name: np.ndarray = field(kw_only=True)

    @property
    def set_name(self) -> np.ndarray:
        """(N,) str, prefix of each image's icon set."""
        return np.array(self.source_names)[self.source_index]

    def image_id(self, row: int) -> str:
        return f"{self.source_names[self.source_index[row]]}:{self.icon_name[row]}"


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
        index = {
            "class_index": file["class_index"].astype(np.int64),
            "split_index": file["split"].astype(np.int64),
            "source_index": file["set_index"].astype(np.int64),
        }
        digest = file["sha256"].tobytes()
    if hashlib.sha256(pixels).digest() != digest:
        raise ValueError(f"load_icons: {path} is damaged: its SHA-256 is not the recorded one")
    return Icons(
        images=np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, 32, 32),  # writable copy
        **index,
        class_names=text["class_names"],
        source_names=text["set_names"],
        icon_name=np.array(text["icon_names"]),
    )
