"""Lists of image files to a pack: decoded and fitted once, in one file that fits in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from oltr_ext._words import counted
from oltr_ext.config.schema import Config, ListData
from oltr_ext.data import ImageList, read_list
from oltr_ext.data.lists import TABLE, UNREADABLE, read_classes
from oltr_ext.data.pack import SPLITS, Pack, save_pack
from oltr_ext.engine.build import wants_of
from oltr_ext.engine.splits import load_splits

__all__ = ["pack_lists"]

MADE = "from lists: "
"""How `Pack.about` begins."""

LIMIT = 2**32
"""Bytes of pixels: a pack is held in memory whole, and a few times over while it is made."""


def pack_lists(config: Config, out: str | Path, *, say: Callable[[str], None] = print) -> Path:
    """Write the images of a configuration of lists as a pack, which trains to the same accuracy.

    Size and fit are those of `data.image_size` and `data.augment`; grey where every image is. Of
    `data.max_bad_images`, the bad ones are left out. Images that `data.val` holds out of the
    training list become val. Images labelled -1 in val and test become open ones. Open ones are of
    the classes that an import's table gives them, or of one for each label in their list.

    Raises:
        FileExistsError: `out` is there and no pack that was made of lists.
        ValueError: data that are no lists, or more than 4 GiB of pixels; what `load_splits` and
            `Pack` raise, such as a class without a training image.
    """
    data, out = config.data, Path(out)
    if not isinstance(data, ListData):
        raise ValueError(f"data.kind is {data.kind}; only lists are packed")
    if isinstance(data.open_test, dict):
        raise ValueError("data.open_test: a pack has one open test set, expected one list")
    if out.suffix != ".npz":
        raise ValueError(f"expected a file named .npz, got {out}")
    if out.exists() and not _is_made(out):
        raise FileExistsError(f"{out} is there and no pack made of lists: choose another file")
    splits = load_splits(data, wants_of(config))
    found = {name: getattr(splits, "plain" if name == "train" else name) for name in SPLITS}
    parts: dict[str, ImageList] = {k: v for k, v in found.items() if v is not None}
    size = splits.size
    needed = sum(map(len, parts.values())) * 3 * size**2
    if needed > LIMIT:
        raise ValueError(
            f"data.image_size: {needed / 2**30:.1f} GiB of pixels at {size} x {size}; a pack is "
            f"held in memory, so {LIMIT / 2**30:.0f} GiB at most: take a smaller size, or the lists"
        )
    true = read_classes(data.file(Path(TABLE)))
    pixels, names, where, paths = [], [], [], []
    for part, images in parts.items():
        images.substitute = False
        read, labels = _read(part, images, data.workers)
        given = {line.number: line.label for line in read_list(images.file)}
        for row in np.flatnonzero(labels != UNREADABLE).tolist():
            pixels.append(read[row])
            paths.append(images.paths[row])
            if labels[row] >= 0:
                names.append(splits.class_names[labels[row]])
                where.append(part)
            else:
                into = part if part.startswith("open") else f"open_{part}"
                number, name = given[images.lines[row]], true.get(images.paths[row], "")
                if not name or name in splits.class_names:
                    name = into if number == -1 else f"{into} {number}"
                names.append(name)
                where.append(into)
    whole = np.stack(pixels)
    grey = (whole == whole[:, :1]).all()
    classes = list(dict.fromkeys([*splits.class_names, *names]))
    sources = list(dict.fromkeys(paths))
    lists = ", ".join(dict.fromkeys(images.file.name for images in parts.values()))
    pack = Pack(
        images=whole[:, 0] if grey else np.ascontiguousarray(whole.transpose(0, 2, 3, 1)),
        class_index=_places(names, classes),
        split_index=_places(where, list(SPLITS)),
        source_index=_places(paths, sources),
        class_names=classes,
        source_names=sources,
        about=f"{MADE}{lists}" + (f"; {splits.held_out}" if splits.held_out else ""),
    )
    save_pack(out, pack)
    for line in (splits.held_out, *splits.problems()):
        if line is not None:
            say(line)
    say(
        f"{out}: {len(pack.images):,} {'grey' if grey else 'colour'} images of {size} x {size}, "
        f"{pack.num_known:,} known and {counted(len(classes) - pack.num_known, 'open class')}"
    )
    return out


def _is_made(path: Path) -> bool:
    """Whether `pack_lists` made it."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return str(file["about"]).startswith(MADE)
    except Exception:  # whatever else it holds, it is no pack of ours
        return False


def _read(
    part: str, images: ImageList, workers: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """uint8 (N, 3, S, S) and labels (N,)."""
    rows = []
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=len(images), desc=part, unit="image", disable=None, leave=False) as bar,
    ):
        for row in pool.map(images.__getitem__, range(len(images))):
            rows.append(row)
            bar.update()
    return np.stack([image.numpy() for image, _ in rows]), np.array([label for _, label in rows])


def _places(words: list[str], within: list[str]) -> NDArray[np.int64]:
    place = {word: n for n, word in enumerate(within)}
    return np.array([place[word] for word in words], np.int64)
