"""The model that answers, which is read again where its file has changed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext.engine import checkpoint
from oltr_ext.metrics import json_ready
from oltr_ext.serve.inputs import Reads, checked_rows, features_of, reads, row_width, rows_features
from oltr_ext.serve.predict import answers
from oltr_ext.serve.sets import DEFAULT, SetAnswer
from oltr_ext.serve.trained import Trained, load_trained

__all__ = ["ROWS", "Answer", "Asked", "Question", "Served", "Watched", "answer"]

ROWS = 256
"""Rows of features that count as one image."""

SETS = 16  # of (alpha, method) whose thresholds are kept

Answer = list[dict[str, Any]]
"""One for each image or row, as `oltr predict --json` has them, and whether it is ``unknown``."""

log = logging.getLogger("oltr_ext.service")


@dataclass(frozen=True)
class Question:
    """What is asked about an image or row."""

    nearest: int = 3
    alpha: float | None = None  # of a prediction set
    method: str = DEFAULT


class Served:
    """A model as it was read."""

    def __init__(self, trained: Trained) -> None:
        self.trained, self.images, self.width = trained, _images_of(trained), row_width(trained)
        self._sets: dict[tuple[float, str], SetAnswer] = {}
        self._making = threading.Lock()

    @own_defaults()
    def check(self, question: Question) -> None:
        """Raises ValueError where it cannot be asked this."""
        if question.alpha is None or (question.alpha, question.method) in self._sets:
            return
        if self.trained.calibration is None:
            raise ValueError("this model has no calibration scores, and so no prediction sets")
        asked = SetAnswer(self.trained, question.alpha, question.method)
        with self._making:
            while len(self._sets) >= SETS:
                self._sets.pop(next(iter(self._sets)))
            self._sets[question.alpha, question.method] = asked

    def rows(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """Rows of features in pieces. Raises ValueError: another shape, no floats, not finite."""
        whole = checked_rows(self.trained, rows, "embeddings")
        if not len(whole):
            raise ValueError("embeddings: expected rows, got none")
        return [whole[begin : begin + ROWS] for begin in range(0, len(whole), ROWS)]

    def sets(self, question: Question, features: Tensor, names: Sequence[str]) -> Answer:
        """What `oltr predict --json --set` has beside an answer."""
        assert question.alpha is not None
        held = self._sets.get((question.alpha, question.method))
        asked = held or SetAnswer(self.trained, question.alpha, question.method)
        found = asked.gathered(asked(features, names))
        return [
            {
                "set": [*zip(each.labels.tolist(), each.probability.tolist(), strict=True)],
                "alpha": question.alpha,
                "method": question.method,
            }
            for each in found
        ]


@dataclass(frozen=True)
class Asked:
    """An image or some rows of features, as read for a model, and what is asked about them."""

    of: Served
    names: list[str]
    question: Question
    pixels: Tensor | None = None  # uint8 (C, H, W)
    rows: NDArray[Any] | None = None  # (N, D)


@own_defaults()
@torch.no_grad()
def answer(batch: Sequence[Asked]) -> list[Answer]:
    """The answers to all, from as few passes as there are models and kinds among them."""
    found: dict[int, Answer] = {}
    groups: dict[tuple[int, bool], list[int]] = {}
    for n, asked in enumerate(batch):
        groups.setdefault((id(asked.of), asked.rows is None), []).append(n)
    for members in groups.values():
        group = [batch[n] for n in members]
        found |= dict(zip(members, _together(group[0].of, group), strict=True))
    return [found[n] for n in range(len(batch))]


def _together(of: Served, group: Sequence[Asked]) -> list[Answer]:
    rows = [each.rows for each in group if each.rows is not None]
    if rows:
        features = rows_features(of.trained, np.concatenate(rows))
    else:
        pixels = [each.pixels for each in group if each.pixels is not None]
        features = features_of(of.trained, torch.stack(pixels))
    names = [name for each in group for name in each.names]
    most = max(each.question.nearest for each in group)
    said = answers(of.trained, features, names, most)
    found, begin = list[Answer](), 0
    for each in group:
        end = begin + len(each.names)
        mine = [
            {
                **vars(one),
                "nearest": one.nearest[: each.question.nearest],
                "unknown": not one.known,
            }
            for one in said[begin:end]
        ]
        if each.question.alpha is not None:
            sets = of.sets(each.question, features[begin:end], each.names)
            mine = [one | more for one, more in zip(mine, sets, strict=True)]
        found.append(json_ready(mine))
        begin = end
    return found


def _images_of(trained: Trained) -> Reads | None:
    """How it reads images; None where it takes features alone."""
    try:
        return reads(trained)
    except (OSError, ValueError) as error:
        log.warning("images are refused, features are not: %s", error)
        return None


@dataclass
class Watched:
    """A model in its file, which others may write.

    Attributes:
        served: as it was read last; a request holds on to the one that it began with.
    """

    path: Path
    device: str = "auto"
    served: Served = field(init=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self._mark: tuple[int, ...] | None = ()
        self.refresh()

    def read(self) -> Trained:
        """As the file is now, for who wants to change it."""
        return load_trained(self.path, device=self.device)

    def refresh(self) -> bool:
        """Whether the file was another, and is what is served now.

        Raises:
            CheckpointError, OSError: it is not there, or damaged; what was served still is.
        """
        mark = self._stat()
        if mark == self._mark:
            return False
        try:
            served = Served(self.read())
        except OSError:  # of the moment, such as too many open files: it is tried again
            raise
        except BaseException:
            self._mark = mark  # what is wrong with the file stays until it has changed
            raise
        self.served, self._mark = served, mark
        return True

    def _stat(self) -> tuple[int, ...] | None:
        """Of the file before it is read: a change in between is seen the next time."""
        try:
            found = os.stat(self.path / checkpoint.MODEL if self.path.is_dir() else self.path)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
