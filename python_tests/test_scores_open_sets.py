"""Several open sets: each judged by itself, groups averaged, from lists and from embeddings."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from tiny import arrays, config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.data import read_embeddings, write_embeddings
from oltr_ext.engine.pack_lists import pack_lists
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.engine.verify import check_data
from oltr_ext.metrics import judge_open_sets, open_set_metrics, oscr
from oltr_ext.serve.assess import assess, report
from oltr_ext.serve.embed import embed
from oltr_ext.serve.tables import open_set_table
from oltr_ext.serve.trained import load_trained

NAMES = ["letters", "near/a", "near/b"]


def drawn():
    rng = np.random.default_rng(0)
    sets = np.array([""] * 31 + ["near/b"] * 5 + ["letters"] * 4 + ["near/a"] * 9)
    target = np.where(sets == "", rng.integers(0, 3, len(sets)), -1)
    target[3] = -1  # an open image of no set
    score = rng.normal(size=len(sets)) + 2 * (target >= 0) + (sets == "near/b")
    return rng.integers(0, 3, len(sets)), {"energy": score, "gen": -score}, target, sets


def test_each_set_is_judged_against_all_known_and_a_group_is_the_mean_of_its_sets():
    pred, scores, target, sets = drawn()
    found = judge_open_sets(pred, scores, target, sets, thresholds={"energy": 1.0})
    assert [each["name"] for each in found] == ["near/b", "letters", "near/a", "near"]
    assert [each["images"] for each in found] == [5, 4, 9, 14]
    assert [each["sets"] for each in found] == [[], [], [], ["near/b", "near/a"]]
    for each in found[:3]:
        rows = (target >= 0) | (sets == each["name"])
        for name, score in scores.items():
            want = open_set_metrics(score[rows], target[rows])
            want["oscr"] = oscr(score[rows], pred[rows], target[rows]).area
            if name == "energy":
                want["open_rejected"] = (score[sets == each["name"]] < 1).mean()
            assert each["scores"][name] == pytest.approx(want)
    b, _, a, near = (each["scores"]["energy"] for each in found)
    assert near == pytest.approx({key: (a[key] + b[key]) / 2 for key in a}) and a != b
    with pytest.raises(ValueError, match="'near' is a set, and the group of others"):
        judge_open_sets(pred, scores, target, np.where(sets == "letters", "near", sets))
    with pytest.raises(ValueError, match="that of a known one empty"):
        judge_open_sets(pred, scores, target, np.full(len(sets), "near"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The ten open test images as three sets."""
    folder = tmp_path_factory.mktemp("sets")
    write_data(folder)
    lines = (folder / "open_test.txt").read_text().splitlines()
    for name, rows in {"x": lines[:5], "y": lines[5:7], "z": lines[7:]}.items():
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    values = {**config(folder), "stage2": None}
    one = make_config(values)
    several = {"letters": f"{folder}/x.txt", "near": {"a": f"{folder}/y.txt", "b": "z.txt"}}
    several["near"]["b"] = f"{folder}/z.txt"
    values = {**values, "data": {**values["data"], "open_test": several}}
    for name, configuration in {"one": one, "several": make_config(values)}.items():
        train(configuration, folder / name)
    return folder


def test_lists_by_name_are_the_images_of_one_list_and_judged_apart(run, tmp_path, capsys):
    one, several = (assess(load_trained(run / n, device="cpu"), name=n) for n in ("one", "several"))
    assert "open_sets" not in one.summary
    sets = several.summary.pop("open_sets")
    assert one.summary["closed"] == several.summary["closed"]
    assert np.array_equal(one.seen.target, several.seen.target)
    for name, score in one.seen.scores.items():  # in other batches: the same but for rounding
        np.testing.assert_allclose(several.seen.scores[name], score, rtol=1e-4, atol=1e-5)
    assert [(each["name"], each["images"]) for each in sets] == [
        ("letters", 5), ("near/a", 2), ("near/b", 3), ("near", 5)
    ]  # fmt: skip
    names = np.repeat(["", "letters", "near/a", "near/b"], [24, 5, 2, 3])
    seen, threshold = several.seen, several.trained.threshold
    limit = {threshold["score"]: threshold["value"]}
    want = judge_open_sets(seen.pred, seen.scores, seen.target, names, thresholds=limit)
    assert sets == want
    assert [several.splits.image_id(24 + i) for i in range(10)] == [
        one.splits.image_id(24 + i) for i in range(10)
    ]
    with pytest.raises(IndexError, match="no test image"):
        several.splits.locate(34)
    assert open_set_table([one]) == ""
    assert main(["eval", str(run / "several"), "--device", "cpu", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    text = text.partition("\nprediction sets")[0]
    rows = [re.split(r"  +", line) for line in text.splitlines() if line.startswith("several")]
    chosen = [each["scores"][threshold["score"]] for each in sets]
    assert [row[1] for row in rows[1:]] == ["letters", "near/a", "near/b", "mean of near"]
    assert [row[3] for row in rows[1:]] == [f"{100 * each['auroc']:.1f}" for each in chosen]
    assert [row[7] for row in rows[1:]] == [f"{100 * e['open_rejected']:.1f}" for e in chosen]
    page, data = (tmp_path / f"report.{kind}" for kind in ("html", "json"))
    assert page.read_text().count("near/a") == 1 and "mean of 2" in page.read_text()
    assert json.loads(data.read_text())["methods"][0]["summary"]["open_sets"] == sets
    report([one], tmp_path / "one.html")
    assert "Open sets" not in (tmp_path / "one.html").read_text()


def test_an_unreadable_image_leaves_its_set(run, tmp_path):
    trained = load_trained(run / "several", device="cpu")
    data = trained.config.data.model_copy(update={"max_bad_images": 1})
    splits = load_splits(data)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"none")
    for name, images in splits.open_tests.items():
        images.names = [f"{name} {n}" for n in range(len(images))]
    splits.open_tests["near/a"].paths[0] = str(bad)
    found = assess(trained, name="it", splits=splits)
    sets = found.summary["open_sets"]
    assert [each["images"] for each in sets] == [5, 1, 3, 4]
    names = [found.true_name(n) for n in np.flatnonzero(found.seen.target < 0)]
    assert names == splits.open_names and names[4:7] == ["letters 4", "near/a 1", "near/b 0"]


def test_data_check_reads_each_list_and_a_pack_takes_one(run, tmp_path):
    settings = load_trained(run / "several", device="cpu").config
    found = {part.part: part.images for part in check_data(settings.data).parts}
    assert [found[f"open_test/{name}"] for name in NAMES] == [5, 2, 3] and "open_test" not in found
    with pytest.raises(ValueError, match=r"data\.open_test: a pack has one open test set"):
        pack_lists(settings, tmp_path / "it.npz")


@pytest.mark.parametrize("sets", [{}, {"near": {}}, {"a/b": "x.txt"}, {" ": "x.txt"}])
def test_a_set_has_a_name_and_a_list(run, sets):
    values = config(run)
    with pytest.raises(ValueError, match="open_test"):
        make_config({**values, "data": {**values["data"], "open_test": sets}})


def test_embeddings_keep_the_sets(run, tmp_path, monkeypatch):
    folder = embed(run / "several", tmp_path / "whole", device="cpu").parent
    found = read_embeddings(folder)
    assert found.open_sets == ["letters"] * 5 + ["near/a"] * 2 + ["near/b"] * 3
    one = embed(run / "one", tmp_path / "one", device="cpu").parent
    assert "open_sets" not in (one / "manifest.json").read_text()  # earlier versions read it
    same = [(f / "open_test_features.npy").read_bytes() for f in (folder, one)]
    assert same[0] == same[1]
    values = {"data": {"kind": "embeddings", "root": str(folder), "shots": [8, 4]},
              "stage1": config(run)["stage1"], "device": "cpu", "threads": 1}  # fmt: skip
    path = train(make_config(values), tmp_path / "run")
    sets = assess(load_trained(path, device="cpu"), name="it").summary["open_sets"]
    assert [each["name"] for each in sets] == [*NAMES, "near"]


def test_an_interrupted_embedding_goes_on_within_any_set(run, tmp_path):
    from oltr_ext.engine.features import _features

    trained = load_trained(run / "several", device="cpu")
    splits = load_splits(trained.config.data)
    made = _features(trained.model, trained.device, "open_test", splits.opened, splits)
    whole = np.concatenate([np.asarray(part) for part in made.start(0)])
    assert whole.shape == made.shape == (10, trained.model.feature_dim)
    for row in random.Random(0).sample(range(1, 10), 4):
        rest = np.concatenate([np.asarray(part) for part in made.start(row)])
        np.testing.assert_array_equal(rest, whole[row:])


def test_written_embeddings_name_a_set_for_each_row(tmp_path):
    with pytest.raises(ValueError, match="expected 10 open_sets, got 1"):
        write_embeddings(tmp_path / "it", arrays(), open_sets=["a"])
    write_embeddings(tmp_path / "it", arrays(), open_sets=["a"] * 10)
    data = {"kind": "embeddings", "root": str(tmp_path / "it")}
    splits = load_splits(make_config({"data": data, "stage1": config(tmp_path)["stage1"]}).data)
    assert splits.sets_of_open() == ["a"] * 10 and len(splits.opened) == 1
