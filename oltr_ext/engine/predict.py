"""A trained model read back from its checkpoint, and what it says about images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from oltr_ext.config.loading import ConfigError, run_config
from oltr_ext.config.pictures import settled
from oltr_ext.config.schema import Config, Data, EmbeddingsData, ListData, PackData
from oltr_ext.data import (
    ImageError,
    eval_transform,
    icon_image,
    network_input,
    read_image,
    read_rgb,
)
from oltr_ext.data.pack import MADE_BY, load_pack
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model, own_defaults, pick_device
from oltr_ext.engine.checkpoint import MODEL
from oltr_ext.engine.checks import FREE
from oltr_ext.models import OLTRModel, build_backbone
from oltr_ext.nn import LinearHead, OLTRHead

__all__ = [
    "Embedder",
    "Prediction",
    "Trained",
    "load_embedder",
    "load_trained",
    "predict_embeddings",
    "predict_images",
]


@dataclass
class Trained:
    """A model with all that is needed to use it."""

    model: OLTRModel
    config: Config
    class_names: list[str]
    threshold: dict[str, Any]  # score, value, rule, words
    train_counts: list[int]
    image_shape: tuple[int, int, int]  # channels, height, width
    device: torch.device
    path: Path
    source: dict[str, Any] | None = None  # of the embeddings it was trained on, where known


@dataclass
class Embedder:
    """A backbone that makes embeddings, with the attention and fc it was trained with, if any."""

    model: OLTRModel  # of which the head is not asked
    config: Config  # its data say how an image is read
    image_shape: tuple[int, int, int]  # channels, height, width
    device: torch.device
    source: dict[str, Any]  # JSON-able: enough for `load_embedder`, and to tell other weights


@dataclass
class Prediction:
    """The answer for one image; `label` is None for "unknown"."""

    path: str
    label: str | None
    confidence: float
    score: str
    threshold: float
    closed: str
    nearest: list[tuple[str, float]]  # known classes: distance to centroids, or probability


def read_model(path: str | Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Path, tensors and header of a checkpoint, or of the `model.safetensors` of a run's folder.

    Raises:
        CheckpointError: no such file, damaged, or written before its threshold was calibrated.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    tensors, header = checkpoint.load(path)
    if header["threshold"] is None:
        raise checkpoint.CheckpointError(
            f"{path} was written in the middle of an epoch and has no threshold for unknown; "
            f"finish the run, and use its {MODEL}"
        )
    return path, tensors, header


@own_defaults()
def load_trained(
    path: str | Path, *, device: str = "auto", overrides: Iterable[str] = ()
) -> Trained:
    """Read a checkpoint, or the `model.safetensors` of a run's folder.

    Args:
        overrides: ``data.key=value`` on its configuration, for data that has moved.

    Raises:
        CheckpointError: see `read_model`.
        ConfigError: an override that does not hold, or of more than the data.
    """
    path, tensors, header = read_model(path)
    overrides = list(overrides)
    for item in overrides:
        if re.split("[.=]", item.strip())[0] != "data":
            raise ConfigError(
                f"--set {item}: {path} is trained; of it only data may be set anew, and by "
                "oltr eval --test-prior what it expects of test images"
            )
    config = run_config(header["config"], overrides, source=str(path))
    where = pick_device(device)
    model = build_model(config, header["state"]["stage"], header["shape"], weights=False)
    model.load_state_dict(checkpoint.under("model.", tensors))
    threshold = header["threshold"]
    model.head.set_threshold(threshold["value"], threshold["score"])
    shape = header["shape"]
    return Trained(
        model.to(where).eval(),
        config,
        header["class_names"],
        threshold,
        shape["train_counts"],
        (shape["channels"], shape["size"], shape["size"]),
        where,
        path,
        shape.get("source"),
    )


@own_defaults()
def load_embedder(
    config: Config,
    trained: Trained | None = None,
    *,
    device: str = "auto",
    image_shape: tuple[int, int, int] | None = None,
) -> Embedder:
    """What embeds images: a trained model up to its head, or a backbone with published weights.

    Args:
        config: whose data are images, and whose backbone it is where there is no trained model.
        image_shape: channels, height and width of the images, where they are known; else the
            data are asked.

    Raises:
        ValueError: data that are no images, or neither a trained model nor weights.
    """
    if isinstance(config.data, EmbeddingsData):
        raise ValueError(f"{config.data.root} holds embeddings already: expected data of images")
    if isinstance(config.data, ListData):
        pretrained = config.model.weights is not None
        config = config.model_copy(update={"data": settled(config.data, pretrained=pretrained)})
    if trained is not None:
        model, shape = trained.model, trained.image_shape
    else:
        name, weights = config.model.backbone, config.model.weights
        if weights is None:
            raise ValueError(
                f"model.weights: {name} has learned nothing to embed by; name published weights, "
                f"or give a trained checkpoint"
            )
        shape = image_shape or _image_shape(config.data)
        backbone = build_backbone(name, in_channels=shape[0], weights=weights, image_size=shape[1])
        model = OLTRModel(backbone, LinearHead(int(backbone.feature_dim), 1))  # type: ignore[arg-type]
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if not key.startswith("head."):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    held = config.model_dump(mode="json")
    for key in FREE:  # what changes no feature
        *groups, last = key.split(".")
        (held[groups[0]] if groups else held).pop(last, None)
    source = {
        "config": held,
        "checkpoint": None if trained is None else str(trained.path.resolve()),
        "weights_sha256": digest.hexdigest(),
        "image_shape": list(shape),
    }
    where = pick_device(device)
    return Embedder(model.to(where).eval(), config, shape, where, source)


def _image_shape(data: Data) -> tuple[int, int, int]:
    if isinstance(data, ListData):
        return 3, int(data.image_size), int(data.image_size)
    if isinstance(data, PackData):
        pack = load_pack(data.name)
        return pack.channels, pack.size, pack.size
    return 1, 32, 32


@own_defaults()
@torch.no_grad()
def predict_images(
    trained: Trained,
    paths: Sequence[str | Path],
    *,
    nearest: int = 3,
    batch_size: int = 64,
    on_error: Callable[[Exception], None] | None = None,
) -> list[Prediction]:
    """Label or unknown for image files, in order; or for the rows of .npy files of embeddings.

    Images are read as those of training. For icons and the package's own packs, that is as bright
    ink on a dark ground, inverted where their border is light; for a pack of your own, as they are.

    Args:
        nearest: how many known classes to name, by distance to their centroids in the memory,
            or by probability for a model without memory.
        on_error: gets the error of an image that cannot be read, which is then left out; by
            default it is raised.

    Raises:
        FileNotFoundError: no such image. ValueError: a file that is no image; a model trained on
            embeddings of which it is not known how to make them.
    """
    if isinstance(trained.config.data, EmbeddingsData) and all(
        str(p).endswith(".npy") for p in paths
    ):
        return [
            each for path in paths for each in _predict_rows(trained, Path(path), nearest, on_error)
        ]
    embedder = _embedder_of(trained)
    seen_by = trained if embedder is None else embedder
    data, shape = seen_by.config.data, seen_by.image_shape
    found: list[Prediction] = []
    for begin in range(0, len(paths), batch_size):
        read: list[tuple[str, Tensor]] = []
        for path in paths[begin : begin + batch_size]:
            try:
                read.append((str(path), _pixels(data, shape, Path(path))))
            except (FileNotFoundError, ValueError) as error:
                if on_error is None:
                    raise
                on_error(error)
        if not read:
            continue
        names, images = zip(*read, strict=True)
        pixels = network_input(torch.stack(images).to(trained.device))
        if embedder is not None:
            pixels = embedder.model.features(pixels).float()[:, :, None, None]
        features = trained.model.features(pixels).float()
        found += _answers(trained, features, names, nearest)
    return found


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
    rows, width = np.asarray(embeddings), trained.model.backbone.feature_dim
    if rows.ndim != 2 or rows.shape[1] != width or rows.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected embeddings of shape (N, {width}), floats, got {rows.shape} of "
            f"{rows.dtype}"
        )
    found: list[Prediction] = []
    for begin in range(0, len(rows), batch_size):
        part = torch.from_numpy(rows[begin : begin + batch_size].astype(np.float32))
        if not torch.isfinite(part).all():
            raise ValueError(f"{name}: expected finite embeddings, got NaN or infinity")
        features = trained.model.features(part[:, :, None, None].to(trained.device)).float()
        names = [f"{name}[{begin + n}]" for n in range(len(part))]
        found += _answers(trained, features, names, nearest)
    return found


def _predict_rows(
    trained: Trained, path: Path, nearest: int, on_error: Callable[[Exception], None] | None
) -> list[Prediction]:
    try:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"cannot read {path}: {error}") from None
        return predict_embeddings(trained, rows, name=str(path), nearest=nearest)
    except (FileNotFoundError, ValueError) as error:
        if on_error is None:
            raise
        on_error(error)
        return []


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
    maker = None if checkpoint is None else load_trained(checkpoint, device=device)
    c, h, w = trained.source.get("image_shape", (1, 32, 32))  # older ones: lists say, packs are so
    shape = None if isinstance(config.data, ListData) else (c, h, w)
    embedder = load_embedder(config, maker, device=device, image_shape=shape)
    if embedder.source["weights_sha256"] != trained.source["weights_sha256"]:
        raise ValueError(
            f"{checkpoint or config.model.backbone} holds other weights than "
            f"those that made the embeddings of {trained.path}"
        )
    return embedder


def _pixels(data: Data, shape: tuple[int, int, int], path: Path) -> Tensor:
    """uint8 (C, H, W) of an image file, as those that the model was trained on."""
    if not path.is_file():
        raise FileNotFoundError(f"no image {path}")
    channels, size, _ = shape
    try:
        if isinstance(data, ListData):
            return eval_transform(size, data.augment.fit or "crop")(read_rgb(path))
        if channels == 3:
            return eval_transform(size, "pad")(read_rgb(path))
        return torch.from_numpy(icon_image(read_image(path), size, invert=is_made(data)))[None]
    except ImageError as error:
        raise ValueError(f"cannot read image {path}: {error}") from None


def is_made(data: Data) -> bool:
    """Whether grey images are bright ink on a dark ground, as the package draws them. A pack of
    one's own is trained on as it is, whatever its ground."""
    return not isinstance(data, PackData) or data.name in MADE_BY


def _answers(
    trained: Trained, features: Tensor, paths: Sequence[str], nearest: int
) -> list[Prediction]:
    head, names = trained.model.head, trained.class_names
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
    count = min(count, len(trained.class_names))
    head = trained.model.head
    if isinstance(head, OLTRHead):
        value, order = head.memory.closest(features, count)
    else:
        value, order = logits.softmax(dim=1).topk(count, dim=1)
    return order.tolist(), value.tolist()
