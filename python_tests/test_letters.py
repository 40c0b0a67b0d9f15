"""The maker of the letters, on fonts that matplotlib ships: look-alikes, sides, the tail."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from oltr_ext.data.glyphs import Face

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "tables"))

import compare
import letters_data
import tune

FONTS = Path(matplotlib.__file__).parent / "mpl-data" / "fonts" / "ttf"
FACES = (
    Face("DejaVu Sans", "train", "fonts-dejavu", "DejaVuSans.ttf"),
    Face("DejaVu Sans", "train", "fonts-dejavu", "DejaVuSans-Oblique.ttf"),
    Face("DejaVu Sans", "train", "fonts-dejavu", "DejaVuSansDisplay.ttf"),
    Face("DejaVu Serif", "train", "fonts-dejavu", "DejaVuSerif.ttf"),
    Face("DejaVu Serif", "train", "fonts-dejavu", "DejaVuSerif-Italic.ttf"),
    Face("STIX", "test", "fonts-stix", "STIXGeneral.ttf"),
    Face("STIX", "test", "fonts-stix", "STIXGeneralBol.ttf"),
)
SIZES = letters_data.Sizes(known=20, open_test=6, open_val=3, head=4, each=2)
ALPHABETS = letters_data.ALPHABETS[:3]


@pytest.fixture(scope="module")
def pack():
    return make()


def make(sizes=SIZES):
    return letters_data.make(
        FONTS, Path("none"), print, faces=FACES, alphabets=ALPHABETS, sizes=sizes
    )


def test_a_family_is_on_one_side():
    for faces in (letters_data.FACES, FACES):
        sides = {(face.family, face.side) for face in faces}
        assert len(sides) == len({family for family, _ in sides})
        assert len({face.name for face in faces}) == len(faces)


def test_of_letters_that_look_alike_the_first_stays():
    drawn = [letters_data.draw_all(FONTS / face.file, ALPHABETS) for face in FACES[:2]]
    text = "".join(ALPHABETS)
    kept = "".join(text[k] for k in letters_data.distinct(drawn, len(text)))
    assert {*"ABO\u0416\u0394"} <= {*kept}  # Zhe and Delta are shapes of their own
    assert not {*"ocs\u0391\u0392\u0410\u0412\u041e"} & {*kept}  # o, c, s; Alpha, Beta; A, Ve, O


def test_the_tail_is_held_out_of_the_training_list_and_the_test_is_balanced(pack):
    assert pack.num_known == 20 and len(pack.class_names) == 29
    assert len(set(pack.class_names)) == 29
    count = {s: Counter(pack.class_index[pack.rows(s)].tolist()) for s in letters_data.SPLITS}
    listed = count["train"] + count["val"]
    assert [listed[k] for k in range(20)] == letters_data.train_counts(20, 4)
    assert sum(count["val"].values()) == round(0.1 * sum(listed.values()))
    assert count["test"] == dict.fromkeys(range(20), 2)
    assert count["open_val"] == dict.fromkeys(range(20, 23), 2)
    assert count["open_test"] == dict.fromkeys(range(23, 29), 2)
    for split in letters_data.SPLITS:
        side = "test" if split.endswith("test") else "train"
        assert {FACES[f].side for f in pack.source_index[pack.rows(split)]} == {side}, split


def test_a_letter_of_few_faces_is_of_the_tail():
    image = np.full((1, 32, 32), 9, np.uint8)
    own = [range(0, 300, step) for step in (1, 2, 3, 5, 300, 1, 1)]
    drawn = [(np.array(each, np.int64), image.repeat(len(each), 0)) for each in own]
    dealt = letters_data.deal(FACES, drawn, "".join(map(chr, range(0x4E00, 0x4F2C))), SIZES)
    rows = np.flatnonzero(dealt.split_index < 2)
    listed = np.bincount(dealt.class_index[rows])
    assert listed.tolist() == letters_data.train_counts(20, 4)


def test_two_builds_are_the_same(pack):
    again = make()
    np.testing.assert_array_equal(pack.images, again.images)
    np.testing.assert_array_equal(pack.split_index, again.split_index)
    assert pack.class_names == again.class_names


def test_too_few_letters_are_an_error():
    with pytest.raises(ValueError, match=r"these faces have \d+ of 909 letters in 2 faces"):
        make(SIZES._replace(open_test=906))


def test_nothing_that_was_tuned_elsewhere_reaches_a_table_of_packaged_settings():
    row = compare.Row("plain", "plain")
    table = compare.Table("t", "T", "icons", (0,), [row])
    assert compare.settings(table, row) == tune.chosen("plain", "icons") != []
    packaged = compare.Table("t", "T", "icons", (0,), [row], tuned=False)
    assert compare.settings(packaged, row) == []
