"""Prediction sets of trained runs: kept, asked for, judged; and of runs from before them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint
from oltr_ext.engine.sets import _prevalence, thresholds_of
from oltr_ext.engine.train import train
from oltr_ext.metrics import set_coverage
from oltr_ext.nn.sets import SET_METHODS
from oltr_ext.serve.assess import assess
from oltr_ext.serve.model import Model
from oltr_ext.serve.sets import SetAnswer
from oltr_ext.serve.trained import load_trained

TRAIN = (40, 20, 6, 2)
STAGE = {"epochs": 2, "batch_size": 8, "lr": {"feature": 0.1, "classifier": 0.1, "centroid": 0.1}}
MEMORY = {**STAGE, "class_prior": 1.0, "sampler": "shuffle", "attention": False}


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(5, 6))

    def part(counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        rows = centres[labels] + 1.5 * rng.normal(size=(len(labels), 6))
        return np.abs(rows).astype(np.float32), labels

    known = {"train": part(TRAIN), "val": part((12, 12, 12, 3)), "test": part((15,) * 4)}
    strangers = {p: (part((0, 0, 0, 0, 12))[0], None) for p in ("open_val", "open_test")}
    return known | strangers


@pytest.fixture(scope="module")
def data(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "data"
    write_embeddings(folder, parts)
    return folder


def settings(data, **more):
    values = {"data": {"kind": "embeddings", "root": str(data), "shots": [20, 4]}, "stage1": STAGE}
    return make_config({"device": "cpu", "threads": 1, **values, **more})


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    train(settings(data), out / "plain")
    train(settings(data, stage2=MEMORY), out / "memory", stage1=out / "plain")
    return out


@pytest.mark.parametrize("name", ["plain", "memory"])
@pytest.mark.parametrize("method", SET_METHODS)
def test_a_set_holds_what_the_model_s_probabilities_say(runs, parts, name, method):
    """Against all probabilities, in float64, under the threshold that the kept scores give."""
    model = oltr_ext.load(runs / name)
    rows, target = parts["test"]
    found = model.predict_set(rows, alpha=0.2, method=method)
    trained = model.trained
    held = trained.calibration
    assert len(held.log_prob) == 39 and held.log_prob.nbytes + held.target.nbytes == 8 * 39
    lowest = thresholds_of(
        method, 0.2, held, trained.model.head, trained.config, trained.train_counts
    )
    with torch.no_grad():
        features = trained.model.features(torch.from_numpy(rows)[:, :, None, None])
        logits = trained.model.head(features)
        val, labels = (torch.from_numpy(part) for part in parts["val"])
        seen = trained.model.head(trained.model.features(val[:, :, None, None]))
    true = seen.double().log_softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(held.log_prob, true.float())
    inside = logits.double().log_softmax(1).float() >= lowest
    assert found.size.tolist() == inside.sum(1).tolist()
    assert found.covers(target).tolist() == inside[torch.arange(60), target].tolist()
    assert found.always.tolist() == (lowest == -torch.inf).tolist()
    assert found.always.any() == (method == "class")  # three images are under four
    known = model.predict(rows).known
    assert found.unknown.tolist() == (~known).tolist()
    one = model.predict_set(rows[7], alpha=0.2, method=method)
    assert one.labels.tolist() == found[7].labels.tolist()


@pytest.mark.parametrize("name", ["plain", "memory"])
@pytest.mark.parametrize("method", SET_METHODS)
def test_classes_that_join_and_go(runs, parts, name, method):
    """A new one goes by the classes of as few images, one that went is in no set, and the numbers
    of the others stay; the bytes that sets go by do, too."""
    model = oltr_ext.load(runs / name)
    (rows, target), strangers = parts["test"], parts["open_test"][0]
    before = model.predict_set(rows, alpha=0.2, method=method)
    model.enroll(strangers[:6], "newt")
    found = model.predict_set(np.concatenate([rows, strangers[6:]]), alpha=0.2, method=method)
    assert found.classes.tolist() == [*before.classes, "newt"]
    assert any("newt" in each.labels.tolist() for each in found)
    assert found.always.tolist() == [*before.always, method == "class"]
    covers = model.predict_set(rows, alpha=0.2, method=method).covers(target)
    assert abs(covers.mean() - before.covers(target).mean()) < 0.06  # a memory recalls the new one
    first = before.classes[0]
    model.remove([first])
    gone = model.predict_set(rows, alpha=0.2, method=method)
    assert not any(first in each.labels.tolist() for each in gone)
    held = model.trained.calibration.without([0])
    assert 0 < len(held.target) == SetAnswer(model.trained, 0.2, method).calibrated_by < 39
    if method in ("marginal", "shots"):  # which its images set no threshold of
        model.trained.calibration = held
        alone = model.predict_set(rows, alpha=0.2, method=method)
        assert alone.indices.tolist() == gone.indices.tolist()
    model.undo()
    model.remove(["newt"])
    again = model.predict_set(rows, alpha=0.2, method=method)
    assert again.indices.tolist() == before.indices.tolist()


def test_prevalence_is_what_the_probabilities_are_under(runs, data):
    frequency = torch.tensor(TRAIN).double() / sum(TRAIN)
    for name, expected in (("plain", frequency), ("memory", torch.full((4,), 0.25))):
        trained = load_trained(runs / name, device="cpu")
        config = trained.config
        found = _prevalence(trained.model.head, config, trained.train_counts)
        torch.testing.assert_close(found, expected.double())
        if name == "memory":  # as expected in training, and between
            trained.model.head.prior_share.fill_(0.5)
            found = _prevalence(trained.model.head, config, trained.train_counts)
            torch.testing.assert_close(found, frequency**0.5 / (frequency**0.5).sum())
    plain = load_trained(runs / "plain", device="cpu")
    even = settings(data, stage1={**STAGE, "sampler": "balanced"})
    found = _prevalence(plain.model.head, even, plain.train_counts)
    assert found.tolist() == [0.25] * 4
    for kind, power in (("ncm", 0), ("tau_norm", 0), ("openmax", 1)):
        fitted = settings(data, stage2={"kind": kind})
        found = _prevalence(plain.model.head, fitted, plain.train_counts)
        torch.testing.assert_close(found, frequency**power / (frequency**power).sum())


def test_judged_on_test_images(runs, parts):
    trained = load_trained(runs / "memory", device="cpu")
    result = assess(trained, name="memory")
    sets = result.summary["sets"]
    assert sets["alpha"] == 0.1 and sets["calibration"] == 39
    rows, target = parts["test"]
    for method, told in sets["methods"].items():
        found = oltr_ext.load(runs / "memory").predict_set(rows, 0.1, method=method)
        expected = set_coverage(found.covers(target), found.size, target, TRAIN, (20, 4))
        assert told == {**expected, "always": int(found.always.sum())}
    assert list(sets["methods"]) == list(SET_METHODS)
    again = assess(load_trained(runs / "memory", device="cpu"), name="x", test_prior=1.0)
    assert again.summary["sets"] != sets  # calibrated under the same expectation


def test_the_commands(runs, parts, capsys, tmp_path):
    np.save(tmp_path / "rows.npy", parts["test"][0][:3])
    asked = ["predict", str(runs / "memory"), str(tmp_path / "rows.npy"), "--set", "0.2"]
    assert main([*asked, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = oltr_ext.load(runs / "memory").predict_set(parts["test"][0][:3], 0.2)
    for line, each in zip(lines, found, strict=True):
        assert [name for name, _ in line["set"]] == each.labels.tolist()
        assert line["unknown"] == each.unknown and line["method"] == "shots"
    assert main([*asked, "--set-method", "class"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"{tmp_path / 'rows.npy'}[0]: ") and ", " in first
    with pytest.raises(SystemExit):
        main([*asked[:-1], "1"])
    assert "in (0, 1), got 1" in capsys.readouterr().err
    assert main(["eval", str(runs / "memory"), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "prediction sets that miss at most 10 %" in out and "memory  interp" in out
    page = (tmp_path / "report.html").read_text()
    assert 'data-json="/methods/0/summary/sets/methods/shots/few"' in page


def test_a_run_from_before(runs, data, tmp_path):
    """Its scores are made of its data; where those are not, the error says what to do; and the run
    is settled anew when it is trained again."""
    old = tmp_path / "old"
    shutil.copytree(runs / "memory", old)
    tensors, header = checkpoint.load(old / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if not k.startswith("sets.")}
    assert len(tensors) - len(kept) == 2
    del header["settled"]
    checkpoint.save(old / "model.safetensors", kept, header)
    rows = np.load(data / "test_features.npy")
    expected = oltr_ext.load(runs / "memory").predict_set(rows)
    assert oltr_ext.load(old).predict_set(rows).size.tolist() == expected.size.tolist()
    fewer = oltr_ext.load(old)
    fewer.remove(fewer.class_names[0])
    assert fewer.predict_set(rows, method="marginal").size.mean() < 3  # not all of them
    fewer.undo()
    assert fewer.predict_set(rows).size.tolist() == expected.size.tolist()
    moved = Model(load_trained(old, overrides=[f"data.root={tmp_path / 'nowhere'}"]))
    with pytest.raises(ValueError, match=r"no calibration scores.*oltr train .*--out .*old"):
        moved.predict_set(rows)
    train(settings(data, stage2=MEMORY), old, stage1=runs / "plain")
    again, _ = checkpoint.load(old / "model.safetensors")
    assert all(torch.equal(again[k], v) for k, v in tensors.items()) and len(again) == len(tensors)


def test_images_of_any_kind(runs):
    model = oltr_ext.load(runs / "plain")
    rows = np.zeros((0, 6), np.float32)
    assert len(model.predict_set(rows)) == 0
    with pytest.raises(ValueError, match="expected one of marginal"):
        model.predict_set(rows, method="raps")
    with pytest.raises(ValueError, match=r"alpha in \(0, 1\), got 1"):
        model.predict_set(rows, alpha=1)
    with pytest.raises(TypeError, match="expected an image or features"):
        model.predict_set(3)
