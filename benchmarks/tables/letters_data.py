"""The pack of letters: 192 classes to know and 50 to refuse, in typefaces that imitate many hands.

A class is a letter of the Latin, Greek, Cyrillic, Hiragana or Katakana alphabet, an image is its
shape in one face, 32x32 grey. Faces of training and of test are of different families. In order:

1. Of letters that look alike the first stays: where the mean shapes over all faces, each picture's
   ink stretched over a square, correlate by 0.8 or more, as o and O do, A and Alpha, most accents.
2. Of those with six test faces, by hash: 15 open letters for validation, 35 for the test, and 192
   known ones whose training images decay exponentially from 12 faces to one.
3. Validation is what most people have: a tenth held out of the training list, tail and all, and
   unknown letters in the training's faces. The test has six images of each class.

The fonts come from the Debian archive, as for `oltr_ext.data.glyphs`, and are not redistributed.
Licences, by Debian's copyright files: SIL Open Font License 1.1, but for Kiloji (BSD-3-Clause),
Kouzan Mouhitsu (public domain), Konatu (MIT) and Motoya Maruberi (Apache-2.0).
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oltr_ext.data.glyphs import Bytes, Face, Say, Table, draw, fetch, find, train_counts
from oltr_ext.data.held_out import hold_out
from oltr_ext.data.pack import SPLITS, Pack, cache_folder, rank, save_pack

PACK = Path("runs/tables/letters.npz")
SEED = "oltr-letters"
BLOCKS = ((0x41, 0x17F), (0x391, 0x3C9), (0x410, 0x44F), (0x3041, 0x3093), (0x30A1, 0x30F3))
ALPHABETS = tuple("".join(c for c in map(chr, range(a, b + 1)) if c.isalpha()) for a, b in BLOCKS)
ALIKE = 0.8  # correlation of mean shapes from which two letters are one
HELD_OUT = 0.1
FACES = (
    Face("Kiloji", "train", "fonts-kiloji", "kiloji.ttf"),
    Face("Kouzan Mouhitsu", "train", "fonts-kouzan-mouhitsu", "kouzan-mouhitsu.ttf"),
    Face("Klee", "train", "fonts-klee", "KleeOne-Regular.ttf"),
    Face("Yusei Magic", "train", "fonts-yusei-magic", "YuseiMagic-Regular.ttf"),
    Face("Reggae", "train", "fonts-reggae", "ReggaeOne-Regular.ttf"),
    Face("RocknRoll", "train", "fonts-rocknroll", "RocknRollOne-Regular.ttf"),
    Face("Stick", "train", "fonts-stick", "Stick-Regular.ttf"),
    Face("Rampart", "train", "fonts-rampart", "RampartOne-Regular.ttf"),
    Face("DotGothic16", "train", "fonts-dotgothic16", "DotGothic16-Regular.ttf"),
    Face("Motoya Maruberi", "train", "fonts-motoya-l-maruberi", "MTLmr3m.ttf"),
    Face("BIZ UDMincho", "train", "fonts-morisawa-bizud-mincho", "BIZUDMincho-Regular.ttf"),
    Face("Sawarabi Mincho", "train", "fonts-sawarabi-mincho", "sawarabi-mincho-medium.ttf"),
    Face("M+", "train", "fonts-mplus", "Mplus1-Black.otf"),
    Face("Comfortaa", "train", "fonts-comfortaa", "Comfortaa-Bold.ttf"),
    Face("Computer Modern", "train", "fonts-cmu", "cmunci.ttf"),
    Face("Vollkorn", "train", "fonts-vollkorn", "Vollkorn-BlackItalic.ttf"),
    Face("Triod", "train", "fonts-triod-postnaja", "TriodPostnaja.ttf"),
    Face("DKG Handwriting", "train", "fonts-dkg-handwriting", "dkg.ttf"),
    Face("Dancing Script", "train", "fonts-dancingscript", "DancingScript-Bold.otf"),
    Face("Kaushan Script", "train", "fonts-kaushanscript", "KaushanScript-Regular.otf"),
    Face("Lobster Two", "train", "fonts-lobstertwo", "LobsterTwo-Bold.otf"),
    Face("SetoFont", "test", "fonts-seto", "setofont.ttf"),
    Face("YOzFont", "test", "fonts-yozvox-yozfont-antique", "YOzRA_.ttf"),
    Face("Konatu", "test", "fonts-konatu", "Konatu.ttf"),
    Face("Cherry Bomb", "test", "fonts-cherrybomb", "CherryBomb-Regular.otf"),
    Face("Smiley Sans", "test", "fonts-smiley-sans", "SmileySans-Oblique.ttf"),
    Face("Caslon", "test", "fonts-georgewilliams", "CaslonRoman.ttf"),
    Face("Cupola", "test", "fonts-georgewilliams", "Cupola.ttf"),
    Face("Fantasque Sans", "test", "fonts-fantasque-sans", "FantasqueSansMono-Italic.otf"),
    Face("Eurofurence", "test", "fonts-eurofurence", "eurof55.ttf"),
    Face("Okolaks", "test", "fonts-okolaks", "okolaksBold.ttf"),
    Face("Breip", "test", "fonts-breip", "Breip.ttf"),
    Face("Comic Neue", "test", "fonts-comic-neue", "ComicNeue-Italic.otf"),
    Face("Leckerli", "test", "fonts-leckerli-one", "LeckerliOne-Regular.ttf"),
)


class Sizes(NamedTuple):
    known: int = 192
    open_test: int = 35
    open_val: int = 15
    head: int = 12  # training images of the first class, before validation is held out
    each: int = 6  # test images of a class


def make(
    source: Path | None,
    downloads: Path,
    say: Say,
    *,
    faces: Sequence[Face] = FACES,
    alphabets: Sequence[str] = ALPHABETS,
    sizes: Sizes = Sizes(),  # noqa: B008
) -> Pack:
    """The pack; arguments and errors are those of `oltr_ext.data.glyphs.make`."""
    with tempfile.TemporaryDirectory() as unpacked:
        paths = find(source or fetch(downloads, say, faces), Path(unpacked), faces)
        drawn = [draw_all(path, alphabets) for path in paths]
    characters = "".join(alphabets)
    kept = distinct(drawn, len(characters))
    drawn = [(own[np.isin(own, kept)], images[np.isin(own, kept)]) for own, images in drawn]
    return deal(faces, drawn, characters, sizes)


def draw_all(path: Path, alphabets: Sequence[str]) -> tuple[NDArray[np.int64], Bytes]:
    """As `draw`, which leaves out letters of one picture, alphabet by alphabet."""
    parts = [draw(path, 0, alphabet) for alphabet in alphabets]
    begins = np.cumsum([0, *map(len, alphabets)])
    own = np.concatenate([own + begin for (own, _), begin in zip(parts, begins, strict=False)])
    return own, np.concatenate([images for _, images in parts])


def distinct(drawn: Sequence[tuple[NDArray[np.int64], Bytes]], count: int) -> list[int]:
    """Positions of the letters whose mean shape is not nearly that of one before it."""
    total, times = np.zeros((count, 256)), np.zeros((count, 1))
    for own, images in drawn:
        total[own] += np.array([shape(image) for image in images]).reshape(-1, 256)
        times[own] += 1
    kept: list[int] = []
    mean = total / np.maximum(times, 1)
    mean -= mean[times[:, 0] > 0].mean(axis=0)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
    for letter in np.flatnonzero(times[:, 0]).tolist():
        if not kept or (mean[kept] @ mean[letter]).max() < ALIKE:
            kept.append(letter)
    return kept


def shape(image: Bytes) -> NDArray[np.float64]:
    """(256,), the ink of an image stretched over 16x16: neither size nor proportions."""
    box = Image.fromarray(image).getbbox()
    small = Image.fromarray(image).resize((16, 16), Image.Resampling.BOX, box)
    return np.asarray(small, np.float64).ravel() / 255


def deal(
    faces: Sequence[Face],
    drawn: Sequence[tuple[NDArray[np.int64], Bytes]],
    characters: str,
    sizes: Sizes,
) -> Pack:
    """Letters and faces to classes and splits. Raises ValueError for too few letters."""
    has = np.zeros((len(characters), len(faces)), bool)
    for face, (own, _) in enumerate(drawn):
        has[own, face] = True
    sides = np.array([face.side for face in faces])
    trained, tested = (has[:, sides == side].sum(axis=1) for side in ("train", "test"))
    order = sorted(np.flatnonzero(tested >= sizes.each).tolist(), key=lambda c: rank(SEED, str(c)))
    names: list[int] = []
    shots = train_counts(sizes.known, sizes.head)
    levels = sorted(Counter(shots).items(), reverse=True)
    opened = (sizes.open_val, sizes.open_test)
    for level, wanted in ((sizes.each, sum(opened)), *levels):
        fit = [c for c in order if trained[c] >= level and c not in names][:wanted]
        if len(fit) < wanted:
            raise ValueError(f"these faces have {len(fit)} of {wanted} letters in {level} faces")
        names += fit
    names = names[sum(opened) :] + names[: sum(opened)]
    table = Table(faces, drawn, characters, has)
    known, first_test = sizes.known, sizes.known + sizes.open_val
    listed = [
        (k, f, names[k]) for k in range(known) for f in table.chosen(names[k], "train", shots[k])
    ]
    paths = [f"{faces[f].name}:{characters[c]}" for _, f, c in listed]
    held = hold_out(paths, [k for k, _, _ in listed], HELD_OUT, 0)
    rows = [
        (SPLITS.index("val" if h else "train"), *row) for h, row in zip(held, listed, strict=True)
    ]
    for label, letter in enumerate(names):
        split = "test" if label < known else "open_val" if label < first_test else "open_test"
        side = "train" if split == "open_val" else "test"
        chosen = table.chosen(letter, side, sizes.each)
        rows += [(SPLITS.index(split), label, face, letter) for face in chosen]
    families = {face.name: face.family for face in faces}
    return table.assemble(rows, names, json.dumps({"families": families}))


def packed(say: Say = print) -> Path:
    """The pack's path, made where it is not there."""
    if not PACK.exists():
        save_pack(PACK, make(None, cache_folder() / "downloads", say))
    return PACK
