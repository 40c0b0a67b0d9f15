"""The data a configuration names, as the parts of a run, and their batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from oltr_ext.data import (
    Augment,
    Embeddings,
    ImageList,
    TensorImages,
    hold_out,
    imagenet_test,
    imagenet_train,
    read_embeddings,
    read_names,
)
from oltr_ext.data.icons import load_icons
from oltr_ext.data.pack import Pack, load_pack
from oltr_ext.engine.fingerprint import fingerprint_of
from oltr_ext.engine.schema import EmbeddingsData, IconsData, ListData, PackData

__all__ = ["Images", "Splits", "load_splits", "make_loader"]

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
    held_out: str | None = None  # how validation images were taken from the training list
    fingerprint: dict[str, Any] = field(init=False)  # of what a run learns or chooses by

    def __post_init__(self) -> None:
        parts = {"train": self.train, "val": self.val, "open_val": self.open_val}
        self.fingerprint = {
            name: fingerprint_of(part) for name, part in parts.items() if part is not None
        }

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
    val, test = (  # without a list of its own, val is what is held out of train's
        ImageList(*parts[part if part in parts else "train"], plain, max_bad=limit)
        for part in ("val", "test")
    )
    if data.class_names is not None:
        names = read_names(data.file(data.class_names))
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
    held_out = None if isinstance(data.val, Path) else _hold_out(data, train, again, val)
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
        held_out=held_out,
    )


def _hold_out(data: ListData, train: ImageList, again: ImageList, val: ImageList) -> str:
    """Deal the images of the one list that all three hold; what was done, in a line."""
    assert not isinstance(data.val, Path)
    held, number = hold_out(train.paths, train.labels, data.val, data.val_seed), len(train)
    if not held.any():
        raise ValueError(f"data.val: {data.val} holds none of the {number} training images out")
    classes = len(np.unique(train.labels))
    for images, rows in ((train, ~held), (again, ~held), (val, held)):
        images.keep(rows)
    again.bad = train.bad
    return (
        f"validation: {len(val):,} of the {number:,} training images, of "
        f"{len(np.unique(val.labels)):,} of {classes:,} classes, are held out (data.val: "
        f"{data.val}, data.val_seed: {data.val_seed})"
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
