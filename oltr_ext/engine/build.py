"""From a checked configuration to sampler, model, optimizer and learning rates."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oltr_ext._defaults import own_dtype
from oltr_ext.config.schema import (
    Config,
    EpisodeStage,
    FeatureStage,
    FitStage,
    Focal,
    Lifted,
    MemoryStage,
    Range,
    RetrainStage,
    Stage,
    Stage1,
)
from oltr_ext.data import (
    BalancedSampler,
    ClassAwareSampler,
    Sampler,
    ShuffleSampler,
)
from oltr_ext.data.samplers import mix
from oltr_ext.engine.names import start_at_names, starts_at_names
from oltr_ext.engine.splits import Splits
from oltr_ext.models import OLTRModel, Wants, build_backbone, feature_layer, wants
from oltr_ext.models.pixels import probe
from oltr_ext.models.recompute import forget_inside_blocks
from oltr_ext.models.tuning import tune
from oltr_ext.nn import (
    FocalLoss,
    FSLwFHead,
    Head,
    LiftedStructureLoss,
    LinearHead,
    LWSHead,
    ModulatedAttention,
    OLTRHead,
    OpenMaxHead,
    RangeLoss,
)

__all__ = [
    "build_head",
    "build_model",
    "build_optimizer",
    "build_sampler",
    "callers_state",
    "class_frequencies",
    "lr_factor",
    "memory_format",
    "model_shape",
    "pick_device",
    "prior_power",
    "seed_everything",
    "wants_of",
]

Ints = NDArray[np.int64]


@contextmanager
def callers_state() -> Iterator[None]:
    """Random generators, threads and cuDNN's choices are after the block what they were before."""
    numbers, python, threads = np.random.get_state(), random.getstate(), torch.get_num_threads()
    chosen = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(python)
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = chosen


def wants_of(config: Config) -> Wants | None:
    """The images that the network of a configuration wants, where it has published weights."""
    model = config.model
    return None if model.weights is None else wants(model.backbone, model.weights)


def build_sampler(stage: Stage, labels: Ints, seed: int) -> Sampler:
    if stage.sampler == "class_aware":
        return ClassAwareSampler(labels, samples_per_class=stage.samples_per_class, seed=seed)
    return {"shuffle": ShuffleSampler, "balanced": BalancedSampler}[stage.sampler](
        labels, seed=seed
    )


@own_dtype()
def build_model(
    config: Config,
    stage: int,
    splits_or_shape: Splits | dict[str, Any],
    *,
    weights: bool = True,
    banks: bool = True,
) -> OLTRModel:
    """The model of stage 1 or 2 in float32, freshly initialised, what the stage freezes frozen.

    Args:
        splits_or_shape: the data, or a checkpoint's ``shape`` (channels, size, train_counts).
        weights: load the published backbone weights the configuration names; False when a
            checkpoint follows anyway.
        banks: False leaves what a memory or linear head has of classes on "meta", without memory,
            until tensors are assigned or processes share it, and at no names' texts.
    """
    shape = splits_or_shape if isinstance(splits_or_shape, dict) else model_shape(splits_or_shape)
    settings = config.stage1 if stage == 1 else config.stage2
    assert settings is not None
    backbone = build_backbone(
        config.model.backbone,
        in_channels=shape["channels"],
        weights=config.model.weights,
        load=weights,
        image_size=shape["size"],
    )
    how, pixels = config.model.tune, probe(shape["channels"], shape["size"])
    base = tune(backbone, how, pixels, rank=config.model.lora_rank)
    if config.model.gradient_checkpointing:
        forget_inside_blocks(backbone)
    width = int(backbone.feature_dim)  # type: ignore[arg-type]
    attention = None
    if isinstance(settings, MemoryStage) and settings.attention:
        with torch.no_grad():
            height, wide = backbone.eval()(pixels).shape[2:]
        attention = ModulatedAttention(width, height, wide)
    fc = None
    # a new classifier stands on the features of stage 1
    before = settings if isinstance(settings, FeatureStage) else config.stage1
    if before.fc is not None:
        out = width if before.fc == "same" else before.fc
        fc, width = feature_layer(width, out, start=before.fc_start), out
    head = build_head(settings, width, shape["train_counts"], None if banks else "meta")
    model = OLTRModel(backbone, head, attention, fc)
    if banks and isinstance(splits_or_shape, Splits) and starts_at_names(settings):
        start_at_names(model.head, config, splits_or_shape.class_names)
    model.base = None if base is None else base.below("backbone.")
    if how != "all":
        model.hold_statistics()
    if isinstance(settings, MemoryStage):
        model.freeze([*settings.freeze, *(["backbone"] if how == "nothing" else [])])
    elif how == "nothing" and isinstance(settings, FeatureStage):
        model.freeze(["backbone"])
    elif not isinstance(settings, FeatureStage):
        model.freeze(name for name, _ in model.named_children() if name != "head")
    model.train()
    return model.to(memory_format=memory_format(config))


def memory_format(config: Config) -> torch.memory_format:
    """Of images and convolutions in training."""
    return torch.channels_last if config.model.channels_last else torch.contiguous_format


def model_shape(splits: Splits) -> dict[str, Any]:
    """What `build_model` must know of the data; JSON-able, kept in every checkpoint.

    With embeddings also their source: the images that the model can predict are known by it.
    """
    shape = {
        "channels": splits.channels,
        "size": splits.size,
        "train_counts": splits.train_counts.tolist(),
    }
    return shape if splits.source is None else {**shape, "source": splits.source}


def class_frequencies(train_counts: Iterable[int]) -> Tensor:
    """(C,) float32, summing to one; a class without images keeps a finite, lowest frequency."""
    counts = torch.tensor([*train_counts], dtype=torch.float32, device="cpu").clamp_min(0.5)
    return counts / counts.sum()


def prior_power(stage: Stage) -> float:
    """t of the class prior, frequency^t, that a stage's head learns under; 0: none."""
    if isinstance(stage, FitStage):
        if stage.kind != "logit_adjustment":
            return 0.0
        return 1.0 if stage.tau is None else stage.tau
    return 0.0 if isinstance(stage, EpisodeStage) else stage.class_prior


@own_dtype()
def build_head(
    stage: Stage, width: int, train_counts: list[int], device: str | None = None
) -> Head:
    """The head of a stage, freshly initialised, for features (B, width).

    Args:
        device: of what a memory or linear head has of classes.
    """
    classes, prior, power = len(train_counts), None, prior_power(stage)
    if power:  # logits + power * log(frequency)
        prior = class_frequencies(train_counts) ** power
    if isinstance(stage, MemoryStage):
        return OLTRHead(
            width,
            classes,
            feature_loss_weight=stage.feature_loss_weight,
            class_prior=prior,
            label_smoothing=stage.label_smoothing,
            compat=stage.compat,
            without=stage.without,
            device=device,
        )
    if isinstance(stage, EpisodeStage):
        return FSLwFHead(width, train_counts, base_shots=stage.base_shots, fake=stage.fake)
    if isinstance(stage, FitStage) and stage.kind == "openmax":
        return OpenMaxHead(width, classes, alpha=stage.alpha)
    if isinstance(stage, RetrainStage) and stage.kind == "lws":
        return LWSHead(width, classes, class_prior=prior, device=device)
    return LinearHead(width, classes, class_prior=prior, device=device, **_loss(stage))


def _loss(stage: Stage) -> dict[str, Any]:
    """Options of a linear head that make it train on the loss of stage 1."""
    loss = stage.loss if isinstance(stage, Stage1) else None
    if isinstance(loss, Focal):
        return {"criterion": FocalLoss(loss.gamma)}
    if isinstance(loss, Lifted):
        return {"metric": LiftedStructureLoss(loss.margin), "metric_weight": loss.weight}
    if isinstance(loss, Range):
        metric = RangeLoss(loss.k, loss.margin, loss.intra, loss.inter)
        return {"metric": metric, "metric_weight": loss.weight}
    return {}


def build_optimizer(model: OLTRModel, stage: Stage) -> torch.optim.SGD:
    """SGD over three groups, feature, classifier and centroid.

    Centroids get no weight decay: it would outweigh their attraction and shrink them. In the
    released code they do, so they do under ``compat: official``.
    """
    official = isinstance(stage, MemoryStage) and stage.compat == "official"
    groups: dict[str, list[nn.Parameter]] = {"feature": [], "classifier": [], "centroid": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            in_head = name.startswith("head.")
            group = "centroid" if name.endswith("centroids") else "classifier"
            groups[group if in_head else "feature"].append(parameter)
    settings = [
        {
            "params": members,
            "name": group,
            "base_lr": getattr(stage.lr, group),
            "weight_decay": stage.weight_decay if official or group != "centroid" else 0.0,
        }
        for group, members in groups.items()
        if members
    ]
    return torch.optim.SGD(settings, lr=0.0, momentum=stage.momentum, nesterov=stage.nesterov)


def lr_factor(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Factor on the base learning rates at a step; a pure function, so there is nothing to save."""
    schedule, epoch = stage.schedule, step / steps_per_epoch
    warmup = schedule.warmup * steps_per_epoch
    if step + 1 < warmup:
        return (step + 1) / warmup
    if schedule.kind == "step":
        return float(schedule.factor ** (int(epoch) // int(schedule.every)))
    if schedule.kind == "cosine":
        done = (epoch - schedule.warmup) / max(int(stage.epochs) - schedule.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    return 1.0


def pick_device(name: str) -> torch.device:
    """``auto`` takes CUDA where there is one.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def seed_everything(seed: int, stage: int) -> None:
    """Seed Python, NumPy and torch for the start of a stage."""
    word = int(mix(seed, stage, 7))
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    torch.manual_seed(word >> 1)
