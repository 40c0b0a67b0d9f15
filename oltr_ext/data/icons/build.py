"""Build the embedded icons data set: ``icons.npz`` and ``ATTRIBUTION.md``.

    npm pack @iconify/json@2.2.535
    pip install resvg-py
    python -m oltr_ext.data.icons.build --iconify iconify-json-2.2.535.tgz --out oltr_ext/data/icons

Same package and same renderer give the same bytes: every choice below is a sort by name or by
a hash of a name, never by a random generator. What the script does, in order:

1. Keep monochrome sets under a permissive licence; no logos, emoji, colour or animated sets.
2. Class = icon name without its style words (``home-2-outline`` -> ``home``). Only one-word names
   that are no brand (no name in the package's logo sets) and not in ``names.yaml``.
3. Render at 32x32 grey, ink bright on black; drop blanks, near duplicates within a class, and
   images that nearly equal an image of another class (they have no right answer).
4. Deal designers, not icons, to the sides: about 30 % of the sets for test, 15 % for validation.
   Sets of one author, and forks of one another, stay together.
5. Draw 50 known classes with an exponential tail of training images, 20 open classes for test and
   10 other open classes for validation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from oltr_ext.data.icons.iconify import (
    NAMES,
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
from oltr_ext.data.pack import SIZE, SPLITS, rank

KNOWN, OPEN_TEST, OPEN_VAL = 50, 20, 10
HEAD, TAIL = 60, 4
PER_CLASS = {"val": 6, "test": 10, "open_val": 12, "open_test": 10}
PER_SET = {"train": 3, "val": 2, "test": 1}  # images of one class taken from one set

# Names that would leave the truth in doubt.
EXCLUDED = {name for names in NAMES["excluded"].values() for name in names.split()}


def collect(package: Path, collections: dict[str, Any], prefixes: list[str]) -> list[Icon]:
    """Every usable icon whose label is a clean one-word name, rendered, blanks dropped."""
    left_out = brands(package) | EXCLUDED | STYLE
    found = find(
        package,
        prefixes,
        lambda label: len(label) > 2 and label.isalpha() and label not in left_out,
    )
    icons = []
    for label, sources in found.items():
        if len({source.prefix for source in sources}) >= 20:  # else too rare to fill a class
            icons += draw(label, sources, collections)
    return icons


def train_counts() -> list[int]:
    """Exponential tail from HEAD to TAIL images over the known classes."""
    ratio = (TAIL / HEAD) ** (1 / (KNOWN - 1))
    return [round(HEAD * ratio**k) for k in range(KNOWN)]


def deal(icons: list[Icon], side: dict[str, str]) -> tuple[list[str], list[tuple[int, int, Icon]]]:
    """Class names, and (split, class index, icon) rows."""
    pools: dict[str, dict[str, list[Icon]]] = defaultdict(lambda: {s: [] for s in PER_SET})
    for icon in icons:
        pools[icon.label][side[icon.prefix]].append(icon)
    pool = {
        label: {name: pick(group, PER_SET[name]) for name, group in groups.items()}
        for label, groups in pools.items()
    }

    def take(side: str, count: int, need: dict[str, int], taken: list[str]) -> str:
        fits = [
            label
            for label, groups in pool.items()
            if label not in taken
            and len(groups[side]) >= count
            and all(len(groups[name]) >= least for name, least in need.items())
        ]
        if not fits:
            raise ValueError(f"deal: no class has {count} images left for {side}")
        return min(fits, key=lambda label: rank(SEED, "class", label))

    known: list[str] = []
    for count in train_counts():  # the head first: it has the fewest candidates
        need = {name: PER_CLASS[name] for name in ("val", "test")}
        known.append(take("train", count, need, known))
    strangers: list[str] = []
    for side_name, classes in (("test", OPEN_TEST), ("val", OPEN_VAL)):
        for _ in range(classes):
            count = PER_CLASS[f"open_{side_name}"]
            strangers.append(take(side_name, count, {}, known + strangers))
    names = known + strangers
    rows = []
    for index, label in enumerate(names):
        for split, name in enumerate(SPLITS):
            in_known, in_test = index < KNOWN, index < KNOWN + OPEN_TEST
            wanted = {"open_test": in_test, "open_val": not in_test}.get(name, in_known)
            if (name.startswith("open") and in_known) or not wanted:
                continue
            count = train_counts()[index] if name == "train" else PER_CLASS[name]
            chosen = pool[label][name.removeprefix("open_")][:count]
            rows += [(split, index, icon) for icon in chosen]
    return names, sorted(rows, key=lambda row: (row[0], row[1], row[2].prefix, row[2].name))


def pack(names: list[str], rows: list[tuple[int, int, Icon]]) -> dict[str, np.ndarray]:
    """Arrays of the npz. Pixels and names are LZMA streams (deflate: a third more)."""
    images = np.stack([icon.image for _, _, icon in rows])
    sets = sorted({icon.prefix for _, _, icon in rows})
    text = {
        "class_names": names,
        "set_names": sets,
        "icon_names": [icon.name for _, _, icon in rows],
    }
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 3, "pb": 0}]

    def squeeze(data: bytes) -> np.ndarray:
        stream = lzma.compress(data, format=lzma.FORMAT_XZ, filters=filters)
        return np.frombuffer(stream, np.uint8)

    return {
        "images": squeeze(images.tobytes()),
        "text": squeeze(json.dumps(text, separators=(",", ":")).encode()),
        "class_index": np.array([index for _, index, _ in rows], np.uint8),
        "set_index": np.array([sets.index(icon.prefix) for _, _, icon in rows], np.uint8),
        "split": np.array([split for split, _, _ in rows], np.uint8),
        "sha256": np.frombuffer(hashlib.sha256(images.tobytes()).digest(), np.uint8),
    }


def attribution(
    collections: dict[str, Any], side: dict[str, str], rows: list[tuple[int, int, Icon]]
) -> str:
    """Markdown: one table row for each set used."""
    import resvg_py

    count: dict[str, int] = defaultdict(int)
    for _, _, icon in rows:
        count[icon.prefix] += 1
    digest = hashlib.sha256(np.stack([icon.image for *_, icon in rows]).tobytes()).hexdigest()
    lines = [
        "# Attribution of the embedded icons",
        "",
        f"Generated by `build.py` from npm `@iconify/json` {VERSION}. {len(rows)} icons of "
        f"{len(count)} sets, each",
        f"changed by rendering it as a {SIZE}x{SIZE} grey image (resvg-py {resvg_py.__version__}). "
        "Each set stays under",
        f"its own licence. SHA-256 of the pixels: `{digest}`.",
        "",
        "| set | title | author | licence | side | images |",
        "| --- | --- | --- | --- | --- | ---: |",
    ]
    for prefix in sorted(count):
        info = collections[prefix]
        author, licence = info["author"], info["license"]
        who = f"[{author['name']}]({author['url']})" if author.get("url") else author["name"]
        what = f"[{licence['spdx']}]({licence['url']})" if licence.get("url") else licence["spdx"]
        row = (f"`{prefix}`", info["name"], who, what, side[prefix], str(count[prefix]))
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def build(source: Path) -> tuple[dict[str, np.ndarray], str]:
    """Arrays and attribution text from an unpacked package or its tarball."""
    with opened(source) as package:
        collections = read_json(package, "collections")
        side = deal_sets(collections, usable_sets(collections))
        icons = collect(package, collections, sorted(side))
    names, rows = deal(drop_duplicates(drop_lookalikes(icons)), side)
    return pack(names, rows), attribution(collections, side, rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"Get the package: npm pack @iconify/json@{VERSION}"
    )
    parser.add_argument("--iconify", type=Path, required=True, help="package folder or .tgz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    arrays, text = build(args.iconify)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "icons.npz", allow_pickle=False, **arrays)
    (args.out / "ATTRIBUTION.md").write_text(text, "utf-8")
    print(f"{len(arrays['split'])} images, {(args.out / 'icons.npz').stat().st_size} bytes")


if __name__ == "__main__":
    main()
