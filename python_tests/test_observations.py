"""Several images of one observation, answered and judged as one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oltr_ext.cli import main
from oltr_ext.cli.classes import _of_table
from oltr_ext.engine import observed
from oltr_ext.engine.evaluate import answers, collect
from oltr_ext.engine.splits import load_splits
from oltr_ext.metrics import calibrate_threshold, read_costs
from oltr_ext.serve.assess import assess
from oltr_ext.serve.discover_files import read_given
from oltr_ext.serve.observations import (
    _under,
    judge_observations,
    observations_of,
    predict_observations,
    read_observations,
)
from oltr_ext.serve.predict import Prediction, predict_features, predict_images
from oltr_ext.serve.trained import load_trained


@pytest.fixture(scope="module")
def trained(finished):
    return load_trained(finished / "model.safetensors", device="cpu")


def features(trained, paths):
    from oltr_ext.serve.predict import image_features

    return torch.cat([x for _, x in image_features(trained, paths)])


def test_the_mean_of_embeddings_by_hand(trained, data):
    paths = [str(data / f"test_{c}_{n}.png") for c in (0, 1) for n in range(3)]
    seen = ["a", "b", "a", "b", None, "a"]
    found = predict_observations(trained, paths, seen)
    assert [each.path for each in found] == ["a", "b", paths[4]]
    x = features(trained, paths)
    means = torch.stack([x[[0, 2, 5]].double().mean(0), x[[1, 3]].double().mean(0), x[4].double()])
    for own, want in zip(found, predict_features(trained, means.float().numpy()), strict=True):
        assert (own.label, own.closed) == (want.label, want.closed)
        assert own.confidence == pytest.approx(want.confidence, rel=1e-5)
        assert own.nearest[0][0] == want.nearest[0][0]
    alone = predict_observations(trained, paths, [None] * 6)
    single = predict_images(trained, paths)
    assert [(a.path, a.label) for a in alone] == [(s.path, s.label) for s in single]


def test_an_input_of_many_rows_and_one_given_twice(trained, data, tmp_path, monkeypatch):
    paths = [str(data / f"test_{c}_0.png") for c in (0, 1)]
    rows = features(trained, paths)
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", rows.numpy())
    (found,) = predict_observations(trained, ["rows.npy"], ["both"])
    mean = rows.double().mean(0, keepdim=True).float()
    assert found.path == "both"
    assert found.confidence == pytest.approx(predict_features(trained, mean.numpy())[0].confidence)
    twice = predict_observations(trained, ["rows.npy[0]"] * 2, ["x", "y"])
    assert [each.path for each in twice] == ["x", "y"]
    assert len(predict_observations(trained, [paths[0]] * 2, [None, None])) == 2
    mixed = predict_observations(trained, [paths[0], "rows.npy", paths[1]], ["a", "b", "a"])
    assert [each.path for each in mixed] == ["a", "b"]
    assert mixed[0].confidence == pytest.approx(found.confidence)
    assert observations_of(["rows.npy[0]", "b/1.png"], "folders") == [".", "b"]


@torch.no_grad()
def test_the_mean_of_scores_by_hand(trained, data):
    paths = [str(data / f"test_{c}_0.png") for c in (0, 1, 2)]
    (found, other) = predict_observations(trained, paths, ["a", "a", "b"], by="scores")
    head, x = trained.model.head, features(trained, paths)
    out = head.outputs(x)
    prob = out.logits.softmax(dim=1)[:2].mean(0)
    score = head.scores(out)[trained.threshold["score"]]
    assert found.closed == trained.names[int(prob.argmax())]
    assert found.confidence == pytest.approx(float(score[:2].mean()))
    assert found.nearest[0][1] == pytest.approx(float(prob.max()))
    assert other.confidence == pytest.approx(float(score[2]))
    assert found.label == (found.closed if found.confidence >= found.threshold else None)


@pytest.mark.parametrize("by", ["embeddings", "scores"])
def test_judged_as_one(trained, by):
    result = assess(trained, name="it")
    splits = result.splits
    ids = [splits.image_id(n) for n in range(len(splits.test) + len(splits.open_test))]
    alone = judge_observations(result, {}, by=by)
    for key in ("overall", "macro_f1", "balanced"):
        assert alone["closed"][key] == pytest.approx(result.summary["closed"][key])
    # two images each; test_2_4.png and open_test_4_1.png
    together = {p: f"{p.rsplit('_', 1)[0]} {int(p[:-4].rsplit('_', 1)[1]) // 2}" for p in ids}
    found = judge_observations(result, together, by=by)
    assert found["images"] == len(ids) == 34 and found["observations"] == 17
    assert found["samples"] == {"known": 12, "open": 5}
    if by == "embeddings":
        x = features(trained, [str(splits.test.root / p) for p in ids]).double()
        means = ((x[0::2] + x[1::2]) / 2).float()
        target = torch.from_numpy(np.r_[np.repeat(range(4), 3), [-1] * 5])
        want = answers(trained.model.head, means, target)
        right = (want.pred == want.target)[:12].mean()
        assert found["closed"]["overall"] == pytest.approx(right)
    with pytest.raises(ValueError, match="observation x has images of several classes"):
        judge_observations(result, dict.fromkeys(ids, "x"), by=by)
    with pytest.raises(ValueError, match="by: expected embeddings or scores, got 'mean'"):
        judge_observations(result, {}, by="mean")


def test_commands(trained, data, tmp_path, capsys):
    run = str(trained.path.parent)
    rows = [(f"test_{c}_{n}.png", f"o{c} {n // 3}") for c in range(4) for n in range(6)]
    with (data / "seen.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "observation"), *rows])
    told = ("--observations", str(data / "seen.csv"))
    paths = [str(data / path) for path, _ in rows[:6]]
    assert main(["predict", run, *paths, *told]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["o0 0", "o0 1"]
    (tmp_path / "bad.png").write_text("no image")
    words = (*paths, str(tmp_path / "bad.png"), "--observations", "folders", "--by", "scores")
    assert main(["predict", run, *words]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(f"{data}: ") and len(said.out.splitlines()) == 1
    assert "bad.png" in said.err and "by probability" in said.out
    assert main(["eval", run, *told, "--out", str(tmp_path / "judged")]) == 0
    said = capsys.readouterr().out
    head = ["observations", "number", "all", "balanced", "macro", "F1"]
    assert any(line.split()[1:6] == head[:5] for line in said.splitlines())
    assert "mean of embeddings" in said
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    assert "macro_f1" in json.dumps(report) and "tnr95" in json.dumps(report)
    (tmp_path / "no.csv").write_text("file,obs\n")
    assert main(["predict", run, *paths, "--observations", str(tmp_path / "no.csv")]) == 1
    assert "expected columns path and observation, got file, obs" in capsys.readouterr().err
    assert main(["predict", run, *paths, *told, "--set", "0.1"]) == 1


def test_paths_of_a_file_of_observations(tmp_path):
    (tmp_path / "a.csv").write_text("path,observation,x\nb/c.png,o1,\nd.png,,\n", "utf-8-sig")
    asked = [str(tmp_path / "b" / "c.png"), "b/c.png", "d.png", "e.png"]
    assert observations_of(asked, tmp_path / "a.csv") == ["o1", "o1", None, None]
    assert observations_of(asked, "folders")[0] == str(Path(tmp_path / "b"))
    assert observations_of(
        [str(tmp_path / "c" / "b" / "c.png")], tmp_path / "a.csv", tmp_path / "c"
    ) == ["o1"]
    with pytest.raises(ValueError, match=r"a.csv: expected observations .* such as 'b/c.png'"):
        observations_of(["d.png", "c.png"], tmp_path / "a.csv")


def test_a_row_without_a_path_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("observation,path\no1,a.png\no2\n")
    with pytest.raises(ValueError, match=r"a.csv:3: expected 2 cells, as the first line has"):
        read_observations(tmp_path / "a.csv")


def test_observations_of_other_images_are_told(trained, data, tmp_path, capsys):
    run, file = str(trained.path.parent), tmp_path / "images.csv"
    file.write_text("path,observation\ntest_0_0.png,a\ntest_0_1.png,a\n")
    paths = [str(data / f"test_0_{n}.png") for n in range(2)]
    assert main(["predict", run, *paths, "--observations", str(file)]) == 0  # from data.root on
    assert capsys.readouterr().out.startswith("a: ")
    file.write_text("path,observation\n0.png,a\n")
    for words in (["predict", run, *paths], ["eval", run, "--json"]):
        assert main([*words, "--observations", str(file)]) == 1
        assert "got paths of none of them, such as '0.png'" in capsys.readouterr().err


def test_observations_are_drawn_of_one_class_and_share_no_image():
    target = np.repeat([2, 0, 5], [9, 3, 31])
    rows = observed._drawn(target, 2)
    apart = 4 + 1 + 15
    assert len(rows) == apart * observed.ROUNDS and (target[rows][:, 0] == target[rows][:, 1]).all()
    assert np.array_equal(rows, observed._drawn(target, 2))
    assert len({frozenset(row) for row in rows.tolist()}) > apart  # another deal in each round
    many = np.repeat(np.arange(50), 200)
    assert len(observed._drawn(many, 5)) == observed.MOST
    assert len(np.unique(observed._drawn(many, 5))) == 5 * observed.MOST
    assert observed._drawn(target, 3).shape == (0, 3)  # 3 + 1 + 10 are too few


@torch.no_grad()
def test_each_size_keeps_the_share_that_is_asked(trained, monkeypatch):
    assert trained.threshold["observations"] == {"embeddings": [], "scores": []}  # 16 images
    monkeypatch.setattr(observed, "LEAST", 4)
    splits, model = load_splits(trained.config.data), trained.model
    seen = collect(model, splits.val, trained.device)
    single, name = trained.threshold, trained.threshold["score"]
    found = observed.observation_thresholds(model, splits, seen, trained.device, single, 0.75)
    x = features(trained, [str(splits.val.root / p) for p in splits.val.paths]).double()
    for by in observed.BY:
        assert [size for size, _ in found[by]] == [2, 3, 4]
        for size, value in found[by]:
            rows = observed._drawn(splits.val.labels, size)
            assert (splits.val.labels[rows] == splits.val.labels[rows][:, :1]).all()
            of = seen.scores[name][rows].mean(1)
            if by == "embeddings":
                means, target = x[rows].mean(1).float(), torch.zeros(len(rows)).long()
                of = answers(model.head, means, target).scores[name]
            assert value == pytest.approx(calibrate_threshold(of, value=0.75))
            assert 0.75 <= (of >= value - 1e-9).mean() < 0.75 + 0.15
    as_of_images = observed.observation_thresholds(model, splits, seen, trained.device, single)
    kept = (seen.scores[name] >= single["value"]).mean()
    rows = observed._drawn(splits.val.labels, 2)
    want = calibrate_threshold(seen.scores[name][rows].mean(1), value=kept)
    assert as_of_images["scores"][0][1] == want


def test_the_threshold_of_a_size_is_used(trained, data, monkeypatch):
    of = {"embeddings": [[2, 1e9], [4, -1e9]], "scores": [[3, 1e9]]}
    single = trained.threshold["value"]
    for by, want in (("embeddings", [single, 1e9, 1e9, -1e9, -1e9]),
                     ("scores", [single, single, 1e9, 1e9, 1e9])):  # fmt: skip
        known = {"value": single, "observations": of}
        assert observed.thresholds_of_sizes(known, by, range(1, 6)).tolist() == want
    assert observed.thresholds_of_sizes({"value": 2.0}, "scores", [1, 7]).tolist() == [2, 2]
    monkeypatch.setattr(trained, "threshold", {**trained.threshold, "observations": of})
    paths = [str(data / f"test_0_{n}.png") for n in range(6)]
    seen = ["a", "a", "b", "b", "b", None]
    for by, levels in (("embeddings", [1e9, 1e9, single]), ("scores", [single, 1e9, single])):
        found = predict_observations(trained, paths, seen, by=by)
        assert [each.threshold for each in found] == levels
        assert found[1].label is None and found[1].confidence < 1e9
    result = assess(trained, name="it")
    ids = [result.splits.image_id(n) for n in range(24)]
    judged = judge_observations(result, {path: path.rsplit("_", 1)[0] for path in ids})
    point = judged["scores"][trained.threshold["score"]]["operating_points"]["calibrated"]
    assert point["known_accepted"] == 1 and point["threshold"] is None  # six images each


def test_by_another_threshold_too_what_overflowed_is_unknown():
    confidences = (0.3, 0.1, np.inf, np.nan)
    seen = [Prediction("a", None, c, "energy", 0.5, "cat", []) for c in confidences]
    assert [_under(each, 0.2).label for each in seen] == ["cat", None, None, None]


@pytest.mark.parametrize("mark", ",;\t|")
def test_tables_with_any_mark(tmp_path, mark):
    def written(name, *lines):
        file = tmp_path / name
        file.write_text("".join(f"{mark.join(line)}\n" for line in lines), "utf-8-sig")
        return file

    seen = written("seen", ("path", "observation"), ("a,b;c d.png", "o"))
    want = {"a,b;c d.png": "o"} if mark in "\t|" else None
    plain = written("plain", ("path", "observation"), ("a.png", "o"))
    assert read_observations(plain) == {"a.png": "o"}
    assert want is None or read_observations(seen) == want
    named = written("groups.csv", ("group", "path", "name"), ("1", "a.png", "crab"))
    assert _of_table(named) == [("a.png", "crab")]
    assert read_given(tmp_path).rows == {"a.png": {"name": "crab"}}
    lines = (("", "a", "unknown"), ("a", "0", "1"), ("unknown", "2", "0"))
    assert read_costs(written("costs", *lines), ["a"]).tolist() == [[0, 1], [2, 0]]
