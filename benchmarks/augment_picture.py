"""What each preset of `data.augment` does, drawn by the code that training runs.

python benchmarks/augment_picture.py [FILE]     # default: results/augment.jpg beside this file

The photo is Rear Admiral Grace Hopper's portrait (US Navy, public domain) that comes with
matplotlib; the small image is one of the embedded icons as dark ink on paper.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from matplotlib import cbook
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from oltr_ext._pixels import IMAGENET_MEAN, IMAGENET_STD
from oltr_ext.config.augment_keys import ListAugment
from oltr_ext.config.schema import ListData
from oltr_ext.data.icons import load_icons
from oltr_ext.engine.splits import load_splits, make_loader

DRAWS = 5
PRESETS = [name for name in get_args(ListAugment.model_fields["preset"].annotation)][1:]


def draws(file: Path, preset: str) -> list[NDArray[np.float32]]:
    """`file` as it is judged, then as DRAWS positions of training see it; each (H, W, 3)."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "list.txt"
        text.write_text(f"{file.name} 0\n")
        parts = {part: text for part in ("train", "val", "test")}
        data = ListData(kind="lists", root=file.parent, **parts, augment=preset)
        splits = load_splits(data)
    keys = np.stack([np.arange(DRAWS), np.zeros(DRAWS, np.int64)], axis=1)
    (judged, _), *_ = make_loader(splits.plain, [np.zeros(1, np.int64)], 0)
    (seen, _), *_ = make_loader(splits.train, [keys], 0)
    images = np.concatenate([judged.numpy(), seen.numpy()]).transpose(0, 2, 3, 1)
    return list(np.clip(images * IMAGENET_STD + IMAGENET_MEAN, 0, 1))


def draw(out: Path) -> None:
    pack = load_icons()
    with tempfile.TemporaryDirectory() as folder:
        small, photo = Path(folder) / "small.png", Path(folder) / "photo.png"
        row = pack.rows("train")[40]
        Image.fromarray(255 - pack.images[row]).save(small)
        Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).save(photo)
        rows = [(name, draws(photo, name) + draws(small, name)) for name in PRESETS]
    columns = 2 * (1 + DRAWS)
    figure = Figure(figsize=(columns * 0.85, len(rows) * 0.85), dpi=100)
    grid = figure.subplots(len(rows), columns, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    for axes, (name, images) in zip(grid, rows, strict=True):
        for place, image in zip(axes, images, strict=True):
            place.imshow(image, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_color("#808890")
        axes[0].set_ylabel(name, fontsize=6)
    for column in (0, 1 + DRAWS):
        grid[0][column].set_title("judged", fontsize=8)
        grid[0][column + 1].set_title("trained on", fontsize=8)
    figure.subplots_adjust(left=0.03, right=0.995, top=0.95, bottom=0.01)
    FigureCanvasAgg(figure).print_figure(out, pil_kwargs={"quality": 70})


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "augment.jpg"
    draw(Path(sys.argv[1]) if sys.argv[1:] else default)
