"""Each published set's recipe, end to end on a tiny folder in that set's own format."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest
from published import COUNTS, HELD_OUT, LAYOUTS, STRANGERS, small, write_published

from oltr_ext.cli import main
from oltr_ext.config.loading import config_names, load_config
from oltr_ext.engine.splits import load_splits

STAGE2 = ("stage2.epochs=1", "stage2.batch_size=8", "stage2.lr.feature=0.001")
TRAINED = [word for item in STAGE2 for word in ("--set", item)]


def test_every_recipe_has_a_layout_and_a_section_to_read():
    lists = {n for n in config_names() if load_config(n).data.kind == "lists"}
    # a ViT takes images of 224 and no other; those with CLIP are in test_recipes_clip.py
    apart = {
        "places_lt_vit",
        *(f"{name}_clip" for name in ("imagenet_lt", "places_lt", "inaturalist")),
    }
    assert lists == set(LAYOUTS) | apart
    assert load_config("places_lt_vit").data.train == load_config("places_lt").data.train
    text = (resources.files("oltr_ext.config") / "recipes/README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## `(\w+)`", text, re.MULTILINE)) == lists


@pytest.mark.parametrize("recipe", LAYOUTS)
def test_a_recipe_trains_and_is_judged(recipe, tmp_path, capsys):
    command = ["train", recipe, "--out", str(tmp_path / "run")]
    assert main([*command, *small(write_published(tmp_path, recipe)), *TRAINED]) == 0
    assert "stage 1: 1 epoch in batches of 8" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "report " in said.out and said.err == ""
    assert (tmp_path / "run/report.html").stat().st_size > 10_000
    judged = json.loads((tmp_path / "run/report.json").read_text())["methods"][0]
    counted = judged["summary"]["samples"]
    strangers = STRANGERS if "open" in LAYOUTS[recipe][1] else 0
    assert counted == {"known": HELD_OUT * len(COUNTS), "open": strangers}


@pytest.mark.parametrize(
    ("recipe", "method"),
    [("places_lt", "crt"), ("places_lt", "oltr-plus"), ("imagenet_lt", "tau-norm")],
)
def test_a_method_on_a_recipe(recipe, method, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = small(write_published(tmp_path, recipe)) + (TRAINED if method != "tau-norm" else [])
    assert main(["train", recipe, "--method", method, *words]) == 0
    assert capsys.readouterr().out == f"model  runs/{recipe}_{method}/model.safetensors\n"
    assert main(["eval", f"runs/{recipe}_{method}", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["closed"]["overall"] >= 0


@pytest.fixture
def imagenet(tmp_path):
    overrides = write_published(tmp_path, "imagenet_lt")
    return tmp_path / "ImageNet_LT" / "ImageNet_LT_train.txt", overrides


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t + "train/x.JPEG cat\n", "train.txt:31: expected `path label` with an integer"),
        (lambda t: t + "train/x.JPEG -2\n", "train.txt:31: expected `path label` with an integer"),
        (lambda t: t + f"train/x.JPEG {2**63}\n", "train.txt:31: expected `path label`"),
        (lambda t: t + "train/x.JPEG 3\n", "train.txt:31: no image "),
        (lambda t: t.replace("_0.JPEG 3", "_0.JPEG 333"), "label 333 with 30 images leaves most"),
        (lambda t: t.replace("_0.JPEG 3", "_0.JPEG -1"), "label -1 is out of range"),
        (lambda t: "\n", "train.txt lists no images"),
        (lambda t: t.encode("utf-16"), "train.txt is not UTF-8 text"),
        (None, "no list file "),
    ],
)
def test_a_wrong_list_is_one_line(imagenet, change, message, tmp_path, capsys):
    file, overrides = imagenet
    if change is None:
        file.unlink()
    else:
        changed = change(file.read_text())
        file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    command = ["train", "imagenet_lt", "--out", str(tmp_path / "run"), *small(overrides)]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and told.startswith("oltr: ")


def test_lists_from_elsewhere(imagenet, tmp_path):
    """Windows line endings, a byte-order mark, tabs, blank lines and spaces in paths."""
    file, overrides = imagenet
    there = load_splits(load_config("imagenet_lt", overrides).data).train
    moved = tmp_path / "images/train/n01440760/name with  spaces 7.JPEG"
    (tmp_path / "images" / there.paths[0]).rename(moved)
    lines = file.read_text().splitlines()
    lines[0] = "train/n01440760/name with  spaces 7.JPEG 0"
    lines[1] = lines[1].replace(" ", "\t")
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["", *lines, "  "]).encode())
    here = load_splits(load_config("imagenet_lt", overrides).data).train
    assert here.paths == [lines[0][:-2], *there.paths[1:]]
    assert (here.labels == there.labels).all()
    assert here.image(0).size == (40, 36)
