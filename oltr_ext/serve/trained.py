"""A trained model read back, with all that is needed to use it; and what makes embeddings."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext.config.loading import ConfigError, run_config
from oltr_ext.config.pictures import settled
from oltr_ext.config.schema import Config, Data, EmbeddingsData, ListData, PackData
from oltr_ext.data.pack import load_pack
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.engine.base import read_back
from oltr_ext.engine.build import (
    build_head,
    pick_device,
    wants_of,
)
from oltr_ext.engine.enrolment import Enrolment
from oltr_ext.engine.features import source_of
from oltr_ext.engine.sets import Calibration
from oltr_ext.engine.settle import expects
from oltr_ext.models import OLTRModel, build_backbone
from oltr_ext.nn import Head, LinearHead, OLTRHead, Roster
from oltr_ext.nn.streamed import STREAMED
from oltr_ext.nn.streamed import stream as stream_banks
from oltr_ext.ops import StreamedBank

__all__ = [
    "Embedder",
    "Trained",
    "digest_of",
    "load_embedder",
    "load_trained",
    "take_up",
    "trained_head",
]


@dataclass
class Trained:
    """A model with all that is needed to use it."""

    model: OLTRModel
    config: Config
    class_names: list[str]  # of the data, by label; `names` are those of the model's own
    threshold: dict[str, Any]  # score, value, rule, words
    train_counts: list[int]
    image_shape: tuple[int, int, int]  # channels, height, width
    device: torch.device
    path: Path
    state: dict[str, Any]  # where its training stood
    enrolment: Enrolment  # as it is now
    kept: Enrolment  # as it is in the file
    source: dict[str, Any] | None = None  # of the embeddings it was trained on, where known
    maker: Embedder | None = field(default=None, repr=False)  # of these, once it was needed
    calibration: Calibration | None = field(default=None, repr=False)  # of prediction sets

    @property
    def roster(self) -> Roster:
        """Who the classes are by now, by id: the data's, then those that joined."""
        return self.model.head.roster

    @property
    def names(self) -> list[str]:
        """By id; a removed class has the name that it had."""
        return self.roster.names

    @property
    def streamed(self) -> bool:
        """Whether its banks stay in the file."""
        return isinstance(self.model.head, OLTRHead) and self.model.head.streamed

    def check_in_memory(self, what: str) -> None:
        """Raises ValueError where banks are streamed, which `what` cannot do with."""
        if self.streamed:
            raise ValueError(
                f"{what}: expected banks in memory, got streamed ones: load the model without "
                "streaming it"
            )


@dataclass
class Embedder:
    """A backbone that makes embeddings, with the attention and fc it was trained with, if any."""

    model: OLTRModel  # of which the head is not asked
    config: Config  # its data say how an image is read
    image_shape: tuple[int, int, int]  # channels, height, width
    device: torch.device
    source: dict[str, Any]  # JSON-able: enough for `load_embedder`, and to tell other weights


@own_defaults()
def load_trained(
    path: str | Path,
    *,
    device: str = "auto",
    overrides: Iterable[str] = (),
    stream: bool = False,
) -> Trained:
    """Read a checkpoint, or the `model.safetensors` of a run's folder.

    Args:
        stream: leave a memory head's banks in the file, out of which each answer reads them: for
            models larger than memory. Such a file is not checked for damage beyond its header.
        overrides: ``data.key=value`` on its configuration, for data that has moved.

    Raises:
        CheckpointError: see `checkpoint.read_model`.
        ConfigError: an override that does not hold, or of more than the data.
        ValueError: to stream a model without a memory, or with classes that joined or went.
    """
    streamed = [f"model.head.{name}" for name in STREAMED] if stream else []
    path, tensors, header = checkpoint.read_model(path, beside=streamed)
    overrides = list(overrides)
    for item in overrides:
        if re.split("[.=]", item.strip())[0] != "data":
            raise ConfigError(
                f"--set {item}: {path} is trained; of it only data may be set anew, and by "
                "oltr eval --test-prior what it expects of test images"
            )
    config = run_config(header["config"], overrides, source=str(path))
    where = pick_device(device)
    kept, fill = enrolment.read(tensors, header), OLTRModel.load_learned
    if stream:
        if kept.changed:
            raise ValueError(
                f"{path}: classes joined or were removed, which streamed banks cannot take in; "
                "load it without streaming"
            )
        fill = partial(_stream, path=path, device=where)
    model = read_back(path, tensors, header, config, fill=fill, banks=not stream)
    model.to(where).eval()
    threshold = take_up(model.head, header["threshold"], kept)
    shape = header["shape"]
    return Trained(
        model,
        config,
        header["class_names"],
        threshold,
        shape["train_counts"],
        (shape["channels"], shape["size"], shape["size"]),
        where,
        path,
        header["state"],
        kept,
        kept,
        shape.get("source"),
        calibration=Calibration.read(tensors),
    )


def _stream(
    model: OLTRModel, weights: Mapping[str, Tensor], *, path: Path, device: torch.device
) -> None:
    """Give a model, whose head is on "meta", its weights, and its banks in the file."""
    head = model.head
    if not isinstance(head, OLTRHead) or head.classifier.without:
        raise ValueError(
            f"{path}: expected a model with the whole memory of oltr, to stream its banks, got a "
            f"{type(head).__name__}"
        )
    head.load_state_dict(checkpoint.under("head.", weights), assign=True)
    stream_banks(head, lambda name: StreamedBank(path, f"model.head.{name}", device=device))
    del model.head  # which is loaded: a bank is no tensor of a state dict
    body = {name: value for name, value in weights.items() if not name.startswith("head.")}
    model.load_learned(body)
    model.head = head


def take_up(head: Head, threshold: Mapping[str, Any], kept: Enrolment) -> dict[str, Any]:
    """Give a head as it was trained its threshold, and its classes; the threshold it has then."""
    head.set_threshold(threshold["value"], threshold["score"])
    enrolment.fill(head, kept)
    return {**threshold, "value": float(head.threshold)}


def digest_of(trained: Trained, tensors: Mapping[str, Tensor]) -> str:
    """Tells a model as it answers now from any other: of what it learned, what it was settled on,
    and which classes joined and went. A trained class may be called otherwise.

    Args:
        tensors: of the checkpoint that it was read from.
    """
    kept, threshold = trained.enrolment, trained.threshold
    said = [
        checkpoint.fingerprint(checkpoint.under("model.", tensors)),
        *(threshold["score"], threshold["value"], expects(trained.model.head)),
        *(kept.joined, kept.roster.removed),
    ]
    digest = hashlib.sha256(json.dumps(said).encode())
    for rows in (kept.features[kept.owner >= 0], kept.owner[kept.owner >= 0]):
        digest.update(rows.contiguous().numpy().tobytes())
    return digest.hexdigest()


@own_defaults()
def trained_head(trained: Trained, tensors: Mapping[str, Tensor], stage: int) -> Head:
    """The head of a model as it was trained, from its checkpoint: of the trained classes alone."""
    config = trained.config
    settings = config.stage1 if stage == 1 else config.stage2
    assert settings is not None
    head = build_head(settings, trained.model.feature_dim, trained.train_counts)
    head.load_state_dict(checkpoint.under("model.head.", tensors))
    return head.to(trained.device).eval()


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
        config = config.model_copy(update={"data": settled(config.data, wants_of(config))})
    if trained is not None:
        model, shape = trained.model, trained.image_shape
    else:
        name, weights = config.model.backbone, config.model.weights
        if weights is None:
            raise ValueError(
                f"model.weights: {name} has learned nothing to embed by; name published weights, "
                f"or give a run"
            )
        shape = image_shape or _image_shape(config.data)
        backbone = build_backbone(name, in_channels=shape[0], weights=weights, image_size=shape[1])
        model = OLTRModel(backbone, LinearHead(int(backbone.feature_dim), 1))  # type: ignore[arg-type]
    source = source_of(model, config, shape, None if trained is None else trained.path)
    where = pick_device(device)
    return Embedder(model.to(where).eval(), config, shape, where, source)


def _image_shape(data: Data) -> tuple[int, int, int]:
    if isinstance(data, ListData):
        return 3, int(data.image_size), int(data.image_size)
    if isinstance(data, PackData):
        pack = load_pack(data.name)
        return pack.channels, pack.size, pack.size
    return 1, 32, 32
