"""The npm package ``@iconify/json``: which icon sets to use, whose hand drew them, their pixels.

What the embedded icons (`build.py`) and the large set (`oltr_ext.data.icons_large`) share. Every
choice is a sort by name or by a hash of a name, and pixels are compared in whole numbers, so the
same package and the same renderer give the same choice anywhere.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from oltr_ext.data.pack import SIZE, rank

VERSION = "2.2.535"
SEED = "oltr-icons"
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

NAMES: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("names.yaml").read_text("utf-8"))
STYLE = set(NAMES["style"].split())  # words after a name
PREFIX = set(NAMES["prefix"].split())  # and before
SIZE_WORD = re.compile(r"\d+(px)?$|[lw]\d$")


class Source(NamedTuple):
    """An icon as the package holds it."""

    prefix: str
    name: str
    icon: dict[str, Any]
    defaults: dict[str, Any]


class Icon(NamedTuple):
    prefix: str
    name: str
    label: str
    hand: str
    image: NDArray[np.uint8]


@contextmanager
def opened(package: Path) -> Iterator[Path]:
    """Folder of an unpacked package; a tarball is unpacked for as long as it is needed.

    Raises:
        FileNotFoundError: no such file, or no package in it. ValueError: a damaged tarball.
    """
    if package.is_file():
        with tempfile.TemporaryDirectory() as folder:
            try:
                with tarfile.open(package) as tar:
                    tar.extractall(folder, filter="data")
            except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
                why = " ".join(str(error).split())
                raise ValueError(f"{package} is no whole tarball: {why}") from None
            with opened(Path(folder) / "package") as inside:
                yield inside
        return
    if not (package / "collections.json").is_file():
        raise FileNotFoundError(f"no collections.json of @iconify/json in {package}")
    yield package


def read_json(package: Path, name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((package / f"{name}.json").read_text("utf-8"))
    return values


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
    author: str = info["author"]["name"]
    return SAME_HAND.get(author, author)


def deal_sets(collections: dict[str, Any], prefixes: list[str]) -> dict[str, str]:
    """Side of each set: whole hands go to test, then to validation, the rest trains."""
    hands: dict[str, list[str]] = defaultdict(list)
    for prefix in prefixes:
        hands[hand_of(collections[prefix])].append(prefix)
    queue = sorted(hands, key=lambda hand: rank(SEED, "hand", hand))
    side: dict[str, str] = {}
    for name, share in SHARE.items():
        taken = 0
        while taken < round(share * len(prefixes)):
            for prefix in hands[hand := queue.pop(0)]:
                side[prefix] = name
            taken += len(hands[hand])
    return {prefix: side.get(prefix, "train") for prefix in prefixes}


def brands(package: Path) -> set[str]:
    """Names in the package's logo sets."""
    there = [p for p in LOGO_SETS if (package / "json" / f"{p}.json").is_file()]
    return {stem(name) for p in there for name in read_json(package, f"json/{p}")["icons"]}


def find(
    package: Path, prefixes: list[str], wanted: Callable[[str], bool]
) -> dict[str, list[Source]]:
    """By label, in order, every icon that is shown as drawn and whose label is wanted."""
    found: dict[str, list[Source]] = defaultdict(list)
    for prefix in prefixes:
        icon_set = read_json(package, f"json/{prefix}")
        for name, icon in sorted(icon_set["icons"].items()):
            turned = any(icon.get(key) for key in ("hidden", "rotate", "hFlip", "vFlip"))
            label = stem(name)
            if not turned and wanted(label):
                found[label].append(Source(prefix, name, icon, icon_set))
    return dict(sorted(found.items()))


def draw(label: str, sources: list[Source], collections: dict[str, Any]) -> list[Icon]:
    """The icons of one label, rendered, blanks dropped."""
    icons = []
    for prefix, name, icon, defaults in sources:
        image = render(icon, defaults)
        if 0.01 < image.mean() / 255 < 0.9:
            icons.append(Icon(prefix, name, label, hand_of(collections[prefix]), image))
    return icons


def render(icon: dict[str, Any], defaults: dict[str, Any]) -> NDArray[np.uint8]:
    """uint8 (32, 32), ink 255 on ground 0."""
    import resvg_py
    from PIL import Image

    def value(key: str, default: int) -> float:
        number: float = icon.get(key, defaults.get(key, default))
        return number

    box = f"{value('left', 0)} {value('top', 0)} {value('width', 16)} {value('height', 16)}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{box}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    return 255 - np.asarray(Image.open(io.BytesIO(bytes(png))).convert("L"))


def similar_pairs(icons: list[Icon], block: int = 512) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positions (first, second) of all pairs whose pixels have a cosine above SIMILAR.

    Floating point finds the candidates, whole numbers decide: their sums are exact in any order.
    """
    pixels = np.stack([icon.image for icon in icons]).reshape(len(icons), -1)
    unit = pixels.astype(np.float32)
    square = np.einsum("ij,ij->i", unit, unit, dtype=np.float64)
    unit /= np.sqrt(square).astype(np.float32)[:, None]
    pairs = [np.empty((2, 0), np.int64)]
    for start in range(0, len(icons), block):
        tail = unit[start:]  # each pair once
        first, second = np.nonzero(tail[:block] @ tail.T > SIMILAR - 1e-4)
        first, second = (first + start)[first < second], (second + start)[first < second]
        dot = np.einsum("ij,ij->i", pixels[first], pixels[second], dtype=np.int64)
        close = dot > SIMILAR * np.sqrt(square[first] * square[second])
        pairs.append(np.stack([first[close], second[close]]))
    first, second = np.concatenate(pairs, axis=1)
    return first, second


def drop_lookalikes(icons: list[Icon]) -> list[Icon]:
    """Without images that nearly equal one of another class: they have no right answer."""
    label = np.unique([icon.label for icon in icons], return_inverse=True)[1]
    first, second = similar_pairs(icons)
    other = label[first] != label[second]
    gone = {*first[other].tolist(), *second[other].tolist()}
    return [icon for n, icon in enumerate(icons) if n not in gone]


def drop_duplicates(icons: list[Icon]) -> list[Icon]:
    """The first of near duplicates in each class: sets are forked from one another."""
    members: dict[str, list[Icon]] = defaultdict(list)
    for icon in icons:
        members[icon.label].append(icon)
    kept: list[Icon] = []
    for group in members.values():
        gone: set[int] = set()
        # by its second, so that whether the first is kept is known before it rules others out
        for first, second in sorted(zip(*similar_pairs(group), strict=True), key=lambda p: p[1]):
            if first not in gone:
                gone.add(second)
        kept += [icon for n, icon in enumerate(group) if n not in gone]
    return kept


def pick(icons: list[Icon], per_set: int) -> list[Icon]:
    """Icons of one class in hashed order, one of each set first, then the second ones ..."""
    turn: dict[str, int] = defaultdict(int)
    order = []
    for icon in sorted(icons, key=lambda icon: rank(SEED, icon.prefix, icon.name)):
        turn[icon.prefix] += 1
        if turn[icon.prefix] <= per_set:
            order.append((turn[icon.prefix], icon))
    return [icon for _, icon in sorted(order, key=lambda item: item[0])]
