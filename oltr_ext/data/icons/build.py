"""Build the embedded icons data set: ``icons.npz`` and ``ATTRIBUTION.md``.

    npm pack @iconify/json@2.2.535
    pip install resvg-py pillow
    python oltr_ext/data/icons/build.py --iconify iconify-json-2.2.535.tgz --out oltr_ext/data/icons

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
import io
import json
import lzma
import re
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

VERSION = "2.2.535"
SIZE = 32
SEED = "oltr-icons"
SPLITS = ("train", "val", "test", "open_val", "open_test")
KNOWN, OPEN_TEST, OPEN_VAL = 50, 20, 10
HEAD, TAIL = 60, 4
PER_CLASS = {"val": 6, "test": 10, "open_val": 12, "open_test": 10}
PER_SET = {"train": 3, "val": 2, "test": 1}  # images of one class taken from one set
SHARE = {"test": 0.30, "val": 0.15}  # of the sets
SIMILAR = 0.97  # cosine of pixels
LICENCES = {
    "Apache-2.0",
    "BSD-3-Clause",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "OFL-1.1",
    "Unlicense",
}
LOGO_SETS = ("simple-icons", "logos", "cib", "bxl", "fa7-brands", "fa6-brands", "fa-brands")

# Sets drawn by, or forked from, one hand although their authors differ.
SAME_HAND = {
    "Material Design Authors": "Google",
    "Pictogrammers": "Google",
    "MDI Community": "Google",
    "Icons8": "Dave Gandy",  # Line Awesome redraws Font Awesome
    "Cole Bemis": "Lucide Contributors",  # Lucide forks Feather
    "Family": "Ben Sperry",  # Famicons forks Ionicons
    "Andri Soone": "Refactoring UI Inc",  # SidekickIcons extends HeroIcons
}

# Style words after and before a name; and, by reason, names that would leave the truth in doubt.
_NAMES = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text("utf-8"))
STYLE = set(_NAMES["style"].split())
PREFIX = set(_NAMES["prefix"].split())
EXCLUDED = {name for names in _NAMES["excluded"].values() for name in names.split()}
SIZE_WORD = re.compile(r"\d+(px)?$|[lw]\d$")


class Icon(NamedTuple):
    prefix: str
    name: str
    label: str
    hand: str
    image: np.ndarray


def rank(*words: str) -> str:
    """Order that looks random and never changes."""
    return hashlib.sha256(":".join((SEED, *words)).encode()).hexdigest()


def stem(name: str) -> str:
    """Icon name without leading and trailing style words and sizes."""
    words = name.split("-")
    while len(words) > 1 and (words[-1] in STYLE or SIZE_WORD.match(words[-1])):
        words.pop()
    while len(words) > 1 and words[0] in PREFIX:
        words.pop(0)
    return "-".join(words)


def usable_sets(collections: dict[str, Any]) -> list[str]:
    """Permissive, monochrome, still, and neither logos nor emoji."""
    return sorted(
        prefix
        for prefix, info in collections.items()
        if info["license"].get("spdx") in LICENCES
        and info.get("category") not in ("Logos", "Emoji")
        and not info.get("palette")
        and not prefix.endswith("-brands")
        and "Contains Animations" not in (info.get("tags") or [])
    )


def hand_of(info: dict[str, Any]) -> str:
    author = info["author"]["name"]
    return SAME_HAND.get(author, author)


def deal_sets(collections: dict[str, Any], prefixes: list[str]) -> dict[str, str]:
    """Side of each set: whole hands go to test, then to validation, the rest trains."""
    hands: dict[str, list[str]] = defaultdict(list)
    for prefix in prefixes:
        hands[hand_of(collections[prefix])].append(prefix)
    queue = sorted(hands, key=lambda hand: rank("hand", hand))
    side: dict[str, str] = {}
    for name, share in SHARE.items():
        taken = 0
        while taken < round(share * len(prefixes)):
            for prefix in hands[hand := queue.pop(0)]:
                side[prefix] = name
            taken += len(hands[hand])
    return {prefix: side.get(prefix, "train") for prefix in prefixes}


def render(icon: dict[str, Any], defaults: dict[str, Any]) -> np.ndarray:
    """uint8 (32, 32), ink 255 on ground 0."""
    import resvg_py
    from PIL import Image

    def value(key: str, default: int) -> float:
        return icon.get(key, defaults.get(key, default))

    box = f"{value('left', 0)} {value('top', 0)} {value('width', 16)} {value('height', 16)}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    return 255 - np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"))


def collect(package: Path, collections: dict[str, Any], prefixes: list[str]) -> list[Icon]:
    """Every usable icon whose label is a clean one-word name, rendered, blanks dropped."""

    def load(prefix: str) -> dict[str, Any]:
        return json.loads((package / "json" / f"{prefix}.json").read_text("utf-8"))

    brands = {stem(name) for prefix in LOGO_SETS for name in load(prefix)["icons"]}
    found: dict[str, list[tuple[str, str, dict, dict]]] = defaultdict(list)
    for prefix in prefixes:
        icon_set = load(prefix)
        for name, icon in sorted(icon_set["icons"].items()):
            label = stem(name)
            turned = any(icon.get(key) for key in ("hidden", "rotate", "hFlip", "vFlip"))
            clean = len(label) > 2 and label.isalpha() and label not in STYLE
            if clean and not turned and label not in brands and label not in EXCLUDED:
                found[label].append((prefix, name, icon, icon_set))
    icons = []
    for label, items in sorted(found.items()):
        if len({prefix for prefix, *_ in items}) < 20:  # too rare to fill a class
            continue
        for prefix, name, icon, icon_set in items:
            image = render(icon, icon_set)
            if 0.01 < image.mean() / 255 < 0.9:
                icons.append(Icon(prefix, name, label, hand_of(collections[prefix]), image))
    return icons


def drop_similar(icons: list[Icon]) -> list[Icon]:
    """Keep the first of near duplicates in a class; drop look-alikes of different classes."""
    pixels = np.stack([icon.image for icon in icons]).reshape(len(icons), -1).astype(np.float32)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    label = np.unique([icon.label for icon in icons], return_inverse=True)[1]
    keep = np.ones(len(icons), bool)
    for start in range(0, len(icons), 2048):
        rows, cols = np.nonzero(pixels[start : start + 2048] @ pixels.T > SIMILAR)
        rows += start
        other = label[rows] != label[cols]
        keep[rows[other]] = False
    for value in range(label.max() + 1):
        members = np.flatnonzero((label == value) & keep)
        close = pixels[members] @ pixels[members].T > SIMILAR
        for i in range(len(members)):
            keep[members[i]] = not (close[i, :i] & keep[members[:i]]).any()
    return [icon for icon, ok in zip(icons, keep, strict=True) if ok]


def pick(icons: list[Icon], side: str) -> list[Icon]:
    """Icons of one class and side in hashed order, one a set first, then the second ones ..."""
    turn: dict[str, int] = defaultdict(int)
    order = []
    for icon in sorted(icons, key=lambda icon: rank(icon.prefix, icon.name)):
        turn[icon.prefix] += 1
        if turn[icon.prefix] <= PER_SET[side]:
            order.append((turn[icon.prefix], icon))
    return [icon for _, icon in sorted(order, key=lambda item: item[0])]


def train_counts() -> list[int]:
    """Exponential tail from HEAD to TAIL images over the known classes."""
    ratio = (TAIL / HEAD) ** (1 / (KNOWN - 1))
    return [round(HEAD * ratio**k) for k in range(KNOWN)]


def draw(icons: list[Icon], side: dict[str, str]) -> tuple[list[str], list[tuple[int, int, Icon]]]:
    """Class names, and (split, class index, icon) rows."""
    pools: dict[str, dict[str, list[Icon]]] = defaultdict(lambda: {s: [] for s in PER_SET})
    for icon in icons:
        pools[icon.label][side[icon.prefix]].append(icon)
    pool = {
        label: {name: pick(group, name) for name, group in groups.items()}
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
            raise ValueError(f"draw: no class has {count} images left for {side}")
        return min(fits, key=lambda label: rank("class", label))

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


def build(package: Path) -> tuple[dict[str, np.ndarray], str]:
    """Arrays and attribution text from an unpacked package or its tarball."""
    if package.is_file():
        with tempfile.TemporaryDirectory() as folder, tarfile.open(package) as tar:
            tar.extractall(folder, filter="data")
            return build(Path(folder) / "package")
    if not (package / "collections.json").is_file():
        raise FileNotFoundError(f"build: no collections.json in {package}")
    collections = json.loads((package / "collections.json").read_text("utf-8"))
    side = deal_sets(collections, usable_sets(collections))
    icons = drop_similar(collect(package, collections, sorted(side)))
    names, rows = draw(icons, side)
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
