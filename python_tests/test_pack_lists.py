"""`oltr data pack`: lists become a pack, to the same pixels and labels; packs of colour."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_pack import tiny_pack
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config, make_config
from oltr_ext.data.pack import Pack, load_pack, save_pack
from oltr_ext.engine import pack_lists
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.serve.assess import assess
from oltr_ext.serve.embed import embed
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_trained

PARTS = ("plain", "val", "test", "open_val", "open_test")


@pytest.fixture
def mine(tmp_path):
    """A configuration of lists, in colour."""
    write_data(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config(tmp_path)))
    return tmp_path / "mine.yaml"


def packed(file, *overrides):
    words = [word for item in overrides for word in ("--set", item)]
    out = file.with_suffix(".npz")
    assert main(["data", "pack", str(file), "--out", str(out), *words]) == 0
    return out


def pack_config(file, out, **keys):
    values = yaml.safe_load(file.read_text())
    values["data"] = {
        "kind": "pack",
        "name": str(out),
        "augment": "gentle",
        "shots": [8, 4],
        **keys,
    }
    return values


def test_a_pack_holds_the_pixels_and_labels_of_its_lists(mine, capsys):
    out = packed(mine)
    told = capsys.readouterr()
    assert told.out == f"pack  {out}\n"
    assert told.err == f"{out}: 88 colour images of 16 x 16, 4 known and 2 open classes\n"
    lists, pack = (
        load_splits(load_config(mine).data),
        load_splits(make_config(pack_config(mine, out)).data),
    )
    assert (pack.channels, pack.size, pack.class_names) == (3, 16, lists.class_names)
    assert pack.train_counts.tolist() == lists.train_counts.tolist()
    for part in PARTS:
        images, theirs = getattr(pack, part), getattr(lists, part)
        assert images.labels.tolist() == theirs.labels.tolist()
        every = np.arange(len(theirs))
        assert torch.equal(images.__getitems__(every)[0], theirs.__getitems__(every)[0]), part
    assert pack.image_id(3) == "test_0_3.png:class 0"
    again = out.read_bytes()
    assert packed(mine).read_bytes() == again


@pytest.mark.parametrize("how", [0.25, "one_per_class"])
def test_what_training_would_hold_out_is_the_pack_s_val(mine, capsys, how):
    (mine.parent / "val.txt").unlink()
    held = [f"data.val={how}", "data.val_seed=3", "data.max_bad_images=2"]
    for part in ("train", "val"):  # one damaged image of each, and both are left out
        splits = load_splits(load_config(mine, held).data)
        (mine.parent / getattr(splits, part).paths[0]).write_text("no image")
    capsys.readouterr()
    out = packed(mine, *held)
    told = capsys.readouterr().err.splitlines()
    lists = load_splits(load_config(mine, held).data)
    assert told[0] == lists.held_out and " cannot be read, the first " in told[1] and told[3]
    packs = load_splits(make_config(pack_config(mine, out)).data)
    pack = load_pack(str(out))
    assert pack.about == f"from lists: train.txt, test.txt, open_val.txt, open_test.txt; {told[0]}"
    for part, name in (("plain", "train"), ("val", "val"), ("test", "test")):
        there, images = getattr(packs, part), getattr(lists, part)
        images.substitute = False
        pixels, labels = images.__getitems__(np.arange(len(images)))
        kept = labels >= 0
        assert (~kept).sum() == (part != "test")
        assert torch.equal(there.__getitems__(np.arange(len(there)))[0], pixels[kept])
        assert there.labels.tolist() == labels[kept].tolist()
        names = [pack.source_names[n] for n in pack.source_index[pack.rows(name)]]
        assert names == [images.paths[n] for n in kept.nonzero().flatten()]
    assert packs.train_counts.sum() == lists.train_counts.sum() - 1
    other = load_pack(str(packed(mine, *held, "data.val_seed=4")))
    a, b = ({p.source_names[n] for n in p.source_index[p.rows("val")]} for p in (pack, other))
    assert a != b


def test_grey_lists_make_a_grey_pack_of_their_size(mine):
    for file in mine.parent.glob("*.png"):
        Image.open(file).convert("L").resize((24, 12)).save(file)
    pack = load_pack(str(packed(mine, "data.image_size=20")))
    assert pack.images.shape == (88, 20, 20) and (pack.channels, pack.size) == (1, 20)
    lists = load_splits(load_config(mine, ["data.image_size=20"]).data)
    assert torch.equal(pack.split("val")[0], lists.val.__getitems__(np.arange(16))[0][:, :1])


def test_what_is_open_or_damaged_in_lists(mine, capsys):
    folder = mine.parent
    with (folder / "test.txt").open("a") as file:
        file.write("open_val_4_0.png -1\n")
    lines = [f"open_test_4_{n}.png {7 + n % 2}\n" for n in range(10)]
    (folder / "open_test.txt").write_text("".join(lines))
    (folder / "val_0_1.png").write_text("no image")
    assert main(["data", "pack", str(mine), "--out", str(folder / "no.npz")]) == 1
    assert "val_0_1.png: cannot identify image file" in capsys.readouterr().err
    pack = load_pack(str(packed(mine, "data.max_bad_images=1")))
    assert (
        "val.txt: 1 of 16 images cannot be read, the first val_0_1.png" in capsys.readouterr().err
    )
    names = ["open_val 4", "open_test", "open_test 7", "open_test 8"]
    assert sorted(pack.class_names[4:]) == sorted(names) and len(pack.rows("val")) == 15
    shown = [pack.class_names[c] for c in pack.class_index[pack.rows("open_test")]]
    assert [shown.count(name) for name in names] == [0, 1, 5, 5]


def test_what_cannot_be_packed_is_told(mine, monkeypatch, capsys):
    assert main(["data", "pack", "icons", "--out", "a.npz"]) == 1
    assert "data.kind is icons; only lists are packed" in capsys.readouterr().err
    assert main(["data", "pack", str(mine), "--out", "a.zip"]) == 1
    assert "expected a file named .npz, got a.zip" in capsys.readouterr().err
    monkeypatch.setattr(pack_lists, "LIMIT", 88 * 3 * 16**2 - 1)
    assert main(["data", "pack", str(mine), "--out", str(mine.parent / "a.npz")]) == 1
    assert "data.image_size: 0.0 GiB of pixels at 16 x 16" in capsys.readouterr().err
    assert not (mine.parent / "a.npz").exists()


def test_a_file_of_another_s_stays(mine, monkeypatch, capsys):
    monkeypatch.chdir(mine.parent)
    there = mine.with_suffix(".npz")  # where the pack goes by default
    for write in (
        lambda: there.write_text("my own"),
        lambda: np.savez(there, x=np.arange(3)),
        lambda: save_pack(there, tiny_pack()),
    ):
        write()
        before = there.read_bytes()
        assert main(["data", "pack", str(mine)]) == 1
        assert "mine.npz is there and no pack made of lists" in capsys.readouterr().err
        assert there.read_bytes() == before
    there.unlink()
    for size in (16, 20):
        assert main(["data", "pack", str(mine), "--set", f"data.image_size={size}"]) == 0
        assert load_pack(str(there)).size == size


def test_a_colour_pack_trains_and_predicts_as_its_files_do(mine, capsys):
    out, folder = packed(mine), mine.parent
    values = {**pack_config(mine, out), "stage2": None}
    trained = load_trained(train(make_config(values), folder / "run"), device="cpu")
    assert trained.image_shape == (3, 16, 16)
    result = assess(trained, name="x")
    files = [folder / line.split()[0] for line in (folder / "test.txt").read_text().splitlines()]
    answers = predict_images(trained, files)
    assert [a.closed for a in answers] == [trained.class_names[p] for p in result.seen.pred[:24]]
    embed(folder / "run", folder / "embedded", device="cpu")
    manifest = json.loads((folder / "embedded" / "manifest.json").read_text())
    assert manifest["source"]["image_shape"] == [3, 16, 16]


@pytest.mark.parametrize(
    "shape", [(30, 32, 32, 1), (30, 32, 32, 4), (30, 32, 30), (30, 7, 7), (30, 3, 32, 32)]
)
def test_a_pack_of_another_shape_is_told(shape):
    pack = tiny_pack()
    with pytest.raises(ValueError, match=r"expected images \(N, S, S\) or \(N, S, S, 3\) of uint8"):
        Pack(np.zeros(shape, np.uint8), *list(vars(pack).values())[1:])


def test_a_grey_pack_stays_the_bytes_it_was(tmp_path):
    """Packs of before are (N, 32, 32)."""
    save_pack(tmp_path / "a.npz", tiny_pack())
    with np.load(tmp_path / "a.npz") as file:
        assert file["images"].shape == tiny_pack().images.shape
    pack = load_pack(str(tmp_path / "a.npz"))
    images, _ = pack.split("train")
    assert images.shape == (30, 1, 32, 32)
    np.testing.assert_array_equal(images[:, 0], tiny_pack().images[pack.rows("train")])
