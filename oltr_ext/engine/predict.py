"""A trained model read back from its checkpoint, and what it says about images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from oltr_ext.data import icon_image, imagenet_test
from oltr_ext.data.transforms import icon_tensor
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model, pick_device
from oltr_ext.engine.config import Config, IconsData, PackData, make_config
from oltr_ext.models import OLTRModel
from oltr_ext.nn import OLTRHead

__all__ = ["Prediction", "Trained", "load_trained", "predict_images"]

MODEL = "model.safetensors"


@dataclass
class Trained:
    """A model with all that is needed to use it."""

    model: OLTRModel
    config: Config
    class_names: list[str]
    threshold: dict[str, Any]  # score, value, rule, words
    train_counts: list[int]
    device: torch.device
    path: Path


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


def load_trained(
    path: str | Path, *, device: str = "auto", overrides: Iterable[str] = ()
) -> Trained:
    """Read a checkpoint, or the `model.safetensors` of a run's folder.

    Args:
        overrides: ``key.path=value`` on its configuration, for data that has moved.

    Raises:
        CheckpointError: no such file, damaged, or written before its threshold was calibrated.
        ConfigError: an override that does not hold.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    tensors, header = checkpoint.load(path)
    if header["threshold"] is None:
        raise checkpoint.CheckpointError(
            f"{path} was written in the middle of an epoch and has no threshold for unknown; "
            f"finish the run, and use its {MODEL}"
        )
    config = make_config(header["config"], overrides, source=str(path))
    where = pick_device(device)
    model = build_model(config, header["state"]["stage"], header["shape"], weights=False)
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    threshold = header["threshold"]
    model.head.set_threshold(threshold["value"], threshold["score"])
    counts = header["shape"]["train_counts"]
    return Trained(
        model.to(where).eval(), config, header["class_names"], threshold, counts, where, path
    )


@torch.no_grad()
def predict_images(
    trained: Trained, paths: Sequence[str | Path], *, nearest: int = 3, batch_size: int = 64
) -> list[Prediction]:
    """Label or unknown for image files, in order.

    Args:
        nearest: how many known classes to name, by distance to their centroids in the memory,
            or by probability for a model without memory.

    Raises:
        FileNotFoundError: no such image. ValueError: a file that is no image.
    """
    found: list[Prediction] = []
    for begin in range(0, len(paths), batch_size):
        part = paths[begin : begin + batch_size]
        pixels = torch.stack([_tensor(trained.config, Path(path)) for path in part])
        features = trained.model.features(pixels.to(trained.device)).float()
        found += _answers(trained, features, [str(path) for path in part], nearest)
    return found


def _tensor(config: Config, path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"no image {path}")
    try:
        with Image.open(path) as image:
            if isinstance(config.data, IconsData | PackData):
                return icon_tensor(torch.from_numpy(icon_image(image))[None])
            return imagenet_test(config.data.image_size)(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"cannot read image {path}: {' '.join(str(error).split())}") from None


def _answers(
    trained: Trained, features: Tensor, paths: list[str], nearest: int
) -> list[Prediction]:
    head, names = trained.model.head, trained.class_names
    label, confidence = head.predict(features)
    logits = head(features)
    order, value = nearest_classes(trained, features, logits, nearest)
    return [
        Prediction(
            path=path,
            label=None if label[n] < 0 else names[int(label[n])],
            confidence=float(confidence[n]),
            score=trained.threshold["score"],
            threshold=float(trained.threshold["value"]),
            closed=names[int(logits[n].argmax())],
            nearest=[(names[c], v) for c, v in zip(order[n], value[n], strict=True)],
        )
        for n, path in enumerate(paths)
    ]


def nearest_classes(
    trained: Trained, features: Tensor, logits: Tensor, count: int
) -> tuple[list[list[int]], list[list[float]]]:
    """Per row the closest known classes, best first, with distance (memory) or probability."""
    count = min(count, len(trained.class_names))
    head = trained.model.head
    if isinstance(head, OLTRHead):
        distance = torch.cdist(features, head.memory.centroids)
        value, order = distance.topk(count, dim=1, largest=False)
    else:
        value, order = logits.softmax(dim=1).topk(count, dim=1)
    return order.tolist(), value.tolist()
