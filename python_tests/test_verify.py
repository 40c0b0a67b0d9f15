"""`oltr data check`: what is whole, what is not, and that training agrees."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import COUNTS, HELD_OUT, LAYOUTS, STRANGERS, write_published
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config, make_config
from oltr_ext.data import PUBLISHED
from oltr_ext.engine import verify
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.verify import check_data, check_table


def test_the_published_counts_belong_to_the_recipes():
    for recipe in LAYOUTS:
        data = load_config(recipe).data
        known = PUBLISHED[data.train.name]
        assert set(known.images) <= set(data.parts())
        balanced = [n for part, n in known.images.items() if part in ("val", "test")]
        assert all(n % known.classes == 0 for n in balanced)  # val and test are balanced


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    """A tiny ImageNet-LT, published with just these counts."""
    held_out = HELD_OUT * len(COUNTS)
    images = {"train": sum(COUNTS), "val": held_out, "test": held_out, "open_test": STRANGERS}
    known = dataclasses.replace(
        PUBLISHED["ImageNet_LT_train.txt"], classes=4, images=images, shots=(14, 3)
    )
    monkeypatch.setattr(verify, "PUBLISHED", {"ImageNet_LT_train.txt": known})
    overrides = write_published(tmp_path, "imagenet_lt")
    return [word for item in overrides for word in ("--set", item)]


def test_a_whole_set(imagenet, capsys):
    assert main(["data", "check", "imagenet_lt", *imagenet]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("part", "list", "images", "published", "missing", "damaged", "decoded"),
    ]
    assert lines[1].split()[2:] == ["30", "30", "0", "0", "30"]
    assert lines[-3] == "ImageNet-LT: 4 classes with 14 to 3 training images"
    assert lines[-2].startswith("note: data.shots: oltr makes every class few-shot, for they have")
    assert lines[-1] == "whole"
    assert main(["data", "check", "imagenet_lt", "--decode", "7", "--json", *imagenet]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == [] and [p["decoded"] for p in found["parts"]] == [7] * 4


def test_fewer_images_than_published(tmp_path, capsys):
    words = [w for item in write_published(tmp_path, "places_lt") for w in ("--set", item)]
    assert main(["data", "check", "places_lt", *words]) == 1
    out = capsys.readouterr().out
    for line in (
        "problem: train: 30 images, 62,500 are published",
        "problem: open_test: 10 images, 6,600 are published",
        "problem: 4 classes, 365 are published",
        "problem: train: 14 to 3 images a class, 4,980 to 5 are published",
    ):
        assert line in out
    assert out.count("to be had: ") == 2 and "Places365-Standard" in out


def test_rounded_counts(tmp_path, monkeypatch):
    data = load_config("ms1m_lt", write_published(tmp_path, "ms1m_lt")).data
    known = PUBLISHED["MS1M_LT_train.txt"]
    for train, classes, problems in ((80, 54, 0), (81, 4, 1), (30, 55, 1), (81, 55, 2)):
        about = dataclasses.replace(known, images={"train": train}, classes=classes)
        monkeypatch.setattr(verify, "PUBLISHED", {"MS1M_LT_train.txt": about})
        assert len(check_data(data).problems) == problems


def append(file, text):
    file.write_text(file.read_text() + text)


def move_out(root):
    for file in [*root.glob("train/n01440762/*_?.JPEG")]:
        file.rename(root.parent / file.name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lists, root: (lists / "ImageNet_LT_val.txt").unlink(), "val: no list file "),
        (lambda lists, root: (lists / "ImageNet_LT_val.txt").write_text(" "), "lists no images"),
        (
            lambda lists, root: append(lists / "ImageNet_LT_test.txt", "x.JPEG\nval/y.JPEG c\n"),
            "are not `path label`: line 17 'x.JPEG', line 18 'val/y.JPEG c'",
        ),
        (
            lambda lists, root: move_out(root),
            "train: 4 of 30 images are not in {root}: train/n01440762/n01440762_0.JPEG, ",
        ),
        (
            lambda lists, root: root.rename(root.parent / "other"),
            "train, val, test: no folder {root}\n",
        ),
        (
            lambda lists, root: (root / "train/n01440761/n01440761_3.JPEG").write_text("no image"),
            "train: 1 of 30 images cannot be decoded: {root}/train/n01440761/n01440761_3.JPEG "
            "(cannot identify image file)",
        ),
        (
            lambda lists, root: append(
                lists / "ImageNet_LT_test.txt", "train/n01440760/n01440760_1.JPEG 0\n"
            ),
            "train and test: 1 image is in both: {root}/train/n01440760/n01440760_1.JPEG",
        ),
        (
            lambda lists, root: append(
                lists / "ImageNet_LT_train.txt", "train/n01440760/n01440760_1.JPEG 0\n"
            ),
            "train: 1 image is listed more than once: train/n01440760/n01440760_1.JPEG",
        ),
        (
            lambda lists, root: append(
                lists / "ImageNet_LT_train.txt", "val/n01440760/ILSVRC2012_val_00000000.JPEG 6\n"
            ),
            "train: 2 of 7 classes have no training image: 4, 5",
        ),
        (
            lambda lists, root: append(
                lists / "ImageNet_LT_val.txt", "train/n01440760/n01440760_1.JPEG 4\n"
            ),
            "val: labels out of range, for there are 4 classes from 0: 4",
        ),
        (
            lambda lists, root: (lists / "ImageNet_LT_open/ILSVRC2010_val_00000003.JPEG").unlink(),
            "open_test: 1 of 10 images are not in {lists}/ImageNet_LT_open: ILSVRC2010_val_000",
        ),
    ],
)
def test_what_is_wrong_is_named(imagenet, tmp_path, capsys, damage, message):
    lists, root = tmp_path / "ImageNet_LT", tmp_path / "images"
    damage(lists, root)
    assert main(["data", "check", "imagenet_lt", *imagenet]) == 1
    out = capsys.readouterr().out
    assert message.format(root=root, lists=lists) in out and "problem: " in out
    assert "to be had: images: image-net.org, ILSVRC2012_img_train.tar" in out
    assert "whole" not in out


def test_a_truncated_image_that_the_sample_misses(imagenet, tmp_path, capsys):
    image = tmp_path / "images/train/n01440761/n01440761_3.JPEG"
    image.write_bytes(image.read_bytes()[:-200])
    command = ["data", "check", "imagenet_lt", *imagenet]
    assert main([*command, "--decode", "2"]) == 0
    assert main([*command, "--decode", "all"]) == 1
    assert "truncated" in capsys.readouterr().out


def test_lists_of_your_own(tmp_path, capsys):
    write_data(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config(tmp_path)))
    command = ["data", "check", str(tmp_path / "mine.yaml")]
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("\n4 classes with 14 to 3 training images\nwhole\n")
    names = tmp_path / "names.txt"
    assert main([*command, "--set", f"data.class_names={names}"]) == 1
    assert f"class_names: no file {names}" in capsys.readouterr().out
    names.write_text("a\nb\nc\nd\ne\n")
    assert main([*command, "--set", f"data.class_names={names}"]) == 1
    assert "train: 1 of 5 classes have no training image: 4" in capsys.readouterr().out


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stripes")
    write_data(folder)
    return folder


LINES = st.sampled_from(
    [
        *(f"train_{c}_{n}.png {c}" for c in range(4) for n in range(3)),
        *("train_0_5.png", "train_0_6.png x", "train_0_7.png -1", "train_0_8.png 9", "no.png 0"),
        *("", "  ", "train_1_5.png\t1", " train_2_2.png  2 ", "-1", "7"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_what_is_whole_can_be_loaded(stripes, lines, end):
    """What training would stop at, the check names; what the check calls whole, training takes."""
    (stripes / "drawn.txt").write_bytes(end.join(lines).encode())
    values = config(stripes)
    values["data"]["train"] = f"{stripes}/drawn.txt"
    for part in ("val", "test"):  # as many classes as there may be
        (stripes / f"{part}0.txt").write_text(f"{part}_0_0.png 0\n")
        values["data"][part] = f"{stripes}/{part}0.txt"
    data = make_config(values).data
    found = check_data(data, decode=1)
    assert (check_table(found).splitlines()[-1] == "whole") == (not found.problems)
    try:
        splits = load_splits(data)
    except (ValueError, OSError):
        assert found.problems
        return
    if not found.problems:
        counts = splits.train_counts
        assert (len(counts), counts.max(), counts.min()) == (
            found.classes,
            found.largest,
            found.smallest,
        )
