"""Several images of one observation, answered and judged as one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from oltr_ext.cli import main
from oltr_ext.engine.evaluate import answers
from oltr_ext.serve.assess import assess
from oltr_ext.serve.observations import judge_observations, observations_of, predict_observations
from oltr_ext.serve.predict import predict_features, predict_images
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
