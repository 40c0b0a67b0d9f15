"""A run goes on, and a stage 1 is taken, on the same data alone: what changed is said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tiny import arrays, config, stop_after, write_data

from oltr_ext.config.loading import make_config
from oltr_ext.data import read_embeddings, write_embeddings
from oltr_ext.engine import checkpoint
from oltr_ext.engine.fingerprint import what_changed
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.serve.assess import assess
from oltr_ext.serve.embed import embed
from oltr_ext.serve.trained import load_trained


def reverse(lines):
    return lines[::-1]


def swap_labels(lines):
    """Of the first image of class 0 and of class 1: as many of each as before."""
    changed = list(lines)
    changed[0], changed[14] = "train_0_0.png 1", "train_1_0.png 0"
    return changed


def rename(lines):
    return [lines[1].replace("train_0_1", "val_0_0"), *lines[1:]]


CHANGES = [
    ("train", reverse, "train has its images in another order"),
    ("train", swap_labels, "train has other labels"),
    ("train", rename, "train has other images"),
    ("train", lambda lines: [*lines, "val_0_0.png 0"], "train has 31 images, and had 30"),
    ("val", lambda lines: lines[1:], "val has 15 images, and had 16"),
    ("val", reverse, "val has its images in another order"),
    ("open_val", lambda lines: ["open_test_4_0.png -1", *lines[1:]], "open_val has other images"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed, and one of stage 1 alone that is done, on lists of their own."""
    folder = tmp_path_factory.mktemp("killed")
    write_data(folder)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        train(make_config(config(folder)), folder / "run")
    train(make_config({**config(folder), "stage2": None}), folder / "one")
    return folder


@pytest.mark.parametrize(("part", "change", "message"), CHANGES)
def test_changed_lists_are_told(killed, tmp_path, part, change, message):
    values, file = config(killed), killed / f"{part}.txt"
    before = file.read_text()
    try:
        file.write_text("\n".join(change(before.splitlines())) + "\n")
        with pytest.raises(OtherRunError, match=f"run on other data: {message}; .*--fresh$"):
            train(make_config(values), killed / "run")
        told = rf"model.safetensors .* other data: {message}; .*--set stage2=null"
        with pytest.raises(ValueError, match=told):
            train(make_config(values), tmp_path / "two", stage1=killed / "one")
        with pytest.raises(OtherRunError, match=message):  # nor is it "trained already"
            train(make_config({**values, "stage2": None}), killed / "one")
        shutil.copytree(killed / "run", tmp_path / "again")
        assert train(make_config(values), tmp_path / "again", resume=False).exists()
    finally:
        file.write_text(before)


def test_test_lists_and_the_images_of_the_same_lists_may_change(killed, tmp_path):
    before = load_splits(make_config(config(killed)).data)
    shutil.copytree(killed, tmp_path / "there")
    lines = (tmp_path / "there" / "test.txt").read_text().splitlines()
    (tmp_path / "there" / "test.txt").write_text("\r\n".join(lines[1:]))
    after = load_splits(make_config(config(tmp_path / "there")).data)
    assert before.fingerprint == after.fingerprint


def test_shot_groups_are_of_what_a_model_was_trained_on(killed, tmp_path):
    trained = load_trained(killed / "one", device="cpu")
    before = assess(trained, name="x").summary["closed"]
    file = killed / "train.txt"
    lines = file.read_text()
    try:
        file.write_text("".join(f"train_{c}_{n}.png {c}\n" for c in range(4) for n in range(3)))
        assert load_splits(trained.config.data).train_counts.tolist() == [3] * 4
        after = assess(trained, name="x").summary["closed"]
    finally:
        file.write_text(lines)
    assert {k: before[k] for k in ("many", "medium", "few")} == {
        k: after[k] for k in ("many", "medium", "few")
    }


def test_a_run_from_before_fingerprints_goes_on_and_says_so(killed, tmp_path):
    run, said = tmp_path / "run", []
    shutil.copytree(killed / "run", run)
    for file in run.glob("*.safetensors"):
        tensors, header = checkpoint.load(file)
        del header["data"]
        checkpoint.save(file, tensors, header)
    path = train(make_config(config(killed)), run, say=said.append)
    assert said[0] == (
        f"{run} has no fingerprint of its data: only their numbers and names are compared"
    )
    assert checkpoint.load(path)[1]["data"]["train"]["rows"] == 30


def test_embeddings_written_anew_are_told(tmp_path):
    stage = {"epochs": 1, "batch_size": 8, "lr": {"feature": 0, "classifier": 0.1}}
    data = {"kind": "embeddings", "root": str(tmp_path / "own")}
    run_on = make_config({"data": data, "stage1": stage, "device": "cpu"})
    parts = arrays()
    write_embeddings(tmp_path / "own", parts)
    train(run_on, tmp_path / "run")
    for part, other in (
        ("train has other images", {"train": (parts["train"][0] + 1, parts["train"][1])}),
        ("val has other images", {"val": (parts["val"][0] * 2, parts["val"][1])}),
        ("val has other labels", {"val": (parts["val"][0], parts["val"][1][::-1])}),
        ("train has other images and l", {"train": tuple(x[::-1] for x in parts["train"])}),
    ):
        shutil.rmtree(tmp_path / "own")
        write_embeddings(tmp_path / "own", {**parts, **other})
        with pytest.raises(OtherRunError, match=f"run on other data: {part}"):
            train(run_on, tmp_path / "run")
    shutil.rmtree(tmp_path / "own")
    write_embeddings(tmp_path / "own", parts)  # the same again
    assert train(run_on, tmp_path / "run").exists()


def test_a_checksum_of_features_is_that_of_the_rows_however_they_were_written(tmp_path):
    parts, source = arrays(), {"made": "by hand"}
    write_embeddings(tmp_path / "a", parts, source=source)
    whole = read_embeddings(tmp_path / "a").splits["train"].checksum
    (tmp_path / "a" / "manifest.json").rename(tmp_path / "a" / ".manifest.json.partial")
    file = tmp_path / "a" / "train_features.npy"
    file.write_bytes(file.read_bytes()[:-100])
    write_embeddings(tmp_path / "a", parts, source=source)
    assert read_embeddings(tmp_path / "a").splits["train"].checksum == whole
    changed = parts["train"][0].copy()
    changed[-1, -1] = np.nextafter(changed[-1, -1], np.float32(9))
    write_embeddings(tmp_path / "b", {**parts, "train": (changed, parts["train"][1])})
    assert read_embeddings(tmp_path / "b").splits["train"].checksum != whole
    # a folder from before there were checksums is whole, and not known to differ
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    for part in manifest["splits"].values():
        del part["features_crc32"]
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    assert read_embeddings(tmp_path / "b").splits["train"].checksum is None
    held = {"rows": 4, "images": "1", "labels": "2", "any_order": None}
    assert what_changed({"train": held}, {"train": {**held, "images": None}}) is None


def test_embedding_does_not_go_on_over_other_lists(killed, tmp_path):
    """Labels alone would not tell: both orders have the same."""
    lists, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(killed, lists)
    moved = [f"data.train={lists}/train.txt", f"data.root={lists}"]
    embed(lists / "one", out, overrides=moved, device="cpu")
    lines = (lists / "train.txt").read_text().splitlines()
    (lists / "train.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    (out / "manifest.json").rename(out / ".manifest.json.partial")
    with pytest.raises(ValueError, match="out holds the unfinished writing of other embeddings"):
        embed(lists / "one", out, overrides=moved, device="cpu")
