"""What a trained model expects of test images: no tail unasked, and every choice in numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config, make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint, handover
from oltr_ext.engine import train as trainer
from oltr_ext.engine.evaluate import Outputs, stream
from oltr_ext.engine.settle import class_worth, expected_accuracy, found_share, share_of
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, _Run, train
from oltr_ext.metrics import shot_accuracy
from oltr_ext.nn import FeatureBank, LinearHead, best_tau, prior_share
from oltr_ext.nn.scores import BANK_SCORES
from oltr_ext.serve.assess import assess, compare
from oltr_ext.serve.export import export
from oltr_ext.serve.predict import predict_embeddings
from oltr_ext.serve.tables import table
from oltr_ext.serve.trained import load_trained

TRAIN, TAIL = (40, 20, 6, 2), (14, 9, 4, 2)  # images a class; validation cut from the same list
STAGE = {"epochs": 2, "batch_size": 8, "lr": {"feature": 0.1, "classifier": 0.1, "centroid": 0.1}}
CPU = torch.device("cpu")
METHODS = {  # what each adds to plain training
    "plain": {},
    "balanced-softmax": {"stage1": {**STAGE, "class_prior": 1.0}},
    "logit-adjustment": {"stage2": {"kind": "logit_adjustment", "tau": 1.5}},
    "memory": {"stage2": {**STAGE, "class_prior": 0.5, "sampler": "shuffle", "attention": False}},
}


def write(folder, val=TAIL, *, strangers=True):
    """Classes that overlap, so that what is expected of them changes answers."""
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(5, 6))

    def part(counts):
        labels = np.repeat(np.arange(len(counts)), counts)
        rows = centres[labels] + 1.5 * rng.normal(size=(len(labels), 6))
        return np.abs(rows).astype(np.float32), labels

    parts = {"train": part(TRAIN), "val": part(val), "test": part((15,) * 4)}
    if strangers:
        parts |= {p: (part((0, 0, 0, 0, 12))[0], None) for p in ("open_val", "open_test")}
    write_embeddings(folder, parts)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tail") / "data")


def settings(data, method, **more):
    values = {"data": {"kind": "embeddings", "root": str(data), "shots": [20, 4]}, "stage1": STAGE}
    return make_config({"device": "cpu", "threads": 1, **values, **METHODS[method], **more})


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        train(settings(data, method), out / method)
    return out


def test_a_share_is_of_the_training_s_frequencies_and_at_most_all_of_them(data, tmp_path):
    splits = load_splits(settings(data, "plain").data)
    found = found_share(splits)
    assert 0.6 < found < 0.7  # in parts of the frequencies, whatever power a head learned under
    assert found == pytest.approx(prior_share(torch.tensor(TAIL), torch.tensor(TRAIN)), abs=1e-5)
    for counts, far, taken in (((30, 4, 1, 0), 1.5, 1.0), ((1, 2, 6, 9), -0.5, 0.0)):
        odd = load_splits(settings(write(tmp_path / str(taken), counts), "plain").data)
        assert (found_share(odd) > far) == (far > 0)
        assert share_of("val", odd) == taken and share_of("balanced", odd) == 0
        assert share_of(1.7, odd) == 1.7  # but as much as is said


@pytest.mark.parametrize("method", ["balanced-softmax", "logit-adjustment", "memory"])
def test_all_classes_alike_unless_said(data, runs, method):
    head = load_trained(runs / method, device="cpu").model.head
    assert head.class_prior is not None and head.prior_share == 0
    frequencies = torch.tensor(TRAIN) / sum(TRAIN)
    power = {"balanced-softmax": 1.0, "logit-adjustment": 1.5, "memory": 0.5}[method]
    torch.testing.assert_close(head.class_prior, frequencies**power)
    rows = torch.rand(9, 6)
    logits = head(rows)
    head.prior_share.fill_(1.0)
    torch.testing.assert_close(head(rows), logits + power * frequencies.log())
    if method == "logit-adjustment":  # all of it again is the model that was adjusted
        plain = load_trained(runs / "plain", device="cpu").model.head
        torch.testing.assert_close(head(rows), plain(rows))
    head.set_threshold(0.5, "max_softmax")
    torch.testing.assert_close(head.predict(rows)[1], head(rows).double().softmax(1).amax(1))


def test_the_packaged_methods_ask_for_nothing(data):
    assert {load_config("icons", method=m).test_prior for m in ("oltr-plus", "plain")} == {
        "balanced"
    }
    moved = settings(data, "memory", stage2={**METHODS["memory"]["stage2"], "test_prior": "val"})
    assert moved.test_prior == "val" and "test_prior" not in moved.stage2.model_dump()
    with pytest.raises(ValueError, match=r"test_prior: .* less than or equal to 2"):
        settings(data, "memory", test_prior=3)


def test_lines_say_both_consequences_on_these_images(data, runs, tmp_path):
    said = []
    train(settings(data, "balanced-softmax"), tmp_path / "run", say=said.append)
    assert "; the 29 validation images have 0.6" in said[0].splitlines()[1]
    assert (
        said[0]
        .splitlines()[1]
        .startswith("test_prior: balanced: expects all classes alike of test images")
    )
    trained = load_trained(tmp_path / "run", device="cpu")
    splits, head = load_splits(trained.config.data), trained.model.head
    x, y = map(torch.cat, zip(*stream(trained.model, splits.val, CPU), strict=True))
    want = []
    for share in (0.0, share_of("val", splits)):
        head.prior_share.fill_(share)
        right = shot_accuracy(head(x).argmax(1), y, TRAIN, (20, 4))
        by_class = np.mean([(head(x[y == c]).argmax(1) == c).float().mean() for c in range(4)])
        want.append(
            f"validation {100 * right['overall']:.1f} % as it is, {100 * by_class:.1f} by class, "
            f"few-shot {100 * right['few']:.1f}"
        )
    here, there = said[-2].splitlines()
    assert here.startswith(f"test_prior: balanced: expects all classes alike; {want[0]}")
    assert f"of the training's tail: {want[1]}" in there
    assert there.endswith("oltr eval RUN --test-prior val judges so") and want[0] != want[1]
    assert said[-1].startswith(f"unknown: told by {trained.threshold['score']}, AUROC ")
    # whitenings, means, rows and null space of 6 numbers, two vectors of 6, alpha, the features'
    # length, k of 2, and what the sums shift and scale by
    size = 4 * (6 * (2 * 6 + 4 + sum(TRAIN) + 3) + 2 * 6 + 1 + 1 + 2 + 2 * 4)
    assert said[-1].endswith(f"; 68 training features kept, the bank is {size / 1e6:.1f} MB")
    assert head.bank.size == size


def test_a_longer_tail_than_the_training_s_is_told(tmp_path):
    said = []
    write(tmp_path / "data", (30, 4, 1, 0))
    config = settings(tmp_path / "data", "balanced-softmax", test_prior="val")
    head = load_trained(train(config, tmp_path / "run", say=said.append)).model.head
    assert head.prior_share == 1
    assert said[0].endswith(", of which no more than 1 is taken unasked")
    plain = settings(tmp_path / "data", "plain", test_prior="val")
    train(plain, tmp_path / "plain", say=said.append)
    assert any("test_prior: val changes nothing: this method learns under" in line for line in said)


@pytest.mark.parametrize("asked", ["val", 0.3])
@pytest.mark.parametrize("method", ["balanced-softmax", "logit-adjustment", "memory"])
def test_judged_anew_is_as_trained_so(data, runs, tmp_path, method, asked):
    config = settings(data, method, test_prior=asked)
    path = train(config, tmp_path / "other")
    want = assess(load_trained(path, device="cpu"), name="it")
    before = (runs / method / "model.safetensors").read_bytes()
    trained = load_trained(runs / method, device="cpu")
    old = assess(trained, name="it")
    found = assess(trained, name="it", test_prior=asked)
    assert found.summary == want.summary and trained.threshold == want.trained.threshold
    assert found.summary != old.summary and old.summary["expects"] == "alike"
    assert (runs / method / "model.safetensors").read_bytes() == before
    assert table([found]).splitlines()[1].endswith(f" {found.summary['expects']}")
    assert assess(trained, name="it", test_prior="balanced").summary == old.summary


def test_a_finished_run_is_settled_anew_without_training(data, runs, tmp_path, monkeypatch):
    train(settings(data, "memory"), tmp_path / "run")
    monkeypatch.setattr(_Run, "step", None)
    said = []
    train(settings(data, "memory", test_prior="val"), tmp_path / "run", say=said.append)
    train(settings(data, "memory", test_prior="val"), tmp_path / "run")
    tensors, header = checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert header["config"]["test_prior"] == "val"
    assert 0.6 < tensors["model.head.prior_share"] < 0.7
    train(settings(data, "memory"), tmp_path / "run")
    again, header = checkpoint.load(tmp_path / "run" / "model.safetensors")
    first, was = checkpoint.load(runs / "memory" / "model.safetensors")
    assert all(torch.equal(again[k], first[k]) for k in first)
    assert header["threshold"] == was["threshold"]
    with pytest.raises(ValueError, match=r"open_set\.score: OLTRHead has no score openmax"):
        train(settings(data, "memory", open_set={"score": "openmax"}), tmp_path / "run")
    with pytest.raises(OtherRunError, match="seed"):
        train(settings(data, "memory", seed=1), tmp_path / "run")


@pytest.mark.parametrize("score", BANK_SCORES)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_by_what_it_keeps_of_the_training(data, runs, tmp_path, method, score):
    shutil.copytree(runs / method, tmp_path / "run")
    config = settings(data, method, open_set={"score": score})
    trained = load_trained(train(config, tmp_path / "run"), device="cpu")
    head, splits = trained.model.head, load_splits(config.data)
    assert trained.threshold["score"] == head.score == score

    def features(part):
        return map(torch.cat, zip(*stream(trained.model, part, CPU), strict=True))

    x, y = features(splits.train)
    assert torch.equal(head.bank.rows, F.normalize(x.double(), dim=1).float())
    bank = FeatureBank()
    with torch.no_grad():
        bank.fit(
            [(x, y)],
            TRAIN,
            max_logit=lambda x: head.outputs(x).logits.amax(1),
            origin=head.origin,
        )
        held, _ = features(splits.val)
        bank.standardise(head.scores(head.outputs(held)))
        rows = np.concatenate([splits.test.features, splits.open_test.features])
        logits = head.outputs(torch.from_numpy(rows)).logits.double()
    largest, energy = logits.amax(1), logits.logsumexp(1)
    want = bank.scores(torch.from_numpy(rows), largest, energy=energy)[score]
    found = predict_embeddings(trained, rows)
    np.testing.assert_allclose([f.confidence for f in found], want, rtol=1e-5, atol=1e-6)
    result = assess(trained, name="it")
    np.testing.assert_array_equal(result.confidence, [f.confidence for f in found])
    np.testing.assert_array_equal(result.rejected, [f.label is None for f in found])
    if method == "plain":
        path = export(trained, tmp_path / "it.pt2")
        program = torch.export.load(path)
        kept = any("rows" in key for key in program.state_dict)
        assert kept == ("nearest" in score or score == "knn")
        confidence = program.module()(torch.from_numpy(rows))[1]
        np.testing.assert_allclose(confidence, want, rtol=1e-4, atol=1e-5)
    # what holds a logit changes with what is expected, a distance does not
    head.set_threshold(0.0, score)
    before = head.predict(x)[1]
    if method != "plain":
        assess(trained, name="it", test_prior="val")
        assert torch.equal(head.predict(x)[1], before) == ("+" not in score and score != "vim")


def test_how_many_features_are_kept_is_said_and_bounded(data, runs, tmp_path):
    def kept(features, score="auto"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(runs / "plain", tmp_path / "run")
        said, asked = [], {"score": score, "features": features}
        config = settings(data, "plain", open_set=asked)
        trained = load_trained(train(config, tmp_path / "run", say=said.append), device="cpu")
        return trained.model.head.bank, said[-1]

    bank, line = kept(20)
    assert len(bank.rows) == 20 and "; 20 of 68 training features kept" in line
    assert "nearest_feature" in bank.names
    bank, line = kept(0)
    assert bank.rows is None and "; 0 of 68 training" in line
    assert bank.names == (
        "mahalanobis",
        "relative_mahalanobis",
        "vim",
        "max_logit+mahalanobis",
        "max_logit+relative_mahalanobis",
    )
    assert kept(0, "mahalanobis")[0].rows is None
    with pytest.raises(
        ValueError, match=r"open_set\.score: nearest_feature needs some, and open_s"
    ):
        kept(0, "max_logit+nearest_feature")
    with pytest.raises(ValueError, match=r"features = 3 for 4 classes"):
        kept(3, "nearest_feature")
    with pytest.raises(
        ValueError, match=r"open_set\.score: nearest_feature needs some, and open_s"
    ):
        asked = {"score": "nearest_feature", "features": 0}  # told before training
        train(settings(data, "memory", open_set=asked), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_without_open_validation_the_score_is_that_of_before(tmp_path):
    folder = write(tmp_path / "data", strangers=False)
    said = []
    trained = load_trained(train(settings(folder, "memory"), tmp_path / "run", say=said.append))
    assert trained.threshold["score"] == "max_softmax" and "AUROC" not in said[-1]
    assert set(trained.model.head.bank.names) == set(BANK_SCORES)


def test_eval_judges_all_under_one_expectation(data, runs, tmp_path, capsys):
    paths = [str(runs / m) for m in ("plain", "balanced-softmax", "memory")]
    args = ["--test-prior", "val", "--json", "--device", "cpu"]
    assert main(["eval", *paths, *args]) == 0
    told = capsys.readouterr()
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [row["expects"] for row in rows] == ["-", *[rows[1]["expects"]] * 2]
    assert 0.6 < float(rows[1]["expects"]) < 0.7
    assert "plain: it learned under no class prior, and stays as it is" in told.err
    assert "memory: test_prior: val: expects" in told.err
    assert main(["eval", paths[0], *args]) == 1
    assert "plain learned under no class prior that could be expected" in capsys.readouterr().err
    before = {path.name for path in (runs / "memory").iterdir()}
    assert main(["eval", paths[2], "--test-prior", "0.5", "--device", "cpu"]) == 0
    asked = runs / "memory" / "test_prior_0.5"
    assert (asked / "report.html").exists() and (asked / "report.json").exists()
    assert {path.name for path in (runs / "memory").iterdir()} - before == {asked.name}
    capsys.readouterr()
    for text in ("3", "tail"):
        with pytest.raises(SystemExit):
            main(["eval", paths[0], "--test-prior", text])
    assert main(["eval", paths[2], "--set", "test_prior=val"]) == 1
    assert "by oltr eval --test-prior what it expects" in capsys.readouterr().err
    with pytest.raises(ValueError, match="could be expected"):
        compare([load_trained(runs / "plain", device="cpu")], ["plain"], test_prior="balanced")


def test_tau_is_chosen_for_classes_as_they_are_expected(data, tmp_path, monkeypatch):
    asked, choose = [], handover.best_tau
    monkeypatch.setattr(handover, "best_tau", lambda *a: asked.append(a[4]) or choose(*a))
    for prior in ("balanced", "val"):
        config = settings(data, "plain", stage2={"kind": "tau_norm"}, test_prior=prior)
        train(config, tmp_path / prior)
        assert torch.equal(asked.pop(), class_worth(prior, load_splits(config.data)))
    splits = load_splits(settings(data, "plain").data)
    alike = class_worth("balanced", splits)
    torch.testing.assert_close(alike * torch.tensor(TAIL), torch.ones(4, dtype=torch.float64))
    assert torch.equal(class_worth("val", splits), torch.ones(4, dtype=torch.float64))
    tail = class_worth(1.0, splits) * torch.tensor(TAIL) * sum(TRAIN)
    torch.testing.assert_close(tail, torch.tensor(TRAIN).double(), rtol=1e-5, atol=1e-4)
    absent = dataclasses.replace(splits, val=splits.train)
    absent.val = type("L", (), {"labels": np.array([0, 0, 1])})()
    assert class_worth("balanced", absent).tolist() == [0.5, 1, 0, 0]
    # ten rows of class 0 that tau = 0 gets right, one of class 1 that tau = 1 does
    weight, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 0, 1])
    rows = torch.tensor([[2.0, 3.0]] * 3 + [[1.0, 1.5]])
    assert best_tau(weight, rows, target, [0.0, 1.0]) == 0
    worth = torch.tensor([1 / 3, 1.1])
    assert best_tau(weight, rows, target, [0.0, 1.0], worth) == 1


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({"stage2": {"kind": "tau_norm"}}, "the tau"),
        ({"stage2": {"kind": "tau_norm", "tau": 0.5}}, None),
        ({"select": "best"}, "the epoch"),
        ({"select": "best", "stage2": {"kind": "tau_norm"}}, "the epoch and the tau"),
    ],
)
def test_what_was_chosen_by_another_expectation_is_told(data, tmp_path, more, kept):
    train(settings(data, "plain", **more), tmp_path / "run")
    for prior in ("val", "balanced"):
        said = []
        train(settings(data, "plain", **more, test_prior=prior), tmp_path / "run", say=said.append)
        line = f"{tmp_path}/run keeps {kept} that did best under test_prior: balanced; --fresh "
        assert (f"{line}chooses anew under val" in said) == (kept is not None and prior == "val")


def test_the_best_epoch_is_that_of_classes_as_they_are_expected(data):
    splits = load_splits(settings(data, "plain").data)
    target = np.append(splits.val.labels, [-1, -1])
    head, tail = (Outputs(np.where(target == c, c, 9), target, {}) for c in (0, 3))
    for seen, images in ((head, TAIL[0]), (tail, TAIL[3])):
        assert expected_accuracy(seen, "balanced", splits) == pytest.approx(1 / 4)
        assert expected_accuracy(seen, "val", splits) == images / sum(TAIL)
    assert expected_accuracy(tail, 1.0, splits) == pytest.approx(TRAIN[3] / sum(TRAIN))


def test_train_keeps_the_epoch_that_is_best_so(data, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        trainer, "expected_accuracy", lambda *a: said.append(a[1]) or -len(said) / 10 + 0.5
    )
    path = train(settings(data, "plain", select="best", test_prior=0.3), tmp_path / "run")
    assert said == [0.3, 0.3] and checkpoint.load(path)[1]["state"]["best"] == 0.4  # the first


def test_a_prior_that_is_expected_again_is_not_in_the_loss():
    prior = torch.tensor([3.0, 1, 0.5])
    head = LinearHead(4, 3, class_prior=prior)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, logits = head.loss(x, y), head(x)
    head.prior_share.fill_(0.5)
    assert torch.equal(head.loss(x, y), loss)
    torch.testing.assert_close(head(x), logits + 0.5 * prior.log())
    old = head.state_dict()
    del old["prior_share"]
    head.load_state_dict(old)
    assert head.prior_share == 0
