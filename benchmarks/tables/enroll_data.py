"""The sets of `enroll.py`: twenty classes that the base model has not seen, images to enrol them
with, other images of them to judge by, and the same images in the training set to retrain on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from embedded import ROOT, embed_icons
from numpy.typing import NDArray

from oltr_ext.data import read_embeddings, write_embeddings
from oltr_ext.data.icons import load_icons
from oltr_ext.data.pack import SPLITS, Pack, load_pack, rank, save_pack

NEW = 20  # classes
JUDGED = 5  # images of each on the icons; what is before them may be enrolled
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Unseen:
    """Rows of the twenty classes: of each, images to enrol in order, and images to judge by."""

    names: list[str]
    enrol: list[Ints]  # rows, the first n of which are enrolled
    judge: list[Ints]

    def taken(self, count: int) -> Ints:
        return np.concatenate([rows[:count] for rows in self.enrol])


def order(rows: Ints, seed: str) -> Ints:
    """Rows in an order that looks random and never changes."""
    return np.array(sorted(rows.tolist(), key=lambda row: rank(seed, str(row))), dtype=np.int64)


def icons_unseen() -> Unseen:
    """The open classes of the icons' test, of ten images each; rows of the pack."""
    pack = load_icons()
    opened = pack.rows("open_test")
    classes = np.unique(pack.class_index[opened])
    rows = [order(opened[pack.class_index[opened] == c], "enrol icons") for c in classes]
    return Unseen(
        [pack.class_names[c] for c in classes],
        [r[:-JUDGED] for r in rows],
        [r[-JUDGED:] for r in rows],
    )


def glyphs_unseen() -> Unseen:
    """Twenty of the characters with ten training images or more; judged by their test images."""
    pack = load_pack("glyphs-2000")
    train, test = pack.rows("train"), pack.rows("test")
    many = np.flatnonzero(np.bincount(pack.class_index[train]) >= 10)
    classes = sorted(order(many, "enrol glyphs")[:NEW].tolist())
    return Unseen(
        [pack.class_names[c] for c in classes],
        [order(train[pack.class_index[train] == c], "enrol glyphs") for c in classes],
        [test[pack.class_index[test] == c] for c in classes],
    )


def without(pack: Pack, names: list[str]) -> Pack:
    """A pack that has never heard of some classes."""
    kept = [n for n, name in enumerate(pack.class_names) if name not in names]
    place = np.full(len(pack.class_names), -1)
    place[kept] = np.arange(len(kept))
    rows = place[pack.class_index] >= 0
    return Pack(
        pack.images[rows],
        place[pack.class_index[rows]],
        pack.split_index[rows],
        pack.source_index[rows],
        [pack.class_names[n] for n in kept],
        pack.source_names,
        f"{pack.about}; without {len(names)} classes",
    )


def joined(pack: Pack, unseen: Unseen, count: int) -> Pack:
    """Known classes of `pack`, then the unseen ones with `count` images each to train on and
    theirs to test by, then what else is open."""
    base = without(pack, unseen.names)
    known = base.num_known
    names = [*base.class_names[:known], *unseen.names, *base.class_names[known:]]
    moved = np.where(base.class_index < known, base.class_index, base.class_index + NEW)
    train, test = unseen.taken(count), np.concatenate(unseen.judge)
    label = {name: known + n for n, name in enumerate(unseen.names)}
    rows = np.concatenate([train, test])
    new = np.array([label[pack.class_names[c]] for c in pack.class_index[rows]])
    split = np.repeat([SPLITS.index("train"), SPLITS.index("test")], [len(train), len(test)])
    return Pack(
        np.concatenate([base.images, pack.images[rows]]),
        np.concatenate([moved, new]).astype(np.int64),
        np.concatenate([base.split_index, split]).astype(np.int64),
        np.concatenate([base.source_index, pack.source_index[rows]]),
        names,
        base.source_names,
        f"{pack.about}; {NEW} classes joined by {count} images each",
    )


def icons_joined(count: int, folder: Path) -> Path:
    """The icons with the twenty classes among those to train on; they stay no open ones."""
    path, pack = folder / f"icons_joined_{count}.npz", load_icons()
    if not path.exists():
        save_pack(path, joined(pack, icons_unseen(), count))
    return path


def glyphs_base(folder: Path) -> Path:
    path, pack = folder / "glyphs_base.npz", load_pack("glyphs-2000")
    if not path.exists():
        save_pack(path, without(pack, glyphs_unseen().names))
    return path


def glyphs_joined(count: int, folder: Path) -> Path:
    path, pack = folder / f"glyphs_joined_{count}.npz", load_pack("glyphs-2000")
    if not path.exists():
        save_pack(path, joined(pack, glyphs_unseen(), count))
    return path


def embedded_joined(count: int, folder: Path) -> Path:
    """As `icons_joined`, of the icons' embeddings, whose rows are in the pack's order."""
    path = folder / f"embedded_joined_{count}"
    if not (path / "manifest.json").exists():
        embed_icons()
        found, pack, unseen = read_embeddings(ROOT), load_icons(), icons_unseen()
        opened = pack.rows("open_test")
        rows = np.searchsorted(opened, unseen.taken(count))
        judged = np.searchsorted(opened, np.concatenate(unseen.judge))
        part = {
            name: (np.asarray(e.features), np.asarray(e.labels)) for name, e in found.splits.items()
        }
        strangers = part.pop("open_test")[0]
        known, each = len(found.class_names), np.arange(NEW)
        for name, taken, times in (("train", rows, count), ("test", judged, JUDGED)):
            x, y = part[name]
            part[name] = (
                np.concatenate([x, strangers[taken]]),
                np.concatenate([y, known + each.repeat(times)]),
            )
        write_embeddings(path, part, class_names=[*found.class_names, *unseen.names])
    return path
