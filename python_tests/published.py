"""Tiny folders laid out like the published sets: their list files, folders and file names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (14, 9, 4, 3)
HELD_OUT = 4  # images a class in val, and in test
STRANGERS = 10

# recipe: folder of lists, prefix of lists, image paths by part ({c} class, {n} image)
LAYOUTS = {
    "imagenet_lt": (
        "ImageNet_LT",
        {
            "train": "train/n0144076{c}/n0144076{c}_{n}.JPEG",
            "val": "train/n0144076{c}/n0144076{c}_9{n}.JPEG",
            "test": "val/n0144076{c}/ILSVRC2012_val_{c}{n:07}.JPEG",
            "open": "ILSVRC2010_val_{n:08}.JPEG",
        },
    ),
    "places_lt": (
        "Places_LT",
        {
            "train": "data_256/a/airfield{c}/{n:08}.jpg",
            "val": "data_256/a/airfield{c}/0000009{n}.jpg",
            "test": "val_256/Places365_val_{c}{n:07}.jpg",
            "open": "{n}_extra_test_{n:08}.jpg",
        },
    ),
    "inaturalist": (
        "iNaturalist18",
        {
            "train": "train_val2018/Plantae/{c}/9f8ecb39e5f7{n:020}.jpg",
            "val": "train_val2018/Plantae/{c}/cb75e788cfe2{n:020}.jpg",
        },
    ),
    "ms1m_lt": (
        "MS1M_LT",
        {part: f"{{c}}/{part}_{{n}}.jpg" for part in ("train", "val", "test")},
    ),
}
LAYOUTS["imagenet_lt_resnext50"] = LAYOUTS["imagenet_lt"]


def write_published(folder: Path, recipe: str) -> list[str]:
    """Four classes of coloured noise as `recipe` expects them; the overrides that find them."""
    rng = np.random.default_rng(0)
    prefix, paths = LAYOUTS[recipe]
    lists = folder / prefix
    lists.mkdir(parents=True, exist_ok=True)

    def image(path: Path, colour: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((36, 40, 3), 40) + rng.integers(0, 60, (36, 40, 3))
        pixels[..., colour % 3] += 40 * (1 + colour)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, "JPEG")

    for part, path in paths.items():
        strange = part == "open"
        counts = COUNTS if part == "train" else (HELD_OUT,) * len(COUNTS)
        root = lists / f"{prefix}_open" if strange else folder / "images"
        lines = []
        for label, count in [(-1, STRANGERS)] if strange else enumerate(counts):
            for n in range(count):
                name = path.format(c=label, n=n)
                image(root / name, 2 if strange else label)
                lines.append(f"{name} {label}\n")
        (lists / f"{prefix}_{part}.txt").write_text("".join(lines))
    return [f"data.root={folder}/images", f"data.lists={lists}", "data.workers=0"]


def small(overrides: list[str]) -> list[str]:
    """The words of a command that trains a recipe for one short epoch a stage."""
    settings = [
        *overrides,
        "device=cpu",
        "threads=1",
        "data.image_size=32",
        "model.backbone=resnet10",
        "model.weights=null",
        "stage1.epochs=1",
        "stage1.batch_size=8",
        "stage1.lr.feature=0.01",  # three steps at the full rate diverge
    ]
    return [word for item in settings for word in ("--set", item)]
