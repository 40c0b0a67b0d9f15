"""Images and rows of features, as the network of a trained model takes them."""

from __future__ import annotations

from collections.abc import Sequence
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
from oltr_ext.data.transforms import Fit, Interpolation
from oltr_ext.metrics.arrays import to_numpy
from oltr_ext.serve.trained import Embedder, Trained, load_embedder, load_trained

__all__ = [
    "Picture",
    "Reads",
    "checked_rows",
    "features_of",
    "fit_of",
    "is_made",
    "pil_image",
    "pixels_of",
    "reads",
    "row_width",
    "rows_features",
    "smooth_of",
    "taken",
]

Picture = str | Path | Image.Image | NDArray[np.uint8]
"""An image: its file, as PIL holds it, or pixels (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA."""

Reads = tuple[Data, tuple[int, int, int]]
"""The data that say how an image is read, and the channels, height and width it is then."""


def taken(inputs: Any, where: str, what: str) -> tuple[bool, NDArray[Any] | list[Picture]]:
    """Whether it is one image or row, and rows of features as one array or images in a list.

    Args:
        inputs: see `oltr_ext.serve.model.Model.predict`. where, what: of what is expected, for
            errors.

    Raises:
        ValueError: pixels that may be one image with its channels first. TypeError: neither images
            nor features.
    """
    inputs = _plain(inputs)
    if isinstance(inputs, np.ndarray) and _is_planar(inputs):
        raise ValueError(
            f"{where}: expected pixels (H, W, 3), or grey images in a list, got "
            f"{inputs.shape}: of one image, with its channels first, they are to come last"
        )
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f":
        return inputs.ndim == 1, np.atleast_2d(inputs)
    one = isinstance(inputs, str | Path | Image.Image) or (
        isinstance(inputs, np.ndarray)
        and (inputs.ndim == 2 or (inputs.ndim == 3 and inputs.shape[2] in (3, 4)))
    )
    if not one and not isinstance(inputs, Sequence | np.ndarray):
        raise TypeError(f"{where}: expected {what}, got {type(inputs).__name__}")
    images: list[Picture] = [inputs] if one else [_plain(each) for each in inputs]
    if images and all(isinstance(x, np.ndarray) and x.dtype.kind == "f" for x in images):
        return False, np.stack([np.asarray(x) for x in images])
    return one, images


def _is_planar(pixels: NDArray[Any]) -> bool:
    """Whether it may be one image with its channels first, as torchvision reads them."""
    three = pixels.ndim == 3 and pixels.dtype.kind != "f"
    return three and pixels.shape[0] in (3, 4) and pixels.shape[2] not in (3, 4)


def _plain(image: Any) -> Any:
    return to_numpy(image) if isinstance(image, torch.Tensor) else image


def reads(trained: Trained) -> Reads:
    """How a model, or what made the embeddings it was trained on, reads images.

    Raises:
        ValueError: a model of embeddings of which it is not known how to make them.
    """
    seen_by = _embedder_of(trained) or trained
    return seen_by.config.data, seen_by.image_shape


def features_of(trained: Trained, pixels: Tensor) -> Tensor:
    """Features (B, D) float32, on the model's device, of uint8 pixels (B, C, H, W) as read."""
    embedder = _embedder_of(trained)
    seen = network_input(pixels.to(trained.device))
    if embedder is not None:
        seen = embedder.model.features(seen).float()[:, :, None, None]
    return trained.model.features(seen).float()


def row_width(trained: Trained) -> int:
    """Numbers in a row of features: such as the model was trained on, or `embed` makes with it."""
    embedded = isinstance(trained.config.data, EmbeddingsData)
    backbone = trained.model.backbone
    return int(backbone.feature_dim if embedded else trained.model.feature_dim)  # type: ignore[arg-type]


def checked_rows(
    trained: Trained, features: ArrayLike, name: str, *, batch_size: int = 256
) -> NDArray[Any]:
    """The rows as an array (N, `row_width`).

    Raises:
        ValueError: another shape, no floats, or NaN or infinity.
    """
    rows, width = np.asarray(features), row_width(trained)
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected embeddings of shape (N, {width}), floats, got {rows.shape} of "
            f"{rows.dtype}"
        )
    pieces = (rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size))
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        finite = all(np.isfinite(piece.astype(np.float32)).all() for piece in pieces)
    if not finite:
        raise ValueError(f"{name}: expected finite embeddings, got NaN or infinity")
    return rows


def rows_features(trained: Trained, rows: NDArray[Any]) -> Tensor:
    """What the head is asked about rows that were checked: (B, D) float32 on its device."""
    part = torch.from_numpy(rows.astype(np.float32)).to(trained.device)
    if isinstance(trained.config.data, EmbeddingsData):
        part = trained.model.features(part[:, :, None, None]).float()
    return part


def pixels_of(
    data: Data, shape: tuple[int, int, int], source: Path | Image.Image, name: str = ""
) -> Tensor:
    """uint8 (C, H, W) of an image, as those that the model was trained on."""
    if isinstance(source, Path) and not source.is_file():
        what = ": it is a folder" if source.is_dir() else ""
        raise FileNotFoundError(f"no image {source}{what}")
    channels, size, _ = shape
    try:
        if isinstance(data, ListData):
            return eval_transform(size, fit_of(data), smooth_of(data))(read_rgb(source))
        if channels == 3:
            return eval_transform(size, "pad")(read_rgb(source))
        return torch.from_numpy(icon_image(read_image(source), size, invert=is_made(data)))[None]
    except ImageError as error:
        raise ValueError(f"cannot read image {name or source}: {error}") from None


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


def is_made(data: Data) -> bool:
    """Whether grey images are bright ink on a dark ground, as the package draws them. A pack of
    one's own is trained on as it is, whatever its ground."""
    return not isinstance(data, PackData) or data.name in MADE_BY


def _embedder_of(trained: Trained) -> Embedder | None:
    """What made the embeddings that the model was trained on; None for a model of images."""
    if not isinstance(trained.config.data, EmbeddingsData):
        return None
    if trained.source is None:
        raise ValueError(
            f"{trained.path} was trained on embeddings that do not say what made them: give "
            f"embeddings made likewise, (N, {trained.model.backbone.feature_dim}) in .npy files"
        )
    checkpoint, device = trained.source["checkpoint"], str(trained.device)
    if trained.maker is None:
        config = run_config(trained.source["config"], source=str(trained.path))
        maker = None if checkpoint is None else load_trained(checkpoint, device=device)
        c, h, w = trained.source.get("image_shape", (1, 32, 32))  # older ones: lists say, packs so
        shape = None if isinstance(config.data, ListData) else (c, h, w)
        trained.maker = load_embedder(config, maker, device=device, image_shape=shape)
    if trained.maker.source["weights_sha256"] != trained.source["weights_sha256"]:
        raise ValueError(
            f"{checkpoint or trained.maker.config.model.backbone} holds other weights than "
            f"those that made the embeddings of {trained.path}"
        )
    return trained.maker


def smooth_of(data: Data) -> Interpolation:
    """How images of these data are resized where they are cropped."""
    bicubic = isinstance(data, ListData) and data.interpolation == "bicubic"
    return "bicubic" if bicubic else "bilinear"


def fit_of(data: Data) -> Fit:
    """How images of these data become squares."""
    return (data.augment.fit or "crop") if isinstance(data, ListData) else "pad"
