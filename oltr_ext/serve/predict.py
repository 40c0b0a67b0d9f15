"""What a trained model says of images and of embeddings: a label, or unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext.config.schema import EmbeddingsData
from oltr_ext.nn import Head, OLTRHead
from oltr_ext.serve.inputs import (
    Picture,
    checked_rows,
    features_of,
    pil_image,
    pixels_of,
    reads,
    rows_features,
)
from oltr_ext.serve.trained import Trained

__all__ = [
    "Named",
    "Picture",
    "Prediction",
    "answers",
    "image_features",
    "numbered_features",
    "predict_embeddings",
    "predict_features",
    "predict_images",
    "row_features",
]


Named = tuple[list[str], Tensor]
"""What to call each of some images, and their features (B, D) as the head sees them."""

ROW = re.compile(r"(?P<file>.+\.npy)\[(?P<row>\d+)\]")
"""A row of a file, as answers call it."""


@dataclass
class Prediction:
    """The answer for one image or row; `label` is None for "unknown"."""

    path: str
    label: str | None
    confidence: float
    score: str
    threshold: float
    closed: str
    nearest: list[tuple[str, float]]  # known classes: distance to centroids, or probability

    @property
    def known(self) -> bool:
        return self.label is not None


@own_defaults()
@torch.no_grad()
def predict_images(
    trained: Trained,
    images: Sequence[Picture],
    *,
    nearest: int = 3,
    batch_size: int = 64,
    on_error: Callable[[Exception], None] | None = None,
) -> list[Prediction]:
    """Label or unknown for images, in order; or for the rows of .npy files of embeddings.

    Each prediction's `path` is the image's file, or ``image[n]``. Images are read as those of
    training. For icons and the package's own packs, that is as bright ink on a dark ground,
    inverted where their border is light; for a pack of your own, as they are.

    Args:
        nearest: how many known classes to name, by distance to their centroids in the memory,
            or by probability for a model without memory.
        on_error: gets the error of an image that cannot be read, which is then left out; by
            default it is raised.

    Raises:
        FileNotFoundError: no such image. ValueError: a file that is no image; a model trained on
            embeddings of which it is not known how to make them.
    """
    return [
        answer
        for names, features in image_features(
            trained, images, batch_size=batch_size, on_error=on_error
        )
        for answer in answers(trained, features, names, nearest)
    ]


@own_defaults()
@torch.no_grad()
def predict_embeddings(
    trained: Trained,
    embeddings: ArrayLike,
    *,
    name: str = "row",
    nearest: int = 3,
    batch_size: int = 256,
) -> list[Prediction]:
    """Label or unknown for embeddings like those that the model was trained on, in order.

    Args:
        embeddings: (N, D) floats.
        name: what to call them: each prediction's `path` is ``name[n]``.
        nearest: see `predict_images`.

    Raises:
        ValueError: a model that was not trained on embeddings, another shape, or NaN or infinity.
    """
    if not isinstance(trained.config.data, EmbeddingsData):
        raise ValueError(f"{trained.path} was trained on images, not on embeddings")
    return predict_features(trained, embeddings, name=name, nearest=nearest, batch_size=batch_size)


@own_defaults()
@torch.no_grad()
def predict_features(
    trained: Trained,
    features: ArrayLike,
    *,
    name: str = "row",
    nearest: int = 3,
    batch_size: int = 256,
) -> list[Prediction]:
    """Label or unknown for features, in order: of a model trained on embeddings such as it was
    trained on, of one trained on images such as `embed` makes of them.

    Args: as of `predict_embeddings`.

    Raises:
        ValueError: another shape, or NaN or infinity.
    """
    return [
        answer
        for names, part in row_features(trained, features, name=name, batch_size=batch_size)
        for answer in answers(trained, part, names, nearest)
    ]


@torch.no_grad()
def image_features(
    trained: Trained,
    images: Sequence[Picture],
    *,
    batch_size: int = 64,
    on_error: Callable[[Exception], None] | None = None,
) -> Iterator[Named]:
    """What the head is asked about images and rows of .npy files, batch by batch, with their
    names; for functions of `own_defaults`, which a generator cannot set.

    Args, Raises: as of `predict_images`.
    """
    for _, names, features in numbered_features(
        trained, images, batch_size=batch_size, on_error=on_error
    ):
        yield names, features


@torch.no_grad()
def numbered_features(
    trained: Trained,
    images: Sequence[Picture],
    *,
    batch_size: int = 64,
    on_error: Callable[[Exception], None] | None = None,
) -> Iterator[tuple[list[int], list[str], Tensor]]:
    """Likewise, each with its place in `images`: of a file of embeddings there are many."""
    places = range(len(images))
    for rows, group in groupby(places, key=lambda place: _is_rows(images[place])):
        if not rows:
            here = list(group)
            given = [images[place] for place in here]
            batches = image_batches(trained, given, batch_size, on_error, first=here[0])
            for numbers, _, features in batches:
                yield numbers, [name_of(images[n], n) for n in numbers], features
            continue
        for place in group:
            try:
                for names, features in _file_features(trained, str(images[place])):
                    yield [place] * len(names), names, features
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(error)


def name_of(image: Picture, number: int) -> str:
    """What an answer calls an image: its file, or ``image[n]``."""
    return str(image) if isinstance(image, str | Path) else f"image[{number}]"


@torch.no_grad()
def image_batches(
    trained: Trained,
    images: Sequence[Picture],
    batch_size: int,
    on_error: Callable[[Exception], None] | None = None,
    *,
    first: int = 0,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Of each batch the places of its images, which count from `first`, their pixels uint8
    (B, C, H, W) as they are read, and features (B, D) float32 on the model's device; as
    `image_features`."""
    data, shape = reads(trained)
    for begin in range(0, len(images), batch_size):
        read: list[tuple[int, Tensor]] = []
        for number, image in enumerate(images[begin : begin + batch_size], first + begin):
            try:
                if isinstance(image, str | Path):
                    read.append((number, pixels_of(data, shape, Path(image))))
                else:
                    name = name_of(image, number)
                    read.append((number, pixels_of(data, shape, pil_image(image, name), name)))
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(error)
        if not read:
            continue
        numbers, stack = zip(*read, strict=True)
        seen = torch.stack(stack)
        yield list(numbers), seen, features_of(trained, seen)


@torch.no_grad()
def row_features(
    trained: Trained, features: ArrayLike, *, name: str = "row", batch_size: int = 256
) -> Iterator[Named]:
    """The same about rows of features.

    Args, Raises: as of `predict_features`.
    """
    rows = checked_rows(trained, features, name)
    pieces = [slice(begin, begin + batch_size) for begin in range(0, len(rows), batch_size)]
    for piece in pieces:
        part = rows_features(trained, rows[piece])
        yield [f"{name}[{piece.start + n}]" for n in range(len(part))], part


def _is_rows(image: Picture) -> bool:
    """Whether it is a path of embeddings: a file of them, or a row of one as answers call it."""
    path = str(image) if isinstance(image, str | Path) else ""
    return path.endswith(".npy") or ROW.fullmatch(path) is not None


def _file_features(trained: Trained, path: str) -> Iterator[Named]:
    row = None if Path(path).is_file() else ROW.fullmatch(path)
    file = Path(path if row is None else row["file"])
    rows = open_rows(file)
    if row is None:
        yield from row_features(trained, rows, name=str(path))
        return
    number = int(row["row"])
    if rows.ndim != 2 or number >= len(rows):
        raise ValueError(f"{path}: expected a row of (N, D), got {rows.shape}")
    for _, part in row_features(trained, rows[number : number + 1], name=str(file)):
        yield [path], part


def open_rows(path: Path) -> NDArray[Any]:
    """The array of a .npy file, as a memory map.

    Raises:
        FileNotFoundError: no such file. ValueError: it is damaged, or no .npy file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def answers(
    trained: Trained, features: Tensor, paths: Sequence[str], nearest: int
) -> list[Prediction]:
    """Label or unknown for features (B, D) as the head sees them: all of one state of its classes,
    whoever changes them meanwhile."""
    head, threshold = trained.model.head, trained.threshold
    found: list[Prediction] = []
    with head.reading():
        names = head.roster.names
        for piece in head.pieces(features):
            out = head.outputs(piece)
            label, confidence = head.answer(out)
            closed = out.logits.argmax(dim=1)
            order, value = nearest_classes(head, piece, out.logits, nearest)
            found += [
                Prediction(
                    path=path,
                    label=None if label[n] < 0 else names[int(label[n])],
                    confidence=float(confidence[n]),
                    score=threshold["score"],
                    threshold=float(threshold["value"]),
                    closed=names[int(closed[n])],
                    nearest=[(names[c], v) for c, v in zip(order[n], value[n], strict=True)],
                )
                for n, path in enumerate(paths[len(found) : len(found) + len(piece)])
            ]
    return found


def nearest_classes(
    head: Head, features: Tensor, logits: Tensor, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Per row the closest known classes, best first, with distance (memory) or probability."""
    count = min(count, len(head.roster.living))
    if isinstance(head, OLTRHead):
        value, order = head.memory.closest(features, count)
    else:
        value, order = logits.softmax(dim=1).topk(count, dim=1)
    return order.tolist(), value.tolist()
