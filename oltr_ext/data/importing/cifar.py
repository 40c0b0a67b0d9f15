"""CIFAR-10-LT and CIFAR-100-LT, of torchvision's files: the images the field's generator keeps,
and open sets."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from tqdm import tqdm

from oltr_ext._files import write_whole
from oltr_ext._words import counted
from oltr_ext.data.importing.outcome import finish, open_folder

__all__ = ["OPEN_SETS", "CifarLT", "class_sizes", "kept_images", "write_cifar"]

Kind = Literal["exp", "step"]
CLASSES = {"cifar10": 10, "cifar100": 100}
OPEN_SETS = {
    "cifar10": "near",
    "cifar100": "near",
    "svhn": "far",
    "textures": "far",
    "places": "far",
}
"""Open sets by name, and the group that OpenOOD puts them in."""


def class_sizes(largest: int, classes: int, kind: Kind, factor: float) -> list[int]:
    """Images that each class keeps: `largest` over 1 to `factor`, geometrically along the classes
    (``exp``), or as they are in the first half and over `factor` in the second (``step``)."""
    if kind == "exp":
        share = 1 / factor
        return [int(largest * share ** (n / (classes - 1.0))) for n in range(classes)]
    few = int(largest * (1 / factor))
    return [largest if n < classes // 2 else few for n in range(classes)]


def kept_images(
    targets: ArrayLike, kind: Kind = "exp", factor: float = 100, seed: int = 0
) -> NDArray[np.int64]:
    """Which training images stay, as LDAM's `IMBALANCECIFAR10` and all that came of it choose them.

    Args:
        targets: (N,) labels in the order of the files, of classes alike in number.
        kind: see `class_sizes`.
        factor: images of the largest class over those of the smallest, from 1 on.
        seed: of NumPy's `RandomState`; 0 is the field's.

    Returns:
        (n,) places in `targets`, class by class, in the order of the draw.

    Raises:
        ValueError: no such kind, or a factor below 1.
    """
    if kind not in ("exp", "step") or not factor >= 1:
        raise ValueError(f"expected exp or step and a factor from 1 on, got {kind} and {factor}")
    labels = np.asarray(targets)
    classes = np.unique(labels)
    sizes = class_sizes(len(labels) // len(classes), len(classes), kind, factor)
    draw, kept = np.random.RandomState(seed), []
    for label, size in zip(classes, sizes, strict=True):
        rows = np.flatnonzero(labels == label)
        draw.shuffle(rows)
        kept.append(rows[:size])
    return np.concatenate(kept)


@dataclass
class CifarLT:
    """What was written."""

    folder: Path
    names: list[str]
    counts: dict[str, list[int]]  # train and test, of each class
    opened: dict[str, int] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)


def write_cifar(
    name: str,
    root: str | Path,
    out: str | Path,
    *,
    kind: Kind = "exp",
    factor: float = 100,
    seed: int = 0,
    val: float | Literal["test"] = 0.1,
    open_sets: Sequence[str] = (),
) -> CifarLT:
    """Images, lists and a configuration in a folder of its own, as the other imports have them.

    Args:
        name: cifar10 or cifar100.
        root: where torchvision has its files; nothing is fetched.
        kind, factor, seed: see `kept_images`.
        val: the share of the kept images that training holds out; ``test``: none, and training is
            judged on the test images, as the field's papers do.
        open_sets: names of `OPEN_SETS`: their test images, of Textures all of them, of Places365
            the validation images.

    Raises:
        ValueError: no such name; a folder that holds something else; files that are not whole.
        FileNotFoundError: images of Places or Textures are not there.
    """
    if name not in CLASSES:
        raise ValueError(f"expected {' or '.join(CLASSES)}, got {name!r}")
    wrong = [each for each in open_sets if each not in OPEN_SETS or each == name]
    if wrong:
        able = ", ".join(each for each in OPEN_SETS if each != name)
        raise ValueError(f"--open: no open set {', '.join(wrong)} for {name}; there are {able}")
    out, root = Path(os.path.abspath(out)), Path(os.path.abspath(root))
    about = {"read": name, "root": str(root), "kind": kind, "factor": factor, "seed": seed,
             "val": val, "open": list(open_sets)}  # fmt: skip
    with open_folder(out, about):
        train, test = (_torchvision(name, root, train=part) for part in (True, False))
        opened = {each: _open_images(each, root) for each in open_sets}
        kept = kept_images(train.targets, kind, factor, seed)
        labels = {"train": np.asarray(train.targets)[kept], "test": np.asarray(test.targets)}
        rows = {"train": kept, "test": np.arange(len(test.targets))}
        files = {"names.txt": "".join(f"{each}\n" for each in train.classes)}
        for part, source in (("train", train), ("test", test)):
            paths = _written(out, part, source.data, rows[part])
            pairs = zip(paths, labels[part], strict=True)
            files[f"{part}.txt"] = "".join(f"{path} {label}\n" for path, label in pairs)
        made = CifarLT(
            out,
            list(train.classes),
            {p: np.bincount(y, minlength=CLASSES[name]).tolist() for p, y in labels.items()},
        )
        for each, images in opened.items():
            if isinstance(images, list):
                paths = images
            else:
                paths = _written(out, each, images, range(len(images)))
            files[f"open_{each}.txt"] = "".join(f"{path} -1\n" for path in paths)
            made.opened[each] = len(paths)
        counts = made.counts["train"]
        made.words = [
            f"{name}, {kind}, factor {factor:g}, seed {seed}: "
            f"{counted(sum(counts), 'training image')} of "
            f"{counted(len(counts), 'class')}, {max(counts):,} to {min(counts):,} a class; "
            f"{counted(len(test.targets), 'test image')}",
            "validation: "
            + ("the test images" if val == "test" else f"{val:g} of these, held out by training"),
            *(
                f"open, {OPEN_SETS[each]}: {each}, {counted(n, 'image')}"
                for each, n in made.opened.items()
            ),
        ]
        files["data.yaml"] = _config(out, val, open_sets)
        files["report.txt"] = "".join(f"{line}\n" for line in made.words)
        finish(out, about, files)
    return made


def _torchvision(name: str, root: Path, **how: Any) -> Any:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "svhn": datasets.SVHN,
            "textures": datasets.DTD, "places": datasets.Places365}[name]  # fmt: skip
    try:
        return kind(root, **how)
    except (RuntimeError, OSError) as error:
        said = str(error).partition(" You can ")[0].rstrip(".")
        args = [repr(str(root)), *(f"{k}={v!r}" for k, v in how.items()), "download=True"]
        raise ValueError(
            f"{name}: torchvision's {kind.__name__} in {root}: {said}\n"
            f"to fetch it: torchvision.datasets.{kind.__name__}({', '.join(args)})"
        ) from None


def _open_images(name: str, root: Path) -> NDArray[np.uint8] | list[str]:
    """Pixels (N, H, W, 3), or paths of files."""
    if name in CLASSES:
        pixels: NDArray[np.uint8] = _torchvision(name, root, train=False).data
        return pixels
    if name == "svhn":
        return np.ascontiguousarray(
            _torchvision(name, root, split="test").data.transpose(0, 2, 3, 1)
        )
    if name == "textures":
        parts = [_torchvision(name, root, split=part) for part in ("train", "val", "test")]
        paths = [str(file) for part in parts for file in part._image_files]
    else:
        small = (root / "val_256").is_dir()
        paths = [file for file, _ in _torchvision(name, root, split="val", small=small).imgs]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{name}: {counted(len(missing), 'image is', 'images are')} missing, as {missing[0]}"
        )
    return paths


def _written(out: Path, part: str, pixels: NDArray[np.uint8], rows: Iterable[int]) -> list[str]:
    """Paths of images, each written once, under its place in the set."""
    paths = []
    for row in tqdm(list(rows), desc=part, unit="image", disable=None, leave=False):
        path = f"images/{part}/{row:05d}.png"
        if not (out / path).exists():
            buffer = io.BytesIO()
            Image.fromarray(pixels[row]).save(buffer, "PNG")
            write_whole(out / path, buffer.getvalue(), sync=False, several=True)
        paths.append(path)
    return paths


def _config(out: Path, val: float | str, open_sets: Sequence[str]) -> str:
    """The usual augmentation: moved by up to four pixels, and flipped."""
    groups: dict[str, dict[str, str]] = {}
    for each in open_sets:
        groups.setdefault(OPEN_SETS[each], {})[each] = f"open_{each}.txt"
    data: Mapping[str, Any] = {
        "kind": "lists",
        "root": str(out),
        "lists": str(out),
        "train": "train.txt",
        "val": "test.txt" if val == "test" else val,
        "test": "test.txt",
        **({"open_test": groups} if groups else {}),
        "class_names": "names.txt",
        "image_size": 32,
        "augment": {"preset": "none", "shift": 4, "flip": 0.5},
        "shots": "decoupling",
    }
    body = "".join(
        f"  {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in data.items()
    )
    return f"data:\n{body}stage1:\n  epochs: 200\n  lr: 0.1\n  schedule: {{kind: cosine}}\n"
