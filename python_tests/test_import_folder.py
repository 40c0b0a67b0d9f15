"""`oltr data from-folder`: lists of class folders, what it says of them, and what it never does."""

from __future__ import annotations

import csv
import errno
import json
import os
from collections import Counter

import pytest
from photos import class_folders, encoded, listed, picture, put, tree
from PIL import Image

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config
from oltr_ext.data.importing import content
from oltr_ext.data.pack import load_pack
from oltr_ext.engine.pack_lists import pack_lists
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.verify import check_data

COUNTS = {"ash tree": 12, "beech": 6, "cedar": 3, "dogwood": 2, "elm": 1}


@pytest.fixture
def photos(tmp_path):
    class_folders(tmp_path / "photos", COUNTS)
    return tmp_path / "photos"


def run(photos, out, *more):
    return main(["data", "from-folder", str(photos), "--out", str(out), *map(str, more)])


def test_lists_that_train(photos, tmp_path, capsys, monkeypatch):
    before = tree(photos)
    assert run(photos, tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert "24 images of 5 known classes: train 16, val 4, test 4\n" in said
    assert "tail: 9 to 1 training images a class; the largest class holds half" in said
    assert "no val image of 1 class: elm\n" in said
    assert "no test image of 2 classes: dogwood, elm\n" in said
    assert said.count("rule (val 0.1, test 0.2, seed 0): images of one observation") == 1
    assert (tmp_path / "set" / "report.txt").read_text() in said
    found = Counter(
        (c, part)
        for part in ("train", "val", "test")
        for path, c in listed(tmp_path / "set", part)
        if path.startswith(f"{c}/")
    )
    assert found["ash tree", "train"] == 9 and found["dogwood", "val"] == 1
    assert found.total() == 24
    config = load_config(str(tmp_path / "set" / "data.yaml"))
    assert config.stage1.batch_size == 4  # of 16; the usual 128 would be an error
    assert f"train   oltr train {tmp_path / 'set' / 'data.yaml'} --out runs/set\n" in said
    monkeypatch.chdir(tmp_path)
    assert run(photos, "set") == 0
    assert "train   oltr train set/data.yaml --out runs/set\n" in capsys.readouterr().out
    assert check_data(config.data).problems == []
    assert load_splits(config.data).class_names == list(COUNTS)
    with Image.open(tmp_path / "set" / "report.png") as plot:
        assert plot.size[0] > 500
    assert tree(photos) == before


def test_the_same_again_and_nothing_lost(photos, tmp_path, capsys):
    out = tmp_path / "set"
    assert run(photos, out) == 0
    made = tree(out)
    assert run(photos, out) == 0 and tree(out) == made
    assert run(photos, tmp_path / "twin", "--workers", 1) == 0
    assert (tmp_path / "twin" / "train.txt").read_bytes() == made["train.txt"]
    capsys.readouterr()
    assert run(photos, out, "--seed", 1) == 1
    assert "holds another import: choose another folder" in capsys.readouterr().err
    put(photos / "beech" / "new.png", 99)
    assert run(photos, out) == 1
    assert "is finished, and" in capsys.readouterr().err
    assert tree(out) == made
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.txt").write_text("my own")
    for folder, error in (
        (tmp_path / "mine", "is there and not empty"),
        (tmp_path / "mine" / "train.txt", "is there and not empty"),
        (photos, "lies in"),
        (photos / "set", "lies in"),
    ):
        assert run(photos, folder) == 1
        assert error in capsys.readouterr().err
    assert not (photos / "set").exists()
    assert (tmp_path / "mine" / "train.txt").read_text() == "my own"


def test_goes_on_when_killed(photos, tmp_path, monkeypatch, capsys):
    looks = []

    def dies(path, *, decode=True):
        looks.append(path)
        if len(looks) == 20:
            raise KeyboardInterrupt
        return look_at(path, decode=decode)

    look_at = content.look_at
    monkeypatch.setattr("oltr_ext.data.importing.core.look_at", dies)
    monkeypatch.setattr("oltr_ext.data.importing.core.BATCH", 5)
    assert run(photos, tmp_path / "set", "--workers", 1) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "set" / "train.txt").exists()
    assert run(photos, tmp_path / "set", "--workers", 1) == 0
    assert 24 < len(looks) <= 30  # the 15 of whole batches were not looked at again
    whole = tmp_path / "whole"
    assert run(photos, whole) == 0
    ours, theirs = tree(tmp_path / "set"), tree(whole)
    assert ours.keys() == theirs.keys()
    assert all(ours[n] == theirs[n] for n in ours if n.endswith((".txt", ".csv")))


def test_what_was_seen_of_a_file_is_of_that_look_alone(photos, tmp_path, monkeypatch):
    torn = photos / "beech" / "0.png"
    whole = torn.read_bytes()
    torn.write_bytes(whole[: len(whole) // 2])
    fails = ("--open", "nobody")  # once all images have been looked at
    assert run(photos, tmp_path / "set", "--quick", *fails) == 1
    assert run(photos, tmp_path / "set") == 0  # and this one decodes them
    assert "beech/0.png" in (tmp_path / "set" / "left_out.csv").read_text()
    torn.write_bytes(whole)

    def broken(content):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(content, "_sha256", broken)
        assert run(photos, tmp_path / "again", *fails) == 1
    assert run(photos, tmp_path / "again") == 0
    assert not (tmp_path / "again" / "left_out.csv").exists()


def test_names_that_are_the_same_number_are_in_one_order(tmp_path):
    numbers = ["10", "2", "002", "1", "01", "001"]
    class_folders(tmp_path / "photos", dict.fromkeys(numbers, 6))
    assert run(tmp_path / "photos", tmp_path / "set") == 0
    names = (tmp_path / "set" / "names.txt").read_text().split()
    assert names == ["001", "01", "1", "002", "2", "10"]


@pytest.mark.parametrize("share", ["nan", "inf", "-1", "1.5"])
def test_a_share_is_a_number(tmp_path, capsys, share):
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "set", "--test", share)
    assert "must be a share below 1 or a whole number" in capsys.readouterr().err


def test_open_classes_by_number_and_by_name(photos, tmp_path, capsys):
    out = tmp_path / "set"
    assert run(photos, out, "--open", "beech", "cedar") == 0
    opened = listed(out, "open_val") + listed(out, "open_test")
    assert Counter(path.split("/")[0] for path, _ in opened) == {"beech": 6, "cedar": 3}
    assert {c for _, c in opened} == {"?"} and "beech" not in (out / "names.txt").read_text()
    config = load_config(out / "data.yaml", ["data.image_size=8"])  # their names are known, though
    splits = load_splits(config.data)
    assert splits.open_names == [path.split("/")[0] for path in splits.open_test.paths]
    pack_lists(config, tmp_path / "set.npz", say=lambda _: None)
    pack = load_pack(str(tmp_path / "set.npz"))
    assert sorted(set(pack.class_names) - set(splits.class_names)) == ["beech", "cedar"]
    assert run(photos, tmp_path / "two", "--open", 2, "--seed", 3) == 0
    names = (tmp_path / "two" / "names.txt").read_text().splitlines()
    assert len(names) == 3
    capsys.readouterr()
    for words, error in (
        (("fir",), "no class fir; there are ash tree, beech, cedar, dogwood, elm"),
        ((5,), "expected fewer than the 5 classes"),
        (COUNTS, "holds every class out"),
    ):
        assert run(photos, tmp_path / "none", "--open", *words) == 1
        assert error in capsys.readouterr().err


def test_what_cannot_be_used_is_said(photos, tmp_path, capsys):
    (photos / "ash tree" / "torn.png").write_bytes(encoded(7)[:300])
    (photos / "ash tree" / "text.jpg").write_text("no image")
    (photos / "ash tree" / "void.png").touch()
    (photos / "ash tree" / "notes.txt").touch()
    (photos / "ash tree" / ".hidden.png").write_bytes(encoded(8))
    (photos / "empty").mkdir()
    (photos / "only broken").mkdir()
    (photos / "only broken" / "a.png").write_text("x")
    put(photos / "loose.png", 9)
    (photos / "ash tree" / "again.png").write_bytes((photos / "ash tree" / "0.png").read_bytes())
    (photos / "cedar" / "same.png").write_bytes((photos / "beech" / "0.png").read_bytes())
    (photos / "elm" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (photos / "elm" / "link.png").symlink_to(put(tmp_path / "elsewhere.png", 77))
    (photos / "linked").symlink_to(photos / "beech")
    (photos / "beech" / "loop").symlink_to(photos)
    os.mkfifo(photos / "beech" / "pipe.png")
    assert run(photos, tmp_path / "set") == 0
    said = capsys.readouterr().out
    for line in (
        "26 images of 5 known classes",
        "left out, unreadable: 4 (ash tree/text.jpg: no image, or of an unknown format",
        "left out, copies of others of their class: 1 (ash tree/again.png = ash tree/0.png)",
        "PROBLEM: 1 image is in several classes: beech/0.png (beech) = cedar/same.png (cedar)",
        "links to nothing: 1",
        "links to folders (see --follow-links): 2",
        "neither files nor folders: 1",
        "empty folders: 1",
        "hidden: 1",
        "files that are no images by their suffix: 1 (ash tree/notes.txt)",
        "images in no folder of a class: 1 (loose.png)",
    ):
        assert line in said, line
    with open(tmp_path / "set" / "left_out.csv", newline="") as file:
        rows = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert rows["only broken/a.png"].startswith("unreadable: ") and len(rows) == 5
    both = [p for p in ("train", "val", "test") for path, _ in listed(tmp_path / "set", p)
            if path in ("beech/0.png", "cedar/same.png")]  # fmt: skip
    assert len(both) == 2 and len(set(both)) == 1  # the same content, on one side
    assert run(photos, tmp_path / "more", "--follow-links") == 0  # and no loop
    assert "links to a folder above them: 2" in capsys.readouterr().out


def test_names_that_no_list_can_hold(tmp_path, capsys):
    root = tmp_path / "photos"
    class_folders(root, {"plain": 3})
    for n, name in enumerate(("two\nlines.png", "end .png", "\udcff.png", "cr\r.png", "a 3.png")):
        put(root / "odd\n name" / name, 50 + n)
    os.rename(root / "odd\n name" / "end .png", root / "odd\n name" / " .png")
    assert run(root, tmp_path / "set") == 0
    assert (tmp_path / "set" / "names.txt").read_text() == "odd name\nplain\n"
    found = load_splits(load_config(str(tmp_path / "set" / "data.yaml")).data)
    parts = (found.plain, found.val, found.test)
    pixels = {part.image(n).tobytes() for part in parts for n in range(len(part))}
    assert pixels == {picture(n).tobytes() for n in (0, 1, 2, *range(50, 55))}
    assert tree(root).keys() >= {"odd\n name/two\nlines.png"}  # where it was


def test_nested_folders(tmp_path, capsys):
    root = tmp_path / "photos"
    for n, path in enumerate(
        f"{top}/{leaf}/{k}.png" for top in "ab" for leaf in ("x", "y") for k in range(3)
    ):
        put(root / path, n)
    for how, names in (
        ("top", "a b"),
        ("leaf", "x y"),
        ("path", "a/x a/y b/x b/y"),
    ):
        assert run(root, tmp_path / how, "--class-by", how) == 0
        assert (tmp_path / how / "names.txt").read_text().split() == names.split()
    assert run(root, tmp_path / "seen", "--observation-folders", "--test", 0) == 0
    assert "4 observations" in capsys.readouterr().out
    assert len(listed(tmp_path / "seen", "val")) == 6  # one of the two observations of each class
    assert run(root, tmp_path / "no", "--observation-folders", "--class-by", "leaf") == 1


def test_splits_of_the_source(tmp_path, capsys):
    root = tmp_path / "photos"
    class_folders(root / "Training", {"a": 20, "b": 5})
    class_folders(root / "test", {"a": 4, "b": 4, "new": 3}, first=100)
    (root / "test" / "a" / "leak.png").write_bytes((root / "Training/a/0.png").read_bytes())
    assert run(root, tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert (
        "train 22, val 3, test 9" in said and "splits of the source are kept: test, train" in said
    )
    assert "open_test: 3 images of 1 unknown class: new" in said
    assert "PROBLEM: 1 image is in" in said and "test: Training/a/0.png" in said
    assert {path.split("/")[0] for path, _ in listed(tmp_path / "set", "test")} == {"test"}
    assert run(root, tmp_path / "anew", "--deal-anew") == 0
    assert (tmp_path / "anew" / "names.txt").read_text().split() == ["Training", "test"]


def test_errors(tmp_path, capsys):
    class_folders(tmp_path / "one", {"a": 1, "b": 1})
    (tmp_path / "none").mkdir()
    for folder, error in (
        ("one", "no class can spare a validation image"),
        ("none", "no image that can be read and has a class"),
        ("missing", "no folder"),
    ):
        out = tmp_path / f"set of {folder}"
        assert run(tmp_path / folder, out) == 1
        assert error in capsys.readouterr().err
        assert not (out / "train.txt").exists()
        assert out.exists() == (folder == "one")  # where it had not come to an image, no trace
    assert run(tmp_path / "none", tmp_path / "set of one") == 1
    assert "unfinished import of something else" in capsys.readouterr().err
    put(tmp_path / "one" / "a" / "more.png", 5)
    assert run(tmp_path / "one", tmp_path / "set of one", "--seed", 4) == 0
    with pytest.raises(SystemExit):
        run(tmp_path / "one", tmp_path / "set", "--val", "1.5")


def test_large_images_are_named(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # of which a bomb has twice as many
    assert run(photos, tmp_path / "set") == 1
    assert "exceeds limit" in capsys.readouterr().err
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    monkeypatch.setattr("oltr_ext.data.importing.words.LARGE", 200)
    assert run(photos, tmp_path / "large") == 0
    assert "larger than 0 megapixels: 24" in capsys.readouterr().out
    assert json.loads((tmp_path / "large" / "import.json").read_text())["about"]["read"] == "folder"


def test_a_file_is_opened_once(photos, monkeypatch):
    """For its hash and to be decoded; one that is large, for each."""
    file = next(photos.rglob("*.png"))
    look_at = content.look_at
    want, given, real = look_at(file), [], Image.open
    monkeypatch.setattr(content.Image, "open", lambda source: given.append(source) or real(source))
    assert look_at(file) == want and given[-1] != file
    monkeypatch.setattr(content, "WHOLE", 10)
    assert look_at(file) == want and given[-1] == file


def test_splits_beside_what_is_none(tmp_path, capsys):
    root = tmp_path / "photos"
    for part, first in (("train", 0), ("val", 20), ("unknown", 40)):
        class_folders(root / part, {"a": 4, "b": 4}, first=first)
    assert run(root, tmp_path / "set") == 0
    said = capsys.readouterr().out
    assert "PROBLEM: folders train, val are taken for classes, for unknown is no split\n" in said
    assert "\nclasses: train, unknown, val\n" in said
    assert run(root, tmp_path / "leaf", "--class-by", "leaf") == 0
    assert "PROBLEM: folders train, val are not taken for splits, for" in capsys.readouterr().out
    class_folders(tmp_path / "vehicles", {"bus": 5, "train": 5})
    assert run(tmp_path / "vehicles", tmp_path / "two") == 0
    assert "PROBLEM" not in capsys.readouterr().out


def test_one_class_has_no_largest(tmp_path, capsys):
    class_folders(tmp_path / "photos", {"fox": 9})
    assert run(tmp_path / "photos", tmp_path / "set") == 0
    assert "training images a class; 1 has fewer than 20\n" in capsys.readouterr().out
