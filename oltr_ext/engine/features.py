"""What a backbone makes of every split of images, written once to train on often."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from oltr_ext.config.schema import Config, CrossEntropy, LearningRates, MemoryStage, Stage1
from oltr_ext.data import FeatureStream, ImageList, read_embeddings, write_embeddings
from oltr_ext.data.decode import ImageError
from oltr_ext.data.embedding_writer import OtherEmbeddingsError
from oltr_ext.data.embeddings import MANIFEST, PARTIAL, SPLITS
from oltr_ext.engine import distributed
from oltr_ext.engine.evaluate import BATCH, stream
from oltr_ext.engine.preflight import FREE
from oltr_ext.engine.splits import Images, Splits
from oltr_ext.models import OLTRModel
from oltr_ext.nn import LinearHead

__all__ = ["on_features", "source_of", "write_features"]

FOLDER = "features"  # of a run
KEPT = {"kept_by": "model.tune: nothing"}  # in the source of what may be made anew there


def source_of(
    model: OLTRModel, config: Config, image_shape: Sequence[int], checkpoint: Path | None = None
) -> dict[str, Any]:
    """JSON-able: what made embeddings, enough to make more and to tell other weights."""
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        if not key.startswith("head."):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().numpy().tobytes())
    held = config.model_dump(mode="json")
    for key in FREE:  # what changes no feature
        *groups, last = key.split(".")
        (held[groups[0]] if groups else held).pop(last, None)
    return {
        "config": held,
        "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
        "weights_sha256": digest.hexdigest(),
        "image_shape": list(image_shape),
    }


def write_features(
    model: OLTRModel,
    splits: Splits,
    out: str | Path,
    device: torch.device,
    source: Mapping[str, Any],
    *,
    dtype: str = "float32",
) -> Path:
    """The features of every split, in eval mode and not augmented; see `write_embeddings`."""
    parts: dict[str, list[Images]] = {
        "train": [splits.plain],
        "val": [splits.val],
        "test": [splits.test],
        "open_val": [] if splits.open_val is None else [splits.open_val],
        "open_test": splits.opened,
    }
    shown = sum(map(len, [splits.test, *splits.opened]))
    return write_embeddings(
        out,
        {
            name: (
                _features(model, device, name, images, splits),
                np.concatenate([each.labels for each in images]),
            )
            for name, images in parts.items()
            if images
        },
        splits.class_names,
        dtype=dtype,
        test_ids=[splits.image_id(i) for i in range(shown)],
        open_names=splits.open_names,
        open_sets=splits.sets_of_open(),
        source={**source, "data": splits.fingerprint},
    )


def _features(
    model: OLTRModel, device: torch.device, name: str, parts: Sequence[Images], splits: Splits
) -> FeatureStream:
    total = sum(map(len, parts))

    def start(row: int) -> Iterator[Tensor]:
        with tqdm(total=total, initial=row, desc=name, unit="row", disable=None) as bar:
            for images in parts:
                first, row = row, max(row - len(images), 0)
                if first >= len(images):
                    continue
                begin = first // BATCH * BATCH  # the batches of a writing without interruption
                for features, _ in stream(
                    model, images, device, workers=splits.workers, start=begin
                ):
                    kept, begin = features[max(first - begin, 0) :], begin + len(features)
                    yield kept
                    bar.update(len(kept))

    return FeatureStream((total, model.feature_dim), start, batch=BATCH)


def on_features(
    model: OLTRModel, splits: Splits, config: Config, run: Path, say: Callable[[str], None]
) -> Splits:
    """The same data as the features of a backbone that is not trained, kept in a run's folder.

    Raises:
        ValueError: attention, which needs maps; several processes; an image that cannot be read,
            whatever `data.max_bad_images`.
    """
    stage = config.stage2
    if isinstance(stage, MemoryStage) and stage.attention:
        raise ValueError(
            "model.tune: nothing keeps pooled features, and stage2.attention: true needs maps: "
            "set stage2.attention to false"
        )
    if distributed.world() > 1:
        raise ValueError("model.tune: nothing trains a head on features kept, in one process")
    folder, device = run / FOLDER, model.head.threshold.device
    bare = OLTRModel(model.backbone, LinearHead(int(model.backbone.feature_dim), 1).to(device))  # type: ignore[arg-type]
    shape = (splits.channels, splits.size, splits.size)
    no_stage = Stage1(
        lr=LearningRates(feature=0, classifier=0), loss=CrossEntropy()
    )  # features are of none
    source = source_of(bare, Config(data=config.data, model=config.model, stage1=no_stage), shape)
    for images in (splits.plain, splits.val, splits.test, splits.open_val, *splits.opened):
        if isinstance(images, ImageList):
            images.max_bad = 0  # a row is made for each image, or none
    say(f"model.tune: nothing: features are kept in {folder}, of images as they are")
    source |= KEPT
    with _every_image_read():
        try:
            write_features(bare, splits, folder, device, source)
        except OtherEmbeddingsError as error:  # of other weights or other images
            if not KEPT.items() <= (error.source or {}).items():
                raise
            for part in SPLITS:
                for what in ("features", "labels"):
                    (folder / f"{part}_{what}.npy").unlink(missing_ok=True)
            for name in (MANIFEST, PARTIAL):
                (folder / name).unlink(missing_ok=True)
            write_features(bare, splits, folder, device, source)
    model.train(model.training)
    found = read_embeddings(folder).splits
    made = dataclasses.replace(
        splits,
        train=found["train"],
        plain=found["train"],
        val=found["val"],
        open_val=found.get("open_val"),
    )
    made.fingerprint = splits.fingerprint
    return made


@contextmanager
def _every_image_read() -> Iterator[None]:
    """Say of an image that cannot be read why none may be bad."""
    try:
        yield
    except ImageError as error:
        raise ValueError(
            f"{error}; model.tune: nothing keeps a row for each image, whatever "
            "data.max_bad_images: take it off its list"
        ) from None
