"""The data a configuration names, as the parts of a run, and their batches."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from oltr_ext._words import counted
from oltr_ext.config.pictures import described, recipe, settled, spelt
from oltr_ext.config.schema import Data, EmbeddingsData, IconsData, ListData, PackData
from oltr_ext.data import (
    Augment,
    Embeddings,
    ImageList,
    TensorImages,
    eval_transform,
    hold_out,
    network_input,
    read_embeddings,
    read_names,
    train_transform,
)
from oltr_ext.data.icons import load_icons
from oltr_ext.data.lists import TABLE, read_classes
from oltr_ext.data.pack import Pack, load_pack
from oltr_ext.data.samplers import mix
from oltr_ext.engine.fingerprint import fingerprint_of
from oltr_ext.models import Wants

__all__ = ["Images", "Splits", "load_splits", "make_loader"]

SHARED = Path("/dev/shm")
"""Where Linux keeps shared memory."""

Images = TensorImages | ImageList | Embeddings
Ints = NDArray[np.int64]


@dataclass
class Splits:
    """The data of a run. Open images carry label -1; `plain` is `train` without augmentation."""

    data: Data  # as asked for, with every choice made that was left to the images
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
    open_tests: dict[str, Images] = field(default_factory=dict)  # in place of one, by name
    open_sets: list[str] | None = None  # which set each image of open_test is of, if of several
    test_ids: list[str] | None = None  # what to call each image of test, then of open_test
    source: dict[str, Any] | None = None  # what made embeddings, where known
    note: str | None = None  # what becomes of the images, in a line
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

    @property
    def opened(self) -> list[Images]:
        """Open test images: those of one set, or of each."""
        one = [] if self.open_test is None else [self.open_test]
        return [*one, *self.open_tests.values()]

    @property
    def open_names(self) -> list[str] | None:
        """True name of each image of `opened`, "" where not known; None where none is."""
        if all(images.names is None for images in self.opened):
            return None
        return [name for images in self.opened for name in images.names or [""] * len(images)]

    def sets_of_open(self) -> list[str] | None:
        """The set's name of each image of `opened`; None where there is one."""
        if not self.open_tests:
            return self.open_sets
        return [name for name, images in self.open_tests.items() for _ in range(len(images))]

    def image_id(self, index: int) -> str:
        """Name or path of a test image, counting on from `test` into those that are open."""
        if self.test_ids is not None:
            return self.test_ids[index]
        images, row = self.locate(index)
        if isinstance(images, ImageList):
            return images.paths[row]
        return f"{'test' if images is self.test else 'open_test'} row {row}"

    def locate(self, index: int) -> tuple[Images, int]:
        """Where the same count leads: `test` or one of `opened`, and the row in it."""
        for images in (self.test, *self.opened):
            if index < len(images):
                return images, index
            index -= len(images)
        raise IndexError(f"locate: no test image {index} beyond the last")

    def problems(self) -> list[str]:
        """A line for each part of which images could not be read so far, and one for batches that
        did not fit where loader processes hand them over."""
        parts = [self.train, self.plain, self.val, self.open_val, self.test, *self.opened]
        images = [part for part in parts if isinstance(part, ImageList)]
        found = [part.problem() for part in images if part is not self.plain]
        found += [*dict.fromkeys(part.crowded for part in images)][:1]
        return [line for line in found if line is not None]


def load_splits(data: Data, wants: Wants | None = None) -> Splits:
    """Read the data a configuration names.

    Args:
        wants: see `oltr_ext.config.pictures.settled`.

    Raises:
        FileNotFoundError, ValueError: see `ImageList`, `load_pack` and `read_embeddings`; a label
            beyond the classes; no classes.
    """
    if isinstance(data, ListData):
        return _list_splits(data, settled(data, wants))
    if isinstance(data, EmbeddingsData):
        return _embedding_splits(data)
    pack = load_pack(data.name) if isinstance(data, PackData) else load_icons()
    return _pack_splits(data, pack)


def _embedding_splits(data: EmbeddingsData) -> Splits:
    found = read_embeddings(data.root)
    train, classes = found.splits["train"], len(found.class_names)
    open_test = found.splits.get("open_test")
    if open_test is not None:
        open_test.names = found.open_names
    return Splits(
        data=data,
        train=train,
        plain=train,
        val=found.splits["val"],
        test=found.splits["test"],
        open_val=found.splits.get("open_val"),
        open_test=open_test,
        class_names=found.class_names,
        train_counts=np.bincount(train.labels, minlength=classes).astype(np.int64),
        channels=found.width,
        size=1,
        workers=data.workers,
        open_sets=found.open_sets,
        test_ids=found.test_ids,
        source=found.source,
    )


def _pack_splits(data: IconsData | PackData, pack: Pack) -> Splits:
    def part(name: str) -> TensorImages:
        images, labels = pack.split(name)
        return TensorImages(images, labels.numpy())

    def strangers(name: str) -> TensorImages | None:
        return part(name) if len(pack.rows(name)) else None

    plain, opened = part("train"), pack.rows("open_test")
    augment = Augment(**data.augment.model_dump())
    open_test = strangers("open_test")
    if open_test is not None:
        open_test.names = [pack.class_names[c] for c in pack.class_index[opened]]
    return Splits(
        data=data,
        train=TensorImages(plain.images, plain.labels, augment),
        plain=plain,
        val=part("val"),
        test=part("test"),
        open_val=strangers("open_val"),
        open_test=open_test,
        class_names=pack.known_names,
        train_counts=pack.train_counts.numpy(),
        channels=pack.channels,
        size=pack.size,
        test_ids=[pack.image_id(i) for i in [*pack.rows("test"), *opened]],
        note=f"images: {pack.size} x {pack.size}, "
        f"augmented by data.augment: {spelt(data.augment.model_dump()) or 'none'}",
    )


def _list_splits(asked: ListData, data: ListData) -> Splits:
    size, how = int(data.image_size), recipe(data)
    smooth: Any = data.interpolation  # settled
    augmented = train_transform(size, how, smooth)
    plain = eval_transform(size, how.fit, smooth)
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
    train.augment = how.augment
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
                f"{train.file}: label {last} with {counted(len(train), 'image')} leaves most "
                "classes without any; labels count from 0, or set data.class_names"
            )
        names = [f"class {c}" for c in range(last + 1)]
    for images, low in ((train, 0), (val, -1), (test, -1)):
        wrong = np.flatnonzero((images.labels < low) | (images.labels >= len(names)))
        if len(wrong):
            raise ValueError(
                f"{images.file}:{images.lines[wrong[0]]}: label {images.labels[wrong[0]]} is out "
                f"of range: there are {counted(len(names), 'class')}, 0 to {len(names) - 1}"
            )
    held_out = None if isinstance(data.val, Path) else _hold_out(data, train, again, val)
    if (val.labels < 0).all():
        raise ValueError(f"{val.file} lists no image of a known class")
    open_test = strangers("open_test")
    open_tests = {
        part.removeprefix("open_test/"): found
        for part in parts
        if part.startswith("open_test/") and (found := strangers(part)) is not None
    }
    opened = [*([] if open_test is None else [open_test]), *open_tests.values()]
    true = read_classes(data.file(Path(TABLE))) if opened else {}
    for images in opened:
        images.names = [true.get(path, "") for path in images.paths] if true else None
    return Splits(
        data=data,
        train=train,
        plain=again,
        val=val,
        test=test,
        open_val=strangers("open_val"),
        open_test=open_test,
        open_tests={**open_tests},
        class_names=names,
        train_counts=np.bincount(train.labels, minlength=len(names)).astype(np.int64),
        channels=3,
        size=size,
        workers=data.workers,
        note=described(asked, data),
        held_out=held_out,
    )


def _hold_out(data: ListData, train: ImageList, again: ImageList, val: ImageList) -> str:
    """Deal the images of the one list that all three hold; what was done, in a line."""
    assert not isinstance(data.val, Path)
    held, number = hold_out(train.paths, train.labels, data.val, data.val_seed), len(train)
    if not held.any():
        raise ValueError(
            f"data.val: {data.val} holds none of the {counted(number, 'training image')} out"
        )
    classes = len(np.unique(train.labels))
    for images, rows in ((train, ~held), (again, ~held), (val, held)):
        images.keep(rows)
    again.bad = train.bad
    return (
        f"validation: {len(val):,} of the {counted(number, 'training image')}, of "
        f"{len(np.unique(val.labels)):,} of {classes:,} classes, are held out (data.val: "
        f"{data.val}, data.val_seed: {data.val_seed})"
    )


def make_loader(
    images: Images, keys: Iterable[Ints], workers: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches as a network takes them, and labels, on `device`, for given keys.

    `workers` processes fetch ahead, at most one a processor, and hand over eight bits a pixel; what
    is done in floats is done here. Keys that carry a position (training) are augmented, plain
    indices never.
    """
    keys, again = tee(keys)
    workers = min(workers, processors())  # torch warns of more at every epoch, at length
    loader = DataLoader(
        images,
        batch_sampler=keys,  # type: ignore[arg-type]
        collate_fn=partial(_hand_over, workers=workers),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, so that loading never draws from the model's
    )
    for batch, rows in zip(loader, again, strict=False):
        if isinstance(images, ImageList) and isinstance(batch[0], np.ndarray):
            images.crowded = (
                f"{SHARED} has no room for the batches that data.workers processes fetch ahead: "
                "they come through pipes, which is slower; lower data.workers, or enlarge it "
                "(docker run --shm-size=1g)"
            )
        pixels, labels = map(torch.as_tensor, batch)
        draws = mix(images.seed, 6, rows[:, 0], rows[:, 1]) if rows.ndim == 2 else None
        yield (
            network_input(pixels.to(device, non_blocking=True), images.augment, draws),
            labels.to(device, non_blocking=True),
        )


def processors() -> int:
    """Those that this process may use."""
    here = (
        os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    )
    return len(here)


def _hand_over(batch: tuple[Tensor, Tensor], workers: int) -> Any:
    """What a loader process passes on: tensors go through shared memory, arrays through a pipe.

    Containers have 64 MB of shared memory, unless told otherwise; without room for what all
    processes may hold ready there, torch would end the run, or the kernel would.
    """
    needed = sum(part.nbytes for part in batch) * (2 * workers + 1)  # each fetches two ahead
    if workers == 0 or not SHARED.is_dir() or shutil.disk_usage(SHARED).free > needed:
        return batch
    return tuple(part.numpy() for part in batch)
