"""What a configuration may hold: every key with its type, range and default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from oltr_ext.config.augment_keys import (
    AugmentConfig,
    BatchAugment,
    ListAugment,
    NotNegative,
    Strict,
    preset_alone,
)
from oltr_ext.config.model_keys import ModelConfig
from oltr_ext.config.open_set import Count, OpenSet
from oltr_ext.config.paths import AnyPath, expanded
from oltr_ext.data.transforms import Interpolation

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _number_or_share(epochs: int | float | str) -> int | float | str:
    whole = isinstance(epochs, int) and epochs >= 1
    if isinstance(epochs, str) or whole or 0 < epochs < 1:
        return epochs
    raise ValueError("expected a whole number from 1 on, auto, or a share of auto below 1")


Epochs = Annotated[int | float | Literal["auto"], AfterValidator(_number_or_share)]
"""auto: what `oltr_ext.config.epochs` counts; a number below 1: that share of it."""


def _in_order(bounds: tuple[int, int]) -> tuple[int, int]:
    many, few = bounds
    if few > many + 1:
        raise ValueError(f"expected [many, few] with few <= many + 1, got {list(bounds)}")
    return bounds


Shots = Annotated[tuple[Count, Count], AfterValidator(_in_order)] | Literal["oltr", "decoupling"]
"""See `oltr_ext.metrics.shot_groups`."""
TestPrior = Literal["balanced", "val"] | Annotated[float, Field(ge=0, le=2)]
PARTS = ("train", "val", "test", "open_val", "open_test")  # of a data set
SetName = Annotated[str, Field(pattern=r"^[^/]*[^/\s][^/]*$")]
Named = Annotated[dict[SetName, AnyPath], Field(min_length=1)]
OpenSets = Annotated[dict[SetName, AnyPath | Named], Field(min_length=1)]
"""Lists by the names of their sets, or by group and name: ``{near: {letters: near.txt}}``."""


class IconsData(Strict):
    """The embedded icons: 50 known classes, 32x32 grey."""

    kind: Literal["icons"]
    augment: BatchAugment = AugmentConfig()
    shots: Shots = (30, 10)


class PackData(Strict):
    """Images in one file, made by `oltr data make`, by `oltr data pack` or by yourself; see
    `oltr_ext.data.pack`."""

    kind: Literal["pack"]
    # glyphs-2000, glyphs-18000, icons-large, or the path of an .npz file
    name: Annotated[str, AfterValidator(expanded)]
    augment: BatchAugment = AugmentConfig()
    shots: Shots = "oltr"


class ListData(Strict):
    """Your own images through `path label` list files; see `oltr_ext.data.ImageList`."""

    kind: Literal["lists"]
    root: AnyPath | None = None  # what the lists' paths are relative to; default: list's folder
    lists: AnyPath | None = None  # what the files below are relative to; default: working folder
    train: AnyPath
    # A list; or, where there is none, what is held out of the training list: a share of its images,
    # or `one_per_class`, one of each class that has two. See `oltr_ext.data.hold_out`.
    val: AnyPath | Annotated[float, Field(gt=0, lt=1)] | Literal["one_per_class"]
    val_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # which images are held out
    test: AnyPath
    open_val: AnyPath | None = None
    # A list; or several by name, perhaps in groups such as near and far, each judged by itself and
    # each group averaged: {letters: a.txt, near: {digits: b.txt}}
    open_test: AnyPath | OpenSets | None = None
    open_root: AnyPath | None = None  # what the open lists' paths are relative to; default: root
    class_names: AnyPath | None = None  # one name a line, in order of the labels
    # auto: with published weights the size that they want, else that of the training images where
    # these are small, or 224
    image_size: Annotated[int, Field(ge=8)] | Literal["auto"] = "auto"
    # how images that are cropped are resized; auto: as the network with published weights wants it
    interpolation: Interpolation | Literal["auto"] = "auto"
    augment: Annotated[ListAugment, BeforeValidator(preset_alone)] = ListAugment()
    # loader processes, for each training process; no more than there are processors
    workers: Annotated[int, Field(ge=0)] = 4
    # Images of each list that may fail to decode. In training the next of the class takes their
    # place; in validation and test they are left out.
    max_bad_images: Annotated[int, Field(ge=0)] = 0
    shots: Shots = "oltr"

    def file(self, path: Path) -> Path:
        """Where a list, `class_names` or `open_root` is."""
        return (self.lists or Path()) / path

    def parts(self) -> dict[str, tuple[Path, Path]]:
        """List file and root of its images, for each part that has a list; the parts of several
        open test lists are named ``open_test/letters`` and ``open_test/near/digits``."""
        files = {part: getattr(self, part) for part in PARTS}
        if isinstance(self.open_test, dict):
            files |= {f"open_test/{name}": path for name, path in _flat(self.open_test).items()}
        strangers = self.root if self.open_root is None else self.file(self.open_root)
        found = {}
        for part, path in files.items():
            if isinstance(path, Path):
                file, root = self.file(path), strangers if "open" in part else self.root
                found[part] = (file, file.parent if root is None else root)
        return found


def _flat(sets: dict[str, Path | dict[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, value in sets.items():
        inner = {"": value} if isinstance(value, Path) else value
        found |= {f"{name}/{part}".rstrip("/"): path for part, path in inner.items()}
    return found


class EmbeddingsData(Strict):
    """Features that `oltr embed` or `oltr_ext.data.write_embeddings` wrote."""

    kind: Literal["embeddings"]
    root: AnyPath
    workers: Annotated[int, Field(ge=0)] = 0  # rows of a memory map need no process to fetch them
    shots: Shots = "oltr"


Data = IconsData | PackData | ListData | EmbeddingsData


class LearningRates(Strict):
    """By part: feature = backbone, attention and fc; classifier = head; centroid = memory. A number
    alone is that of the first two."""

    feature: NotNegative
    classifier: NotNegative
    centroid: NotNegative = 0.0

    @model_validator(mode="before")
    @classmethod
    def _one_for_both(cls, value: Any) -> Any:
        alone = isinstance(value, int | float) and not isinstance(value, bool)
        return {"feature": value, "classifier": value} if alone else value


class Schedule(Strict):
    """Factor on every learning rate: linear warm-up, then steps (by epoch) or a cosine to zero."""

    kind: Literal["step", "cosine", "constant"] = "step"
    # Epochs between steps. auto: 10, or a third of the stage where its epochs are left to auto.
    every: Count | Literal["auto"] = "auto"
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    warmup: NotNegative = 0.0  # epochs


class CrossEntropy(Strict):
    kind: Literal["cross_entropy"] = "cross_entropy"


class Focal(Strict):
    """See `oltr_ext.nn.FocalLoss`."""

    kind: Literal["focal"]
    gamma: NotNegative = 2.0


class Lifted(Strict):
    """Cross-entropy + weight * lifted structure; see `oltr_ext.nn.LiftedStructureLoss`."""

    kind: Literal["lifted"]
    weight: NotNegative = 1.0
    margin: NotNegative = 1.0


class Range(Strict):
    """Cross-entropy + weight * range loss; see `oltr_ext.nn.RangeLoss`."""

    kind: Literal["range"]
    weight: NotNegative = 1.0
    k: Count = 2
    margin: NotNegative = 10.0
    intra: NotNegative = 1.0
    inter: NotNegative = 1.0


class Stage(Strict):
    """What every stage that trains has."""

    epochs: Epochs
    batch_size: Count = 128  # of a step, over all processes
    # Parts that a batch is worked through in, one after the other. The gradient is the whole
    # batch's, except that BatchNorm and losses that couple rows (lifted, range, the repel term,
    # episodes) see one part at a time.
    accumulate: Count = 1
    sampler: Literal["shuffle", "class_aware", "balanced"] = "shuffle"
    samples_per_class: Count = 4  # of the class-aware sampler
    lr: LearningRates
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: NotNegative = 5e-4
    schedule: Annotated[Schedule, Field(validate_default=True)] = Schedule()
    clip: Positive | None = None  # largest gradient norm
    class_prior: NotNegative = 0.0  # t: train on logits + t * log(class frequency)

    @model_validator(mode="after")
    def _nesterov_of_momentum(self) -> Stage:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs momentum above 0")
        return self

    @field_validator("schedule")
    @classmethod
    def _every_of_a_number(cls, value: Schedule, info: ValidationInfo) -> Schedule:
        if not isinstance(info.data.get("epochs"), int) or value.every != "auto":
            return value
        kept = {**dict(value), "every": 10}
        return Schedule.model_construct(_fields_set=value.model_fields_set, **kept)


class FeatureStage(Stage):
    """A stage that trains what is before the head too."""

    fc: Count | Literal["same"] | None = None  # width of the relu(Linear) before the head
    fc_start: Literal["default", "identity"] = "default"


class Stage1(FeatureStage):
    """Backbone and linear classifier."""

    epochs: Epochs = "auto"
    classifier_init: Literal["random", "text"] = "random"  # text: at open_clip's class names
    loss: CrossEntropy | Focal | Lifted | Range = Field(CrossEntropy(), discriminator="kind")


class MemoryStage(FeatureStage):
    """The meta-embedding head on the visual memory, started from stage 1."""

    kind: Literal["memory"] = "memory"
    sampler: Literal["shuffle", "class_aware", "balanced"] = "class_aware"
    attention: bool = True
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    feature_loss_weight: NotNegative = 0.01
    classifier_init: Literal["random", "means", "text"] = "random"
    selector_init: Literal["random", "zero"] = "random"
    without: tuple[Literal["memory", "selector", "reachability"], ...] = ()  # for ablations
    freeze: tuple[str, ...] = ()
    compat: Literal["fixed", "official"] = "fixed"  # official: the released code's centroids

    @model_validator(mode="after")
    def _official_is_whole(self) -> MemoryStage:
        if self.compat == "official" and self.accumulate > 1:
            # that gradient ignores the factor on the loss, so parts would add up to too much
            raise ValueError("compat: official needs accumulate = 1")
        return self


class RetrainStage(Stage):
    """Frozen features, their classifier trained again: from scratch (cRT), or only the length of
    each class's weights (LWS). See `oltr_ext.nn.rebalance`."""

    kind: Literal["crt", "lws"]
    sampler: Literal["shuffle", "class_aware", "balanced"] = "balanced"


class EpisodeStage(Stage):
    """Frozen features, a cosine classifier that learns to make weights of few images. See
    `oltr_ext.nn.FSLwFHead`."""

    kind: Literal["fslwf"]
    sampler: Literal["shuffle", "class_aware", "balanced"] = "class_aware"
    base_shots: Count = 20  # images that make a base class
    fake: Count = 5  # base classes that play novel in a batch


class FitStage(Stage):
    """Frozen features, a classifier made of what stage 1 learned, without a training step. See
    `oltr_ext.nn.rebalance` and `oltr_ext.nn.OpenMaxHead`."""

    kind: Literal["tau_norm", "ncm", "logit_adjustment", "openmax"]
    epochs: Literal[0] = 0
    lr: LearningRates = LearningRates(feature=0, classifier=0)
    tau: NotNegative | None = None  # None: tau_norm takes the best on val, logit_adjustment 1
    tail: Count = 20  # of openmax: largest distances of a class in its Weibull fit
    alpha: Count = 10  # of openmax: classes to revise


SecondStage = MemoryStage | RetrainStage | EpisodeStage | FitStage


class Distributed(Strict):
    """Of several processes, as torchrun starts them."""

    # how many of them share the classes of the head, each with some of them; all: every one
    classes: Count | Literal["all"] | None = None
    timeout: Positive = 600  # seconds for which a process waits for the others


class Config(Strict):
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 0
    device: str = "auto"
    threads: Count | None = None
    amp: Literal["off", "bf16", "fp16"] = "off"
    data: Data = Field(discriminator="kind")
    model: ModelConfig = ModelConfig()
    stage1: Stage1
    stage2: Annotated[SecondStage, Field(discriminator="kind")] | None = None
    open_set: OpenSet = OpenSet()
    # How frequent classes are in the images to predict, for methods with a class prior. balanced:
    # all alike; val: as in the validation images, as far as they have the training's tail; or a
    # share of that tail, 1 = as in training. It acts in prediction alone.
    test_prior: TestPrior = "balanced"
    # Which epoch of the last stage becomes the model: the best on validation images is that with
    # the highest accuracy, classes counted as test_prior expects them.
    select: Literal["last", "best"] = "last"
    checkpoint_every: Count | None = None  # steps; each epoch's end in any case
    log_every: Count = 20  # steps
    distributed: Distributed = Distributed()

    @model_validator(mode="before")
    @classmethod
    def _no_backbone_before_embeddings(cls, values: Any) -> Any:
        data = values.get("data") if isinstance(values, dict) else None
        if isinstance(data, dict) and data.get("kind") == "embeddings":
            return {"model": {"backbone": "embedding"}, **values}
        return values

    @model_validator(mode="before")
    @classmethod
    def _test_prior_was_of_stage_2(cls, values: Any) -> Any:
        stage = values.get("stage2") if isinstance(values, dict) else None
        if not isinstance(stage, dict) or "test_prior" not in stage:
            return values
        rest = {key: value for key, value in stage.items() if key != "test_prior"}
        return {"test_prior": stage["test_prior"], **values, "stage2": rest}

    @field_validator("model")
    @classmethod
    def _embedding_for_embeddings_alone(
        cls, value: ModelConfig, info: ValidationInfo
    ) -> ModelConfig:
        data = info.data.get("data")  # None where it is wrong itself
        if data and (data.kind == "embeddings") != (value.backbone == "embedding"):
            raise ValueError(
                "the backbone of data of kind embeddings, and only that, is embedding, got "
                f"{value.backbone} for {data.kind}"
            )
        return value

    @field_validator("amp", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # a bare `off` is a boolean to YAML

    @field_validator("stage2")
    @classmethod
    def _official_is_not_scaled(
        cls, value: SecondStage | None, info: ValidationInfo
    ) -> SecondStage | None:
        official = isinstance(value, MemoryStage) and value.compat == "official"
        if official and info.data.get("amp") == "fp16":
            # that gradient ignores the loss scale, and would be divided by it all the same
            raise ValueError("compat: official needs amp = off or bf16")
        return value

    @field_validator("stage2", mode="before")
    @classmethod
    def _memory_unless_said(cls, value: object) -> object:
        return {"kind": "memory", **value} if isinstance(value, dict) else value
