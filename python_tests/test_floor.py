"""A network that is worse than class means of its pixels is not passed over in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from test_pack import tiny_pack
from tiny import config, write_data

from oltr_ext.config.loading import make_config
from oltr_ext.data.pack import save_pack
from oltr_ext.engine import floor
from oltr_ext.engine.evaluate import Outputs, collect
from oltr_ext.engine.floor import below_floor, pixel_accuracy
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.serve.trained import load_trained


def by_hand(splits):
    """Of images no larger than 32 pixels, in float64."""
    train_x, train_y = splits.plain.__getitems__(np.arange(len(splits.plain)))
    val_x, val_y = splits.val.__getitems__(np.arange(len(splits.val)))
    means = torch.stack([train_x[train_y == c].double().mean(dim=0) for c in train_y.unique()])
    order = torch.cdist(val_x.double().flatten(1), means.flatten(1)).argmin(dim=1)
    return float((train_y.unique()[order] == val_y)[val_y >= 0].double().mean())


@pytest.fixture
def lists(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path / "data"


def test_the_floor_is_the_nearest_class_mean_of_pixels(lists, tmp_path):
    text = (lists / "train.txt").read_text().splitlines()
    (lists / "train.txt").write_text("\n".join(line for line in text if not line.endswith(" 1")))
    (lists / "val.txt").open("a").write("open_val_4_0.png -1\n")
    splits = load_splits(make_config(config(lists)).data)  # class 1 has no training image
    assert pixel_accuracy(splits) == pytest.approx(by_hand(splits))
    assert 0.3 < by_hand(splits) < 0.8
    save_pack(tmp_path / "a.npz", tiny_pack())
    pack = load_splits(make_config({**config(lists), "data": pack_data(tmp_path)}).data)
    assert pixel_accuracy(pack) == pytest.approx(by_hand(pack))


def pack_data(folder):
    return {"kind": "pack", "name": str(folder / "a.npz")}


def test_damaged_images_do_not_count(lists):
    for name in ("train_0_0", "val_3_1"):
        (lists / f"{name}.png").write_text("no image")
    values = config(lists)
    values["data"]["max_bad_images"] = 1
    assert 0.3 < pixel_accuracy(load_splits(make_config(values).data)) <= 1


def test_larger_images_are_averaged(lists):
    for file in lists.glob("*.png"):
        Image.open(file).resize((256, 256), Image.Resampling.NEAREST).save(file)
    small = load_splits(make_config(config(lists), ["data.augment=none"]).data)
    large = load_splits(
        make_config(config(lists), ["data.augment=none", "data.image_size=256"]).data
    )
    assert pixel_accuracy(large) == pytest.approx(pixel_accuracy(small))


def test_who_ends_below_it_is_told_both_figures(lists, tmp_path, monkeypatch):
    values, said = {**config(lists), "stage2": None}, []
    learnt_nothing = make_config(values, ["stage1.lr={feature: 0, classifier: 0}"])
    train(learnt_nothing, tmp_path / "run", say=said.append)
    reached = said[-3].split("val ")[1]
    pixels = 100 * pixel_accuracy(load_splits(learnt_nothing.data))
    assert said[-1].startswith(
        f"warning: val {reached} is below the {pixels:.1f} % that the nearest"
    )
    assert "data.augment" in said[-1]
    train(learnt_nothing, tmp_path / "run", say=said.append)
    assert said[-1].endswith("is trained already")
    splits = load_splits(learnt_nothing.data)
    labels = splits.val.labels
    right, wrong = (Outputs(pred, labels, {}) for pred in (labels, (labels + 1) % 4))
    assert below_floor(splits, wrong) and not below_floor(splits, right)
    monkeypatch.setattr(floor, "LIMIT", len(splits.train) + len(splits.val) - 1)
    assert not below_floor(splits, wrong)


@pytest.mark.parametrize("prior", ["balanced", "val"])
@pytest.mark.parametrize("select", ["best", "last"])
def test_it_is_of_the_model_that_is_kept(lists, tmp_path, monkeypatch, select, prior):
    """Not as `select` weighs classes, nor as an epoch was judged that is not kept."""
    text = (lists / "val.txt").read_text().splitlines()
    tail = [line for n, line in enumerate(text) if n % 4 == 0 or line.endswith(" 0")]
    (lists / "val.txt").write_text("\n".join(tail))  # by class and by image are two figures
    monkeypatch.setattr(floor, "pixel_accuracy", lambda _: 1.01)
    values, said = {**config(lists), "select": select, "test_prior": prior, "stage2": None}, []
    values["stage1"] = {**values["stage1"], "epochs": 4, "class_prior": 1.0}
    path = train(make_config(values), tmp_path / "run", say=said.append)
    trained = load_trained(path, device="cpu")
    seen = collect(trained.model, load_splits(trained.config.data).val, torch.device("cpu"))
    right = seen.pred == seen.target
    by_class = np.mean([right[seen.target == c].mean() for c in range(4)])
    assert said[-1].startswith(f"warning: val {100 * right.mean():.1f} % is below the 101.0 %")
    assert abs(by_class - right.mean()) > 0.01
    (tmp_path / "run" / "model.safetensors").unlink()  # killed just before it was written
    train(make_config(values), tmp_path / "run", say=said.append)
    assert said[-1].startswith("warning: ") and said[-1] in said[:-1]
