"""The packs ``glyphs-2000`` and ``glyphs-18000``: Chinese characters in Debian's fonts.

A class is a character of the block CJK Unified Ideographs, an image is its shape in one face,
32x32 grey. All faces of a family are on one side: the test asks for characters in a hand that
training never showed. What is done, in order:

1. Render every character in every face; drop what is blank, equals the face's .notdef, or is the
   very picture of another character in that face (a placeholder, or two characters unified).
2. Take open classes by hash of the character, then 18,000 known ones whose training images decay
   exponentially from 12 faces to one: the head by hash among the characters with enough faces,
   and so on down. A class keeps its images by hash of character and face.
3. ``glyphs-2000`` is every ninth known class of ``glyphs-18000``, with the same training images,
   and the first of its open classes. It validates and tests on every face; the larger pack on one
   face a class, and validates on those classes alone.

Nothing is redistributed: the fonts are fetched from the Debian archive or found in a folder, and
the packs stay in the cache. Licences, as Debian's copyright files give them:

    Noto Sans CJK, Noto Serif CJK, LXGW WenKai,    SIL Open Font License 1.1
      BIZ UDGothic, SetoFont
    IPAex Mincho                                   IPA Font License 1.0
    Aoyagi Kouzan                                  public domain
    Kiloji                                         BSD-3-Clause
    WenQuanYi Zen Hei                              GPL-2 with font embedding exception, M+ FONTS
    WenQuanYi Micro Hei                            Apache-2.0 or GPL-3 with font exception
    AR PL UMing, AR PL UKai                        Arphic Public License
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, features

from oltr_ext._words import counted
from oltr_ext.data.folders import made_folder
from oltr_ext.data.pack import SIZE, SPLITS, Pack, rank

__all__ = ["FACES", "Face", "fetch", "make"]

EM = 28  # pixels of the em square in an image
SEED = "oltr-glyphs"
CHARACTERS = "".join(map(chr, range(0x4E00, 0xA000)))
NINTH = 9  # of the large pack's classes one in so many is in the small one
NOTDEF = "\U0010ffff"  # no character, so that every font shows its .notdef
BLANK = 0.005  # of full ink

Say = Callable[[str], None]
Bytes = NDArray[np.uint8]


class Face(NamedTuple):
    """One face of a font family; `file` as Debian's package names it."""

    family: str
    side: str
    package: str
    file: str
    number: int = 0  # in a collection

    @property
    def name(self) -> str:
        return Path(self.file).stem + (f"#{self.number}" if self.number else "")


# Each side has sans, serif or brush, and handwritten shapes; 2 is the mainland form of Noto.
FACES = (
    Face("Noto Sans CJK", "train", "fonts-noto-cjk", "NotoSansCJK-Regular.ttc", 2),
    Face("Noto Sans CJK", "train", "fonts-noto-cjk", "NotoSansCJK-Bold.ttc", 2),
    Face("Noto Serif CJK", "train", "fonts-noto-cjk", "NotoSerifCJK-Regular.ttc", 2),
    Face("Noto Serif CJK", "train", "fonts-noto-cjk", "NotoSerifCJK-Bold.ttc", 2),
    Face("LXGW WenKai", "train", "fonts-lxgw-wenkai", "LXGWWenKai-Light.ttf"),
    Face("LXGW WenKai", "train", "fonts-lxgw-wenkai", "LXGWWenKai-Regular.ttf"),
    Face("LXGW WenKai", "train", "fonts-lxgw-wenkai", "LXGWWenKai-Bold.ttf"),
    Face("IPAex Mincho", "train", "fonts-ipaexfont-mincho", "ipaexm.ttf"),
    Face("BIZ UDGothic", "train", "fonts-morisawa-bizud-gothic", "BIZUDGothic-Regular.ttf"),
    Face("BIZ UDGothic", "train", "fonts-morisawa-bizud-gothic", "BIZUDGothic-Bold.ttf"),
    Face("Aoyagi Kouzan", "train", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu.ttf"),
    Face("Aoyagi Kouzan", "train", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu-gyosho.ttf"),
    Face("Aoyagi Kouzan", "train", "fonts-aoyagi-kouzan-t", "AoyagiKouzanT.ttf"),
    Face("Kiloji", "train", "fonts-kiloji", "kiloji.ttf"),
    Face("Kiloji", "train", "fonts-kiloji", "kiloji_b.ttf"),
    Face("WenQuanYi Zen Hei", "val", "fonts-wqy-zenhei", "wqy-zenhei.ttc"),
    Face("SetoFont", "val", "fonts-seto", "setofont.ttf"),
    Face("WenQuanYi Micro Hei", "test", "fonts-wqy-microhei", "wqy-microhei.ttc"),
    Face("AR PL UMing", "test", "fonts-arphic-uming", "uming.ttc"),
    Face("AR PL UKai", "test", "fonts-arphic-ukai", "ukai.ttc"),
)


class Sizes(NamedTuple):
    """Classes of the large pack, and training images of its first class; the last has one."""

    known: int = 18_000
    open_test: int = 2_000
    open_val: int = 900
    head: int = 12


def packages_of(faces: Iterable[Face]) -> list[str]:
    return list(dict.fromkeys(face.package for face in faces))


def fetch(folder: Path, say: Say, faces: Sequence[Face] = FACES) -> Path:
    """Debian packages of the fonts in `folder`, those that are not there yet fetched by apt.

    Raises:
        RuntimeError: apt-get is missing or fails.
    """
    wanted = [p for p in packages_of(faces) if not any(folder.glob(f"{p}_*.deb"))]
    if not wanted:
        return folder
    by_hand = f"name a folder of their .deb or font files with --source: {' '.join(wanted)}"
    apt = shutil.which("apt-get")
    if apt is None:
        raise RuntimeError(f"apt-get, which fetches fonts, is missing; {by_hand}")
    say(f"fetching {counted(len(wanted), 'font package')}")
    with made_folder(folder), tempfile.TemporaryDirectory(dir=folder) as part:
        run = subprocess.run(
            [apt, "download", "-q", *wanted], cwd=part, capture_output=True, text=True
        )
        for file in Path(part).glob("*.deb") if run.returncode == 0 else ():
            os.replace(file, folder / file.name)
    if run.returncode:
        why = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RuntimeError(f"apt-get download failed: {why}; run apt-get update, or {by_hand}")
    return folder


def make(
    source: Path | None,
    downloads: Path,
    say: Say,
    *,
    faces: Sequence[Face] = FACES,
    characters: str = CHARACTERS,
    sizes: Sizes = Sizes(),  # noqa: B008
) -> dict[str, Pack]:
    """Both packs by their names.

    Args:
        source: folder of .deb or font files; None fetches the packages into `downloads`.
        faces, characters, sizes: what the packs are made of.

    Raises:
        FileNotFoundError: a font is missing. RuntimeError: apt-get or dpkg-deb is missing or fails.
        ValueError: a damaged font, or too few characters.
    """
    if source is not None and not source.is_dir():
        raise FileNotFoundError(f"no folder {source} of fonts")
    with tempfile.TemporaryDirectory() as unpacked:
        paths = find(source or fetch(downloads, say, faces), Path(unpacked), faces)
        drawn = []
        for count, (face, path) in enumerate(zip(faces, paths, strict=True), 1):
            drawn.append(draw(path, face.number, characters))
            say(f"{count}/{len(faces)} {face.name}: {counted(len(drawn[-1][0]), 'character')}")
        digest = {
            face.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for face, path in zip(faces, paths, strict=True)
        }
    about = {
        "renderer": f"Pillow {Image.__version__}, FreeType {features.version('freetype2')}",
        "families": {face.name: face.family for face in faces},
        "sha256": digest,
    }
    return deal(faces, drawn, characters, sizes, json.dumps(about))


def find(source: Path, unpacked: Path, faces: Sequence[Face]) -> list[Path]:
    """The file of each face in `source`, or in its .deb packages, unpacked."""
    packages = packages_of(faces)
    for deb in sorted(source.glob("*.deb")):  # no deeper: a killed download may lie there
        if not any(deb.name.startswith(f"{package}_") for package in packages):
            continue
        tool = shutil.which("dpkg-deb")
        if tool is None:
            raise RuntimeError(f"dpkg-deb is missing, so {deb} cannot be unpacked")
        run = subprocess.run([tool, "-x", deb, unpacked], capture_output=True, text=True)
        if run.returncode:
            why = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ValueError(f"{deb} cannot be unpacked: {why}")
    there: dict[str, Path] = {}
    for path in sorted([*source.rglob("*"), *unpacked.rglob("*")]):
        if path.is_file():
            there.setdefault(path.name, path)
    missing = [face for face in faces if face.file not in there]
    if missing:
        raise FileNotFoundError(
            f"no {', '.join(face.file for face in missing)} in {source}; "
            f"Debian's packages: {' '.join(packages_of(missing))}"
        )
    return [there[face.file] for face in faces]


def draw(path: Path, number: int, characters: str) -> tuple[NDArray[np.int64], Bytes]:
    """Positions (n,) of the characters that a face really has, and their images (n, 32, 32).

    Raises:
        ValueError: not a font that can be read.
    """
    try:
        # bytes, for a path that fails Pillow looks for a font of that name in the system's folders;
        # basic layout: one glyph a character, whatever shaping library there is
        file, basic = io.BytesIO(path.read_bytes()), ImageFont.Layout.BASIC
        font = ImageFont.truetype(file, EM, number, layout_engine=basic)
        notdef = render(font, NOTDEF)
        images = np.stack([render(font, character) for character in characters])
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a font: {error}") from None
    times = Counter(image.tobytes() for image in images)
    own = [
        n
        for n, image in enumerate(images)
        if image.mean() > BLANK * 255
        and times[image.tobytes()] == 1
        and not np.array_equal(image, notdef)
    ]
    return np.array(own, np.int64), images[own]


def render(font: ImageFont.FreeTypeFont, character: str) -> Bytes:
    """uint8 (32, 32), ink 255 on ground 0, the ink in the middle; made smaller only to fit."""
    canvas = Image.new("L", (4 * EM, 4 * EM))
    ImageDraw.Draw(canvas).text((2 * EM, 2 * EM), character, fill=255, font=font, anchor="mm")
    box = canvas.getbbox()
    ink = canvas.crop(box) if box else canvas.crop((0, 0, 1, 1))
    if max(ink.size) > SIZE:
        ink.thumbnail((SIZE, SIZE), Image.Resampling.BOX)
    image = Image.new("L", (SIZE, SIZE))
    image.paste(ink, ((SIZE - ink.width) // 2, (SIZE - ink.height) // 2))
    return np.array(image)


class Classes(NamedTuple):
    """Characters, by position, in their parts; `shots` counts each known one's training images."""

    known: list[int]
    shots: list[int]
    open_val: list[int]
    open_test: list[int]


def deal(
    faces: Sequence[Face],
    drawn: Sequence[tuple[NDArray[np.int64], Bytes]],
    characters: str,
    sizes: Sizes,
    about: str = "",
) -> dict[str, Pack]:
    """Characters and faces to classes and splits; both packs.

    Args:
        drawn: for each face what `draw` gives of `characters`.

    Raises:
        ValueError: the faces do not have enough characters.
    """
    has = np.zeros((len(characters), len(faces)), bool)
    for face, (kept, _) in enumerate(drawn):
        has[kept, face] = True
    sides = np.array([face.side for face in faces])
    there = {side: has[:, sides == side].sum(axis=1) for side in ("train", "val", "test")}
    order = np.array(sorted(range(len(characters)), key=lambda c: rank(SEED, characters[c])))

    def take(count: int, fits: NDArray[np.bool_], what: str) -> list[int]:
        nonlocal order
        chosen = order[fits[order]][:count]
        if len(chosen) < count:
            raise ValueError(f"these faces have {len(chosen)} of {count} characters for {what}")
        order = order[~np.isin(order, chosen)]
        return [int(c) for c in chosen]

    strangers = {
        "open_test": take(sizes.open_test, there["test"] > 0, "open_test"),
        "open_val": take(sizes.open_val, there["val"] > 0, "open_val"),
    }
    shots = train_counts(sizes.known, sizes.head)
    chosen: list[int] = []
    for level, count in sorted(Counter(shots).items(), reverse=True):
        fits = (there["train"] >= level) & (there["test"] > 0)
        chosen += take(count, fits, f"{level} training images")
    large = Classes(chosen, shots, **strangers)
    small = Classes(
        chosen[::NINTH],
        shots[::NINTH],
        **{part: group[: len(group) // NINTH] for part, group in strangers.items()},
    )
    table = Table(faces, drawn, characters, has)
    return {
        "glyphs-2000": table.pack(small, small.known, None, about),
        "glyphs-18000": table.pack(large, small.known, 1, about),
    }


def train_counts(classes: int, head: int) -> list[int]:
    """Exponential tail from `head` images to one."""
    return [round(head ** (1 - k / max(classes - 1, 1))) for k in range(classes)]


class Table:
    """All images there are, by character and face."""

    def __init__(
        self,
        faces: Sequence[Face],
        drawn: Sequence[tuple[NDArray[np.int64], Bytes]],
        characters: str,
        has: NDArray[np.bool_],
    ) -> None:
        self.faces, self.characters, self.has = faces, characters, has
        self.pixels = [dict(zip(kept.tolist(), images, strict=True)) for kept, images in drawn]

    def chosen(self, character: int, side: str, count: int | None) -> list[int]:
        """Faces of a side that show a character, the first `count` by hash."""
        name = self.characters[character]
        there = [f for f, face in enumerate(self.faces) if face.side == side]
        there = [f for f in there if self.has[character, f]]
        return sorted(there, key=lambda f: rank(SEED, name, self.faces[f].name))[:count]

    def pack(self, classes: Classes, validated: list[int], each: int | None, about: str) -> Pack:
        """The images of some classes, `each` (None: all) of one class in validation and test."""
        rows: list[tuple[int, int, int, int]] = []  # split, label, face, character
        names = [*classes.known, *classes.open_val, *classes.open_test]
        place = {character: label for label, character in enumerate(names)}

        def add(split: str, character: int, count: int | None) -> None:
            side = split.removeprefix("open_")
            rows.extend(
                (SPLITS.index(split), place[character], face, character)
                for face in self.chosen(character, side, count)
            )

        for character, count in zip(classes.known, classes.shots, strict=True):
            add("train", character, count)
            add("test", character, each)
        for split, group in (
            ("val", validated),
            ("open_val", classes.open_val),
            ("open_test", classes.open_test),
        ):
            for character in group:
                add(split, character, each)
        return self.assemble(rows, names, about)

    def assemble(
        self, rows: Iterable[tuple[int, int, int, int]], names: Sequence[int], about: str
    ) -> Pack:
        """The pack of rows (split, label, face, character); `names` are the labels' characters."""
        split, label, face, character = np.array(sorted(rows)).T
        return Pack(
            images=np.stack([self.pixels[f][c] for f, c in zip(face, character, strict=True)]),
            class_index=label,
            split_index=split,
            source_index=face,
            class_names=[self.characters[c] for c in names],
            source_names=[f.name for f in self.faces],
            about=about,
        )
