"""Calibration is stored and used; predictions, metrics and report agree with one another."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import config, write_data

from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.config.schema import OpenSet
from oltr_ext.engine import checkpoint
from oltr_ext.engine.evaluate import Outputs, answers, calibrate, stream, validate
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.metrics import evaluate_answers, open_scores
from oltr_ext.nn import LinearHead, OLTRHead
from oltr_ext.serve.assess import assess, report
from oltr_ext.serve.predict import nearest_classes, predict_images
from oltr_ext.serve.tables import table
from oltr_ext.serve.trained import load_trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_data(folder)
    train(make_config(config(folder)), folder / "oltr")
    train(make_config({**config(folder), "stage2": None}), folder / "plain")
    return folder


@pytest.mark.parametrize("name", ["oltr", "plain"])
def test_threshold_is_calibrated_stored_and_used(run, name):
    trained = load_trained(run / name, device="cpu")
    stored = checkpoint.load(run / name / "model.safetensors")[1]["threshold"]
    assert trained.threshold == stored and stored["rule"] == "known_recall"
    assert trained.model.head.score == stored["score"]
    assert float(trained.model.head.threshold) == stored["value"]
    # the stated rule holds on the validation images it was calibrated on, and is tight
    splits = load_splits(trained.config.data)
    features = torch.cat([x for x, _ in stream(trained.model, splits.val, torch.device("cpu"))])
    label, confidence = trained.model.head.predict(features)
    assert (label >= 0).float().mean() >= 0.95
    above = confidence > stored["value"]
    assert above.float().mean() < 0.95
    # predict answers by that threshold
    paths = [run / p for p in splits.test.paths + splits.open_test.paths]
    answers = predict_images(trained, paths, batch_size=7)
    for answer in answers:
        assert (answer.label is None) == (answer.confidence < answer.threshold)
        assert answer.threshold == stored["value"] and answer.score == stored["score"]
        assert answer.label in (None, answer.closed)
        assert len(answer.nearest) == 3
        values = [v for _, v in answer.nearest]
        assert values == sorted(values, reverse=name == "plain")
    # and the metrics count what predict says
    result = assess(trained, name=name)
    point = result.summary["scores"][stored["score"]]["operating_points"]["calibrated"]
    known = len(splits.test)
    kept = np.mean([a.label is not None for a in answers[:known]])
    turned = np.mean([a.label is None for a in answers[known:]])
    assert point["known_accepted"] == pytest.approx(kept, abs=1.5 / known)
    assert point["open_rejected"] == pytest.approx(turned, abs=1.5 / 10)
    truth = [f"class {c}" for c in splits.test.labels]
    closed = np.mean([a.closed == t for a, t in zip(answers, truth, strict=False)])
    assert result.summary["closed"]["overall"] == pytest.approx(closed)


def test_what_overflowed_is_rejected_as_predict_does(run):
    result = assess(load_trained(run / "oltr", device="cpu"), name="oltr")
    scores = result.seen.scores[result.trained.threshold["score"]]
    scores[:2] = np.nan, np.inf
    assert result.rejected[:2].all() and not result.rejected.all()


def test_report_and_table(run, tmp_path):
    results = [assess(load_trained(run / n, device="cpu"), name=n) for n in ("plain", "oltr")]
    files = report(results, tmp_path / "deep" / "report.html", details={"seed": "0"})
    page = files.html.read_text()
    assert "oltr" in page and "<script src" not in page and "http://" not in page.split("<body")[0]
    assert json.loads(files.json.read_text())
    lines = table(results).splitlines()
    assert len(lines) == 3 and lines[1].startswith("plain") and lines[2].startswith("oltr")


def rows(known: int, strangers: int, dim: int = 8, classes: int = 3):
    """Features and labels of known classes and of none."""
    generator = torch.Generator().manual_seed(known)
    target = torch.cat([torch.arange(known) % classes, -torch.ones(strangers, dtype=torch.int64)])
    return torch.rand(known + strangers, dim, generator=generator), target


@pytest.mark.parametrize("rule", ["known_recall", "f_measure", "balanced"])
@pytest.mark.parametrize("score", ["max_softmax", "max_logit", "energy"])
def test_every_rule_and_score_ends_in_the_head(rule, score):
    head = LinearHead(8, 3)
    known, strangers = rows(40, 0), rows(0, 20)
    seen, opened = answers(head, *known), answers(head, *strangers)
    found = calibrate(head, seen, opened, OpenSet(rule=rule, score=score, value=0.9))
    assert found["score"] == head.score == score and found["rule"] == rule
    confidence = head.predict(known[0])[1].numpy()
    assert found["value"] in np.concatenate([confidence, head.predict(strangers[0])[1].numpy()])
    if rule == "known_recall":
        assert (confidence >= found["value"]).sum() == 36 and "90 %" in found["words"]


@pytest.mark.parametrize("head", [LinearHead(8, 3), OLTRHead(8, 3)])
def test_answers_are_those_of_the_head_and_of_its_logits(head):
    """What is kept of a batch, against the logits that are not."""
    features, target = rows(60, 9)
    if isinstance(head, OLTRHead):
        head.init_from(None, features[:60], target[:60])
    with torch.no_grad():
        out = head.outputs(features)
    parts = [answers(head, x, y) for x, y in zip(features.split(25), target.split(25), strict=True)]
    seen = Outputs.join(parts)
    assert np.array_equal(seen.pred, out.logits.argmax(1)) and np.array_equal(seen.target, target)
    scores = open_scores(out.logits, out.distance)
    assert seen.scores.keys() == scores.keys()
    for name, score in scores.items():
        np.testing.assert_allclose(seen.scores[name], score, rtol=1e-6)
        head.set_threshold(0.0, name)
        np.testing.assert_allclose(seen.scores[name], head.predict(features)[1], rtol=1e-6)
        assert seen.scores[name].dtype == np.float64


@pytest.mark.parametrize("score", ["max_softmax", "energy"])
def test_predict_and_metrics_agree_where_softmax_is_one_in_float32(score):
    head = LinearHead(8, 3)
    known, strangers = rows(40, 0), rows(0, 20)
    with torch.no_grad():
        head.linear.weight[0] += 6  # 1 - max softmax is about 1e-10
    seen, opened = answers(head, *known), answers(head, *strangers)
    calibrate(head, seen, opened, OpenSet(score=score, value=0.9))
    point = evaluate_answers(
        seen.pred, seen.scores, seen.target, [1, 1, 1], thresholds={score: float(head.threshold)}
    )["scores"][score]["operating_points"]["calibrated"]
    assert (head.predict(known[0])[0] >= 0).sum() == 36
    assert point["known_accepted"] == 0.9


def test_scores_of_distance_need_a_memory_and_rules_need_strangers():
    head = OLTRHead(8, 3)
    known = rows(30, 0)
    head.init_from(None, *known)
    seen = answers(head, *known)
    assert calibrate(head, seen, None, OpenSet(score="reachability"))["score"] == "reachability"
    # stage 1 of such a run has no memory yet
    linear = LinearHead(8, 3)
    seen = answers(linear, *known)
    found = calibrate(linear, seen, None, OpenSet(score="reachability"))
    assert found["score"] == "max_softmax"
    assert calibrate(linear, seen, None, OpenSet())["score"] == "max_softmax"
    with pytest.raises(ValueError, match=r"open_set\.rule: balanced needs open validation images"):
        calibrate(linear, seen, None, OpenSet(rule="balanced"))


def test_validation_of_open_images_alone_is_an_error():
    with pytest.raises(ValueError, match="val: none of the images of known classes can be read"):
        validate(answers(LinearHead(8, 3), *rows(0, 5)), None, np.ones(3, np.int64), "oltr")


def test_auto_takes_the_score_that_tells_validation_strangers_best():
    head = OLTRHead(8, 3)
    known, (far, none) = rows(30, 0), rows(0, 20)
    head.init_from(None, *known)
    seen, opened = answers(head, *known), answers(head, far + 5, none)
    for name in ("max_softmax", "max_logit", "energy"):  # whatever the logits say
        opened.scores[name][:] = seen.scores[name].max()
    assert calibrate(head, seen, opened, OpenSet())["score"] in ("nearest_distance", "reachability")


def test_the_nearest_class_is_told_from_one_as_near(run):
    """Far from the origin, where the products of a quick distance cancel."""
    head = load_trained(run / "oltr", device="cpu").model.head
    centroids = head.memory.centroids
    steps = torch.tensor([0.03, 0.01, 0.02, 0.04])
    with torch.no_grad():
        centroids.fill_(100.0)[:, 0] += steps
    order, value = nearest_classes(head, torch.full((32, 256), 100.0), torch.zeros(32, 4), 3)
    assert order == [[1, 2, 0]] * 32
    np.testing.assert_allclose(value, [[0.01, 0.02, 0.03]] * 32, rtol=1e-3)


def test_an_image_too_large_to_be_decoded_is_named(run, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot read image .*test_0_0.png: .* bomb"):
        predict_images(load_trained(run / "oltr", device="cpu"), [run / "test_0_0.png"])


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_of_somebody_else_is_not_written_over(run, tmp_path, name, monkeypatch, capsys):
    asked = ["eval", str(run / "plain"), "--device", "cpu", "--out", str(tmp_path)]
    (tmp_path / name).write_text('{"methods": "mine"}')
    with monkeypatch.context() as patch:
        patch.setattr("oltr_ext.serve.assess.compare", lambda *_, **__: 1 / 0)  # told beforehand
        assert main(asked) == 1
    assert f"{name} is there, and is no report of ours" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == '{"methods": "mine"}'
    (tmp_path / name).unlink()
    assert main(asked) == main(asked) == 0
    (tmp_path / "report.json").unlink()  # the page says itself whose it is
    assert main(asked) == 0


def test_errors_name_the_file(run, tmp_path):
    trained = load_trained(run / "oltr", device="cpu")
    with pytest.raises(FileNotFoundError, match=r"no image .*none.png"):
        predict_images(trained, [tmp_path / "none.png"])
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"cannot read image .*text.png"):
        predict_images(trained, [tmp_path / "text.png"])
    with pytest.raises(checkpoint.CheckpointError, match="is no finished run"):
        load_trained(tmp_path)
    tensors, header = checkpoint.load(run / "oltr" / "model.safetensors")
    checkpoint.save(tmp_path / "mid.safetensors", tensors, {**header, "threshold": None})
    with pytest.raises(checkpoint.CheckpointError, match="has no threshold for unknown"):
        load_trained(tmp_path / "mid.safetensors")
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        load_trained(run / "oltr", device="gpu")
    splits = load_splits(trained.config.data)
    splits.class_names = ["a", "b"]
    with pytest.raises(ValueError, match="knows 4 classes, which are not the 2 classes"):
        assess(trained, name="x", splits=splits)
