"""From a checked configuration to data, model, optimizer and learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from oltr_ext.data import (
    Augment,
    BalancedSampler,
    ClassAwareSampler,
    Embeddings,
    ImageList,
    Sampler,
    ShuffleSampler,
    TensorImages,
    imagenet_test,
    imagenet_train,
    read_embeddings,
)
from oltr_ext.data.icons import load_icons
from oltr_ext.data.pack import Pack, load_pack
from oltr_ext.engine.config import (
    Config,
    EmbeddingsData,
    EpisodeStage,
    FeatureStage,
    FitStage,
    Focal,
    IconsData,
    Lifted,
    ListData,
    MemoryStage,
    PackData,
    Range,
    RetrainStage,
    Stage,
    Stage1,
)
from oltr_ext.models import OLTRModel, build_backbone, feature_layer
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
    "Splits",
    "build_model",
    "build_optimizer",
    "build_sampler",
    "class_frequencies",
    "load_splits",
    "lr_factor",
    "make_loader",
    "pick_device",
]

Images = TensorImages | ImageList | Embeddings
Ints = NDArray[np.int64]


@dataclass
class Splits:
    """The data of a run. Open images carry label -1; `plain` is `train` without augmentation."""

    train: Images
    plain: Images
    val: Images
    test: Images
    open_val: Images | None
    open_test: Images | None
    class_names: list[str]
    train_counts: Ints
    channels: int
    size: int
    workers: int = 0
    open_names: list[str] | None = None  # true name of each image of open_test, where known
    test_ids: list[str] | None = None  # what to call each image of test, then of open_test
    source: dict[str, Any] | None = None  # what made embeddings, where known

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def image_id(self, index: int) -> str:
        """Name or path of a test image, counting on from `test` into `open_test`."""
        if self.test_ids is not None:
            return self.test_ids[index]
        images, row = self.locate(index)
        if isinstance(images, ImageList):
            return images.paths[row]
        return f"{'test' if images is self.test else 'open_test'} row {row}"

    def locate(self, index: int) -> tuple[Images, int]:
        """Where the same count leads: `test` or `open_test`, and the row in it."""
        known = len(self.test)
        if index < known:
            return self.test, index
        assert self.open_test is not None
        return self.open_test, index - known

    def problems(self) -> list[str]:
        """A line for each part of which images could not be read so far."""
        parts = (self.train, self.val, self.open_val, self.test, self.open_test)
        found = (part.problem() for part in parts if isinstance(part, ImageList))
        return [line for line in found if line is not None]


def load_splits(data: IconsData | PackData | ListData | EmbeddingsData) -> Splits:
    """Read the data a configuration names.

    Raises:
        FileNotFoundError, ValueError: see `ImageList`, `load_pack` and `read_embeddings`; a label
            beyond the classes; no classes.
    """
    if isinstance(data, ListData):
        return _list_splits(data)
    if isinstance(data, EmbeddingsData):
        return _embedding_splits(data)
    pack = load_pack(data.name) if isinstance(data, PackData) else load_icons()
    return _pack_splits(pack, Augment(**data.augment.model_dump()))


def _embedding_splits(data: EmbeddingsData) -> Splits:
    found = read_embeddings(data.root)
    train, classes = found.splits["train"], len(found.class_names)
    return Splits(
        train=train,
        plain=train,
        val=found.splits["val"],
        test=found.splits["test"],
        open_val=found.splits.get("open_val"),
        open_test=found.splits.get("open_test"),
        class_names=found.class_names,
        train_counts=np.bincount(train.labels, minlength=classes).astype(np.int64),
        channels=found.width,
        size=1,
        workers=data.workers,
        open_names=found.open_names,
        test_ids=found.test_ids,
        source=found.source,
    )


def _pack_splits(pack: Pack, augment: Augment) -> Splits:
    def part(name: str) -> TensorImages:
        images, labels = pack.split(name)
        return TensorImages(images, labels.numpy())

    def strangers(name: str) -> TensorImages | None:
        return part(name) if len(pack.rows(name)) else None

    plain, opened = part("train"), pack.rows("open_test")
    return Splits(
        train=TensorImages(plain.images, plain.labels, augment),
        plain=plain,
        val=part("val"),
        test=part("test"),
        open_val=strangers("open_val"),
        open_test=strangers("open_test"),
        class_names=pack.known_names,
        train_counts=pack.train_counts.numpy(),
        channels=1,
        size=pack.images.shape[-1],
        open_names=[pack.class_names[c] for c in pack.class_index[opened]],
        test_ids=[pack.image_id(i) for i in [*pack.rows("test"), *opened]],
    )


def _list_splits(data: ListData) -> Splits:
    augmented, plain = imagenet_train(data.image_size), imagenet_test(data.image_size)
    parts, limit = data.parts(), data.max_bad_images

    def strangers(part: str) -> ImageList | None:
        if part not in parts:
            return None
        images = ImageList(*parts[part], plain, max_bad=limit)
        images.labels = np.full(len(images), -1, np.int64)  # whatever their list calls them
        return images

    train, again = (
        ImageList(*parts["train"], t, max_bad=limit, substitute=True) for t in (augmented, plain)
    )
    again.bad = train.bad  # they are the same files
    val, test = (ImageList(*parts[part], plain, max_bad=limit) for part in ("val", "test"))
    if data.class_names is not None:
        text = data.file(data.class_names).read_text(encoding="utf-8")
        names = [n for n in text.splitlines() if n.strip()]
    else:
        last = int(train.labels.max())
        if last >= len(train):
            raise ValueError(
                f"{train.file}: label {last} with {len(train)} images leaves most classes without "
                "any; labels count from 0, or set data.class_names"
            )
        names = [f"class {c}" for c in range(last + 1)]
    for images, low in ((train, 0), (val, -1), (test, -1)):
        wrong = np.flatnonzero((images.labels < low) | (images.labels >= len(names)))
        if len(wrong):
            raise ValueError(
                f"{images.file}:{images.lines[wrong[0]]}: label {images.labels[wrong[0]]} is out "
                f"of range: there are {len(names)} classes, 0 to {len(names) - 1}"
            )
    if (val.labels < 0).all():
        raise ValueError(f"{val.file} lists no image of a known class")
    return Splits(
        train=train,
        plain=again,
        val=val,
        test=test,
        open_val=strangers("open_val"),
        open_test=strangers("open_test"),
        class_names=names,
        train_counts=np.bincount(train.labels, minlength=len(names)).astype(np.int64),
        channels=3,
        size=data.image_size,
        workers=data.workers,
    )


def make_loader(images: Images, batches: Iterable[Ints], workers: int) -> DataLoader[Any]:
    """Batches (images, labels) for given keys, fetched ahead by `workers` processes."""
    return DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]
        collate_fn=_same,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that loading never draws from the model's
    )


def _same(batch: Any) -> Any:
    return batch  # `__getitems__` has already made the batch


def build_sampler(stage: Stage, labels: Ints, seed: int) -> Sampler:
    if stage.sampler == "class_aware":
        return ClassAwareSampler(labels, samples_per_class=stage.samples_per_class, seed=seed)
    return {"shuffle": ShuffleSampler, "balanced": BalancedSampler}[stage.sampler](
        labels, seed=seed
    )


def build_model(
    config: Config, stage: int, splits_or_shape: Splits | dict[str, Any], *, weights: bool = True
) -> OLTRModel:
    """The model of stage 1 or 2, freshly initialised, with what the stage freezes frozen.

    Args:
        splits_or_shape: the data, or a checkpoint's ``shape`` (channels, size, train_counts).
        weights: load the published backbone weights the configuration names; False when a
            checkpoint follows anyway.
    """
    shape = splits_or_shape if isinstance(splits_or_shape, dict) else model_shape(splits_or_shape)
    settings = config.stage1 if stage == 1 else config.stage2
    assert settings is not None
    backbone = build_backbone(
        config.model.backbone,
        in_channels=shape["channels"],
        weights=config.model.weights if weights else None,
    )
    width = int(backbone.feature_dim)  # type: ignore[arg-type]
    attention = None
    if isinstance(settings, MemoryStage) and settings.attention:
        with torch.no_grad():
            probe = torch.zeros(1, shape["channels"], shape["size"], shape["size"])
            height, wide = backbone.eval()(probe).shape[2:]
        attention = ModulatedAttention(width, height, wide)
    fc = None
    # a new classifier stands on the features of stage 1
    before = settings if isinstance(settings, FeatureStage) else config.stage1
    if before.fc is not None:
        out = width if before.fc == "same" else before.fc
        fc, width = feature_layer(width, out, start=before.fc_start), out
    model = OLTRModel(backbone, _head(settings, width, shape["train_counts"]), attention, fc)
    if isinstance(settings, MemoryStage):
        model.freeze(settings.freeze)
    elif not isinstance(settings, FeatureStage):
        model.freeze(name for name, _ in model.named_children() if name != "head")
    return model.train().to(memory_format=torch.channels_last)  # a sixth faster on a CPU


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
    counts = torch.tensor([float(count) for count in train_counts]).clamp_min(0.5)
    return counts / counts.sum()


def _head(stage: Stage, width: int, train_counts: list[int]) -> Head:
    classes, prior = len(train_counts), None
    if stage.class_prior:  # logits + t * log(frequency)
        prior = class_frequencies(train_counts) ** stage.class_prior
    if isinstance(stage, MemoryStage):
        return OLTRHead(
            width,
            classes,
            feature_loss_weight=stage.feature_loss_weight,
            class_prior=prior,
            label_smoothing=stage.label_smoothing,
            compat=stage.compat,
            without=stage.without,
        )
    if isinstance(stage, EpisodeStage):
        return FSLwFHead(width, train_counts, base_shots=stage.base_shots, fake=stage.fake)
    if isinstance(stage, FitStage) and stage.kind == "openmax":
        return OpenMaxHead(width, classes, alpha=stage.alpha)
    if isinstance(stage, RetrainStage) and stage.kind == "lws":
        return LWSHead(width, classes, class_prior=prior)
    return LinearHead(width, classes, class_prior=prior, **_loss(stage))


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
        return float(schedule.factor ** (int(epoch) // schedule.every))
    if schedule.kind == "cosine":
        done = (epoch - schedule.warmup) / max(stage.epochs - schedule.warmup, 1e-9)
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
