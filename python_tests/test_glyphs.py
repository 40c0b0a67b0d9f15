"""Glyph packs of fonts that matplotlib ships: what is dropped, who is on which side, errors."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from oltr_ext.cli import main
from oltr_ext.data import glyphs
from oltr_ext.data.glyphs import FACES, Face, Sizes
from oltr_ext.data.pack import SPLITS, save_pack

FONTS = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
TINY = (
    Face("DejaVu Sans", "train", "fonts-dejavu", "DejaVuSans.ttf"),
    Face("DejaVu Sans", "train", "fonts-dejavu", "DejaVuSans-Bold.ttf"),
    Face("DejaVu Mono", "train", "fonts-dejavu", "DejaVuSansMono.ttf"),
    Face("DejaVu Serif", "val", "fonts-dejavu-extra", "DejaVuSerif.ttf"),
    Face("STIX", "test", "fonts-stix", "STIXGeneral.ttf"),
    Face("STIX", "test", "fonts-stix", "STIXGeneralBol.ttf"),
)
LETTERS = "".join(map(chr, range(0x41, 0x250))) + "\u4e00\u4e01 \u00a0"
SIZES = Sizes(known=90, open_test=18, open_val=9, head=3)
SIDE = {"train": "train", "val": "val", "test": "test", "open_val": "val", "open_test": "test"}


def make(source=FONTS, downloads=Path("none"), say=lambda _: None, sizes=SIZES):
    return glyphs.make(source, downloads, say, faces=TINY, characters=LETTERS, sizes=sizes)


@pytest.fixture(scope="module")
def packs():
    return make()


def font(name):
    return ImageFont.truetype(FONTS / name, glyphs.EM, layout_engine=ImageFont.Layout.BASIC)


def test_a_family_is_on_one_side():
    for faces in (FACES, TINY):
        sides = {(face.family, face.side) for face in faces}
        assert len(sides) == len({family for family, _ in sides})
        assert {side for _, side in sides} == {"train", "val", "test"}
        assert len({face.name for face in faces}) == len(faces)


def test_every_image_comes_from_a_face_of_its_side(packs):
    for pack in packs.values():
        for split in SPLITS:
            faces = {TINY[f].side for f in pack.source_index[pack.rows(split)]}
            assert faces == {SIDE[split]}, split


def test_classes_are_known_or_open_and_every_known_one_can_be_judged(packs):
    large = packs["glyphs-18000"]
    assert large.num_known == SIZES.known and len(large.class_names) == 90 + 9 + 18
    assert len(set(large.class_names)) == len(large.class_names)
    for pack in packs.values():
        known = set(range(pack.num_known))
        for split in ("train", "test"):
            assert set(pack.class_index[pack.rows(split)].tolist()) == known
        counts = pack.train_counts.tolist()
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == SIZES.head and counts[-1] == 1
    assert large.train_counts.tolist() == glyphs.train_counts(90, 3)


def test_the_small_pack_is_every_ninth_class_of_the_large_one(packs):
    small, large = packs["glyphs-2000"], packs["glyphs-18000"]
    assert small.known_names == large.known_names[::9]
    of_val = {large.class_names[c] for c in large.class_index[large.rows("val")]}
    assert of_val <= set(small.known_names)

    def training(pack):
        rows = pack.rows("train")
        names = [pack.image_id(row) for row in rows]
        return dict(zip(names, (pack.images[row].tobytes() for row in rows), strict=True))

    here, there = training(small), training(large)
    assert here.items() <= there.items() and len(here) < len(there)
    for part, count in (("open_val", 1), ("open_test", 2)):
        mine, all_of_them = (
            {pack.class_names[c] for c in pack.class_index[pack.rows(part)]}
            for pack in (small, large)
        )
        assert mine <= all_of_them and len(mine) == count
    once = Counter(large.class_index[large.rows("test")].tolist())
    assert set(once.values()) == {1}
    assert max(Counter(small.class_index[small.rows("test")].tolist()).values()) == 2


def test_blank_missing_and_ambiguous_characters_are_dropped(packs):
    text = "A\u0391B\u0392g \u00a0\u4e00\u4e01"  # Greek capitals are drawn as the Latin ones
    kept, images = glyphs.draw(FONTS / "DejaVuSans.ttf", 0, text)
    assert [text[k] for k in kept] == ["g"]
    np.testing.assert_array_equal(images[0], glyphs.render(font("DejaVuSans.ttf"), "g"))
    kept, _ = glyphs.draw(FONTS / "DejaVuSans.ttf", 0, "A\u4e00")  # one alone is no repetition
    assert kept.tolist() == [0]
    notdef = {face: glyphs.render(font(face.file), "\u4e00").tobytes() for face in TINY}
    for pack in packs.values():
        assert not set(pack.class_names) & set("\u4e00\u4e01 \u00a0")
        for image, source in zip(pack.images, pack.source_index, strict=True):
            assert image.any() and image.tobytes() != notdef[TINY[source]]


def test_ink_is_bright_whole_and_in_the_middle():
    for name in ("DejaVuSans.ttf", "STIXGeneral.ttf"):
        for character in "MgW\u00c6_":
            image = glyphs.render(font(name), character)
            rows, cols = np.nonzero(image)
            assert image.shape == (32, 32) and image.dtype == np.uint8 and image.max() > 200
            assert abs(rows.min() - (31 - rows.max())) <= 1
            assert abs(cols.min() - (31 - cols.max())) <= 1


def test_two_builds_are_the_same_bytes(packs, tmp_path):
    for name, pack in make().items():
        save_pack(tmp_path / f"{name}.a", packs[name])
        save_pack(tmp_path / f"{name}.b", pack)
        assert (tmp_path / f"{name}.a").read_bytes() == (tmp_path / f"{name}.b").read_bytes()
    about = json.loads(packs["glyphs-2000"].about)
    assert about["families"]["STIXGeneral"] == "STIX" and len(about["sha256"]) == len(TINY)
    assert "FreeType" in about["renderer"]


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_laws_hold_for_whatever_the_fonts_have(data):
    """Faces that have any characters: dealt by the laws above, or refused."""
    letters = LETTERS[:40]
    image = np.full((1, 32, 32), 9, np.uint8)
    drawn = []
    for _ in TINY:
        kept = sorted(data.draw(st.sets(st.integers(0, 39), min_size=20)))
        drawn.append((np.array(kept), image.repeat(len(kept), 0)))
    try:
        packs = glyphs.deal(TINY, drawn, letters, Sizes(18, 4, 3, 3))
    except ValueError as error:
        assert "these faces have" in str(error) or "there is no val image" in str(error)
        return
    for pack in packs.values():
        known = set(range(pack.num_known))
        for split in ("train", "test"):
            assert set(pack.class_index[pack.rows(split)].tolist()) == known
        for row in range(len(pack.images)):
            face, character = pack.source_index[row], pack.class_names[pack.class_index[row]]
            assert letters.index(character) in drawn[face][0]
        assert len({*zip(pack.class_index, pack.source_index, strict=True)}) == len(pack.images)
    assert packs["glyphs-18000"].train_counts.tolist() == glyphs.train_counts(18, 3)


def test_missing_fonts_are_named_with_their_packages(tmp_path, capsys):
    assert main(["data", "make", "glyphs", "--source", f"{tmp_path}/none"]) == 1
    assert capsys.readouterr().err == f"oltr: no folder {tmp_path}/none of fonts\n"
    shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path)
    message = r"no DejaVuSans-Bold.ttf, .*packages: fonts-dejavu fonts-dejavu-extra fonts-stix"
    with pytest.raises(FileNotFoundError, match=message):
        make(tmp_path)


def test_damaged_fonts_and_too_few_characters_are_named(tmp_path):
    for face in TINY:
        shutil.copy(FONTS / face.file, tmp_path)
    (tmp_path / "DejaVuSans.ttf").write_bytes(b"no font")
    with pytest.raises(ValueError, match=r"DejaVuSans.ttf cannot be read as a font: "):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"have \d+ of 5000 characters for open_test"):
        make(sizes=Sizes(90, 5000, 9, 3))


def deb(folder, package):
    """A package of the fonts that TINY expects in it."""
    tree = folder / package
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    (tree / "usr/share/fonts").mkdir(parents=True)
    for face in TINY:
        if face.package == package:
            shutil.copy(FONTS / face.file, tree / "usr/share/fonts")
    subprocess.run(
        ["dpkg-deb", "-Znone", "-b", tree, folder / f"{package}_1_all.deb"],
        check=True,
        capture_output=True,
    )
    shutil.rmtree(tree)


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt-get whose archive is a folder; returns the archive and what apt-get was asked."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "archive").mkdir()
    script = tmp_path / "bin" / "apt-get"
    script.write_text(
        f"""#!/bin/sh
echo "$@" >> {tmp_path}/asked
shift 2
for p in "$@"; do
  cp {tmp_path}/archive/"$p"_*.deb . || {{ echo "E: Unable to locate package $p" >&2; exit 100; }}
done
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    return tmp_path / "archive", tmp_path / "asked"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb")
def test_fonts_are_fetched_once_and_unpacked(apt, tmp_path, packs):
    archive, asked = apt
    downloads = tmp_path / "downloads"
    deb(archive, "fonts-dejavu")
    deb(archive, "fonts-dejavu-extra")
    with pytest.raises(RuntimeError, match="Unable to locate package fonts-stix; run apt-get upd"):
        make(None, downloads)
    assert not downloads.exists()
    (downloads / "killed").mkdir(parents=True)
    (downloads / "killed" / "fonts-stix_1_all.deb").write_bytes(b"half")
    deb(archive, "fonts-stix")
    for _ in range(2):
        for name, pack in make(None, downloads).items():
            np.testing.assert_array_equal(pack.images, packs[name].images)
    assert len(asked.read_text().splitlines()) == 2
    broken = downloads / "fonts-stix_1_all.deb"
    broken.write_bytes(broken.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=r"fonts-stix_1_all.deb cannot be unpacked: "):
        make(None, downloads)


def test_without_apt_the_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"apt-get, .* --source: fonts-dejavu fonts-de"):
        make(None, tmp_path / "downloads")
