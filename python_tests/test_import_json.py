"""`oltr data from-json`: iNaturalist's and COCO's files."""

from __future__ import annotations

import json

import pytest
from photos import listed, put

from oltr_ext.cli import main


def run(out, *words):
    return main(["data", "from-json", *map(str, words), "--out", str(out)])


def inat(folder, name, rows, first=0):
    """As iNaturalist 2018 has it: rows of (category, location)."""
    images = []
    for n, (category, place) in enumerate(rows, first):
        put(folder / f"train_val2018/{category}/{n}.jpg", n)
        images.append(
            {"id": n, "file_name": f"train_val2018/{category}/{n}.jpg", "location": place}
        )
    whole = {
        "info": {"year": 2018},
        "images": images,
        "annotations": [
            {"id": n, "image_id": n, "category_id": c} for n, (c, _) in enumerate(rows, first)
        ],
        "categories": [{"id": n, "name": ("Vulpes vulpes", "Ardea cinerea", "Twin", "Twin")[n],
                        "supercategory": "x"} for n in range(4)],
    }  # fmt: skip
    (folder / name).write_text(json.dumps(whole))
    return whole


def test_train_and_val_of_inaturalist(tmp_path, capsys):
    inat(tmp_path, "train2018.json", [(n % 4, n // 2) for n in range(32)])
    inat(tmp_path, "val2018.json", [(n % 4, n) for n in range(8)], first=32)
    words = (f"train={tmp_path / 'train2018.json'}", f"val={tmp_path / 'val2018.json'}")
    assert run(tmp_path / "set", *words, "--test", 0) == 0
    names = (tmp_path / "set" / "names.txt").read_text().splitlines()
    assert names == ["Ardea cinerea", "Twin #2", "Twin #3", "Vulpes vulpes"]
    assert len(listed(tmp_path / "set", "train")) == 32
    val = dict(listed(tmp_path / "set", "val"))
    assert len(val) == 8 and val["train_val2018/0/32.jpg"] == "Vulpes vulpes"
    assert 'test: "val.txt"' in (tmp_path / "set" / "data.yaml").read_text()
    assert run(tmp_path / "places", words[0], "--group-key", "location") == 0
    assert "\n16 groups\n" in capsys.readouterr().out


def test_annotations_that_are_not_one(tmp_path, capsys):
    whole = inat(tmp_path, "a.json", [(n % 2, 0) for n in range(12)])
    whole["annotations"] += [{"image_id": 0, "category_id": 0}, {"image_id": 1, "category_id": 0}]
    whole["annotations"] = [a for a in whole["annotations"] if a["image_id"] != 2]
    next(a for a in whole["annotations"] if a["image_id"] == 3)["category_id"] = None
    del whole["categories"]
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert run(tmp_path / "set", tmp_path / "a.json") == 0
    said = capsys.readouterr().out
    assert "9 images of 2 known classes" in said
    assert "images of several categories: 1 (train_val2018/1/1.jpg)" in said
    assert "without a class: 2 (train_val2018/0/2.jpg" in said
    assert (tmp_path / "set" / "names.txt").read_text() == "0\n1\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"images": [', "a.json is not JSON"),
        ("[1]", "expected a list of images; there are list"),
        ('{"images": [], "labels": []}', "a list of annotations; there are images, labels"),
        ('{"images": [{"id": 0}], "annotations": []}', "file_name in each row; there are id"),
        ('{"images": [], "annotations": [{"image_id": [1]}]}', "expected image_id in each row"),
        ('{"images": [{"id": 0, "file_name": "a"}], "annotations": []}', "has a class (a: unread"),
    ],
)  # fmt: skip
def test_what_is_no_such_file(tmp_path, capsys, text, error):
    (tmp_path / "a.json").write_text(text)
    assert run(tmp_path / "set", tmp_path / "a.json") == 1
    assert error in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_key_that_no_image_has(tmp_path, capsys):
    inat(tmp_path, "a.json", [(0, 0)] * 4)
    assert run(tmp_path / "set", tmp_path / "a.json", "--observation-key", "seq") == 1
    said = capsys.readouterr().err
    assert "no image has seq, its observation; there are file_name, id, location" in said


def names_of(out):
    return (out / "names.txt").read_text().splitlines()


def test_names_are_those_of_all_files(tmp_path, capsys):
    """A file that lists fewer categories knows them by the same names."""
    inat(tmp_path, "train.json", [(n % 4, 0) for n in range(32)])
    whole = inat(tmp_path, "val.json", [(2 * (n % 2), 0) for n in range(8)], first=32)
    whole["categories"] = [each for each in whole["categories"] if each["id"] in (0, 2)]
    (tmp_path / "val.json").write_text(json.dumps(whole))
    words = [f"{part}={tmp_path / part}.json" for part in ("train", "val")]
    assert run(tmp_path / "set", *words, "--test", 0) == 0
    assert "Twin #2" in dict(listed(tmp_path / "set", "val")).values()
    assert "unknown class" not in capsys.readouterr().out
    whole["categories"][0]["name"] = "Fox"
    (tmp_path / "val.json").write_text(json.dumps(whole))
    assert run(tmp_path / "no", *words) == 1
    assert "val.json: category 0 is Fox, and Vulpes vulpes before" in capsys.readouterr().err


def test_numbers_that_are_text_and_what_is_not_listed(tmp_path, capsys):
    whole = inat(tmp_path, "a.json", [(n % 2, 0) for n in range(12)])
    for n, each in enumerate(whole["annotations"]):
        each["image_id"] = str(each["image_id"])
        each["category_id"] = (float if n % 3 else str)(each["category_id"])
    (tmp_path / "a.json").write_text(json.dumps(whole))
    assert run(tmp_path / "set", tmp_path / "a.json") == 0
    assert names_of(tmp_path / "set") == ["Ardea cinerea", "Vulpes vulpes"]
    whole["categories"] = whole["categories"][1:]
    whole["annotations"] += [{"image_id": 90 + n, "category_id": 0} for n in range(4)]
    whole["annotations"][1]["category_id"] = -1
    (tmp_path / "a.json").write_text(json.dumps(whole))
    capsys.readouterr()
    assert run(tmp_path / "less", tmp_path / "a.json") == 0
    assert names_of(tmp_path / "less") == ["0", "Ardea cinerea"]
    said = capsys.readouterr().out
    assert "a.json: annotations of categories that are not listed, which are called" in said
    assert "by their numbers: 6 (0)\n" in said and "without a class: 1 (" in said
    assert "annotations of images that are not there: 4 (90, 91, 92, ...)" in said


def test_a_root_that_was_forgotten_and_a_test_without_annotations(tmp_path, capsys):
    whole = inat(tmp_path, "train.json", [(n % 2, 0) for n in range(12)])
    (tmp_path / "other").mkdir()
    assert run(tmp_path / "set", tmp_path / "train.json", "--root", tmp_path / "other") == 1
    assert f"looked in {tmp_path / 'other'}: --root says where" in capsys.readouterr().err
    del whole["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(whole))
    words = [f"{part}={tmp_path / part}.json" for part in ("train", "test")]
    assert run(tmp_path / "set", *words) == 1
    assert "without them no class is known, leave it out" in capsys.readouterr().err


def test_a_pattern_behind_a_split(tmp_path):
    for n in range(3):
        inat(tmp_path, f"part{n}.json", [(k % 2, 0) for k in range(8)], first=8 * n)
    for n, words in enumerate(("train=part*.json", "train=part{0..2}.json", "part?.json")):
        assert run(tmp_path / f"set{n}", words.replace("part", f"{tmp_path}/part")) == 0
        parts = [listed(tmp_path / f"set{n}", part) for part in ("train", "val", "test")]
        assert sum(map(len, parts)) == 24
