"""What a trained model says of images and of embeddings: a label, or unknown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from oltr_ext.config.loading import run_config
from oltr_ext.config.schema import Data, EmbeddingsData, ListData, PackData
from oltr_ext.data import (
    ImageError,
    eval_transform,
    icon_image,
    network_input,
    read_image,
    read_rgb,
)
from oltr_ext.data.pack import MADE_BY
from oltr_ext.engine.build import own_defaults
from oltr_ext.nn import OLTRHead
from oltr_ext.serve.trained import Embedder, Trained, load_embedder, load_trained

__all__ = [
    "Named",
    "Picture",
    "Prediction",
    "answers",
    "image_features",
    "is_rows",
    "predict_embeddings",
    "predict_features",
    "predict_images",
    "row_features",
]


Picture = str | Path | Image.Image | NDArray[np.uint8]
"""An image: its file, as PIL holds it, or pixels (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA."""

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
    _check_embedded(trained)
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
    """What the head is asked about images, or about rows of .npy files, batch by batch, with their
    names; for functions of `own_defaults`, which a generator cannot set.

    Args, Raises: as of `predict_images`.
    """
    if isinstance(trained.config.data, EmbeddingsData) and all(
        isinstance(p, str | Path) and is_rows(str(p)) for p in images
    ):
        for path in images:
            try:
                yield from _file_features(trained, str(path))
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(error)
        return
    for numbers, _, features in image_batches(trained, images, batch_size, on_error):
        yield [name_of(images[n], n) for n in numbers], features


def name_of(image: Picture, number: int) -> str:
    """What an answer calls an image: its file, or ``image[n]``."""
    return str(image) if isinstance(image, str | Path) else f"image[{number}]"


@torch.no_grad()
def image_batches(
    trained: Trained,
    images: Sequence[Picture],
    batch_size: int,
    on_error: Callable[[Exception], None] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Of each batch the places of its images in `images`, their pixels uint8 (B, C, H, W) as they
    are read, and features (B, D) float32 on the model's device; as `image_features`."""
    embedder = _embedder_of(trained)
    seen_by = trained if embedder is None else embedder
    data, shape = seen_by.config.data, seen_by.image_shape
    for begin in range(0, len(images), batch_size):
        read: list[tuple[int, Tensor]] = []
        for number, image in enumerate(images[begin : begin + batch_size], begin):
            try:
                if isinstance(image, str | Path):
                    read.append((number, _pixels(data, shape, Path(image))))
                else:
                    name = name_of(image, number)
                    read.append((number, _pixels(data, shape, pil_image(image, name), name)))
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(error)
        if not read:
            continue
        numbers, stack = zip(*read, strict=True)
        seen = torch.stack(stack)
        pixels = network_input(seen.to(trained.device))
        if embedder is not None:
            pixels = embedder.model.features(pixels).float()[:, :, None, None]
        yield list(numbers), seen, trained.model.features(pixels).float()


@torch.no_grad()
def row_features(
    trained: Trained, features: ArrayLike, *, name: str = "row", batch_size: int = 256
) -> Iterator[Named]:
    """The same about rows of features.

    Args, Raises: as of `predict_features`.
    """
    embedded = isinstance(trained.config.data, EmbeddingsData)
    width = trained.model.backbone.feature_dim if embedded else trained.model.feature_dim
    rows = np.asarray(features)
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected embeddings of shape (N, {width}), floats, got {rows.shape} of "
            f"{rows.dtype}"
        )
    pieces = [slice(begin, begin + batch_size) for begin in range(0, len(rows), batch_size)]
    if not all(
        np.isfinite(rows[piece].astype(np.float32)).all() for piece in pieces
    ):  # all or none
        raise ValueError(f"{name}: expected finite embeddings, got NaN or infinity")
    for piece in pieces:
        part = torch.from_numpy(rows[piece].astype(np.float32)).to(trained.device)
        if embedded:
            part = trained.model.features(part[:, :, None, None]).float()
        yield [f"{name}[{piece.start + n}]" for n in range(len(part))], part


def is_rows(path: str) -> bool:
    """Whether a path is that of embeddings: a file of them, or a row of one as answers call it."""
    return path.endswith(".npy") or ROW.fullmatch(path) is not None


def _file_features(trained: Trained, path: str) -> Iterator[Named]:
    _check_embedded(trained)
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


def _check_embedded(trained: Trained) -> None:
    if not isinstance(trained.config.data, EmbeddingsData):
        raise ValueError(f"{trained.path} was trained on images, not on embeddings")


def _embedder_of(trained: Trained) -> Embedder | None:
    """What made the embeddings that the model was trained on; None for a model of images."""
    if not isinstance(trained.config.data, EmbeddingsData):
        return None
    if trained.source is None:
        raise ValueError(
            f"{trained.path} was trained on embeddings that do not say what made them: give "
            f"embeddings made likewise, (N, {trained.model.backbone.feature_dim}) in .npy files"
        )
    config = run_config(trained.source["config"], source=str(trained.path))
    checkpoint, device = trained.source["checkpoint"], str(trained.device)
    if trained.maker is None:
        maker = None if checkpoint is None else load_trained(checkpoint, device=device)
        c, h, w = trained.source.get("image_shape", (1, 32, 32))  # older ones: lists say, packs so
        shape = None if isinstance(config.data, ListData) else (c, h, w)
        trained.maker = load_embedder(config, maker, device=device, image_shape=shape)
    if trained.maker.source["weights_sha256"] != trained.source["weights_sha256"]:
        raise ValueError(
            f"{checkpoint or config.model.backbone} holds other weights than "
            f"those that made the embeddings of {trained.path}"
        )
    return trained.maker


def pil_image(image: object, name: str) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    pixels: NDArray[Any] = image if isinstance(image, np.ndarray) else np.empty(0)
    colour = pixels.ndim == 3 and pixels.shape[-1] in (3, 4)
    if pixels.dtype != np.uint8 or not (colour or pixels.ndim == 2):
        got = f"{pixels.shape} of {pixels.dtype}" if pixels.ndim > 1 else type(image).__name__
        raise ValueError(
            f"{name}: expected a file, an image of PIL, or uint8 pixels (H, W), (H, W, 3) or "
            f"(H, W, 4), got {got}"
        )
    return Image.fromarray(pixels)


def _as_trained(data: ListData, size: int) -> Callable[[Image.Image], Tensor]:
    smooth = "bilinear" if data.interpolation == "auto" else data.interpolation
    return eval_transform(size, data.augment.fit or "crop", smooth)


def _pixels(
    data: Data, shape: tuple[int, int, int], source: Path | Image.Image, name: str = ""
) -> Tensor:
    """uint8 (C, H, W) of an image, as those that the model was trained on."""
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"no image {source}")
    channels, size, _ = shape
    try:
        if isinstance(data, ListData):
            return _as_trained(data, size)(read_rgb(source))
        if channels == 3:
            return eval_transform(size, "pad")(read_rgb(source))
        return torch.from_numpy(icon_image(read_image(source), size, invert=is_made(data)))[None]
    except ImageError as error:
        raise ValueError(f"cannot read image {name or source}: {error}") from None


def is_made(data: Data) -> bool:
    """Whether grey images are bright ink on a dark ground, as the package draws them. A pack of
    one's own is trained on as it is, whatever its ground."""
    return not isinstance(data, PackData) or data.name in MADE_BY


def answers(
    trained: Trained, features: Tensor, paths: Sequence[str], nearest: int
) -> list[Prediction]:
    """Label or unknown for features (B, D) as the head sees them."""
    head, names = trained.model.head, trained.names
    found: list[Prediction] = []
    for piece in head.pieces(features):
        out = head.outputs(piece)
        label, confidence = head.answer(out)
        order, value = nearest_classes(trained, piece, out.logits, nearest)
        found += [
            Prediction(
                path=path,
                label=None if label[n] < 0 else names[int(label[n])],
                confidence=float(confidence[n]),
                score=trained.threshold["score"],
                threshold=float(trained.threshold["value"]),
                closed=names[int(out.logits[n].argmax())],
                nearest=[(names[c], v) for c, v in zip(order[n], value[n], strict=True)],
            )
            for n, path in enumerate(paths[len(found) : len(found) + len(piece)])
        ]
    return found


def nearest_classes(
    trained: Trained, features: Tensor, logits: Tensor, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Per row the closest known classes, best first, with distance (memory) or probability."""
    count = min(count, len(trained.roster.living))
    head = trained.model.head
    if isinstance(head, OLTRHead):
        value, order = head.memory.closest(features, count)
    else:
        value, order = logits.softmax(dim=1).topk(count, dim=1)
    return order.tolist(), value.tolist()
