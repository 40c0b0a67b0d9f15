"""The recipes with CLIP: they load, say whose settings they have, and train on a tiny CLIP."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from nets import tiny_clip
from published import COUNTS, write_published

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config
from oltr_ext.engine import checkpoint
from oltr_ext.models.clip_net import _settings

RECIPES = ("imagenet_lt_clip", "places_lt_clip", "inaturalist_clip")


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_are_lifts(recipe):
    text = (resources.files("oltr_ext.config") / f"recipes/{recipe}.yaml").read_text()
    head = " ".join(line.strip("# ") for line in text.split("data:")[0].splitlines())
    assert "LIFT (Shi et al., ICML 2024" in head and "not been run at full size here" in head
    config = load_config(recipe)
    stage = config.stage1
    assert (stage.epochs, stage.batch_size) == (20 if "inat" in recipe else 10, 128)
    assert stage.lr.feature == stage.lr.classifier == 0.01
    assert (stage.weight_decay, stage.momentum, stage.class_prior) == (5e-4, 0.9, 1)
    assert (stage.schedule.kind, stage.classifier_init, config.stage2) == ("cosine", "text", None)
    # as many weights a block: AdaptFormer 2 * 768 * width, adapters on its four linear layers
    classes = {"imagenet_lt_clip": 1000, "places_lt_clip": 365, "inaturalist_clip": 8142}[recipe]
    width = 2 ** ((classes // 24).bit_length() - 1)
    assert f"width {width} (rank {config.model.lora_rank})" in head
    assert config.model.lora_rank * (3072 + 1536 + 3840 + 3840) == 2 * 768 * width
    net, _, name = config.model.backbone.partition(":")
    assert net == "open_clip" and _settings(name, config.model.weights)["size"] == 224


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_and_is_judged(recipe, tmp_path, capsys):
    found = write_published(tmp_path, recipe.removesuffix("_clip"))
    lists = next(tmp_path.glob("*/*_train.txt")).parent
    (lists / "class_names.txt").write_text("tench\ngreat white shark\nhen\nkite\n")
    net, _ = tiny_clip(tmp_path / "clip")
    settings = [
        *found,
        "device=cpu",
        "threads=1",
        "amp=off",
        "data.image_size=32",
        f"model.backbone=open_clip:{net}",
        "model.weights=DEFAULT",
        "stage1.epochs=1",
        "stage1.batch_size=8",
    ]
    words = [word for item in settings for word in ("--set", item)]
    assert main(["train", recipe, "--out", str(tmp_path / "run"), *words]) == 0
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu", "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told[told.index("{") :])["closed"]["overall"] >= 0
    tensors, header = checkpoint.load(tmp_path / "run/model.safetensors")
    assert header["base"]["backbone"] == f"open_clip:{net}"
    assert sum("lora_" in key for key in tensors) == 2 * 2 * 4  # two blocks of four layers
    assert len(header["class_names"]) == len(COUNTS)
