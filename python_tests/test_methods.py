"""The registry's promises, and the second stages that make a new classifier on frozen features."""

from __future__ import annotations

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
import yaml
from tiny import COUNTS, arrays, config, same_run, stop_after, write_data

from oltr_ext.config.loading import ConfigError, load_config, make_config
from oltr_ext.config.methods import DEMO, METHODS, apply_method
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model, build_optimizer
from oltr_ext.engine.evaluate import stream
from oltr_ext.engine.handover import hand_over
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.nn import FocalLoss, LiftedStructureLoss, RangeLoss, class_directions
from oltr_ext.serve.assess import assess, report
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.tables import table
from oltr_ext.serve.trained import load_trained

TRAINED = {
    kind: {"kind": kind, "epochs": 2, "batch_size": 8, "lr": {"feature": 0.0, "classifier": 0.1}}
    for kind in ("crt", "lws")
}
TRAINED["fslwf"] = {**TRAINED["crt"], "kind": "fslwf", "base_shots": 5, "fake": 1}
FITTED = {kind: {"kind": kind} for kind in ("tau_norm", "ncm", "logit_adjustment", "openmax")}
KINDS = {**TRAINED, **FITTED}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    return folder


def settings(data, kind):
    values = config(data)
    values["stage1"] = {**values["stage1"], "fc": 32}  # frozen like the backbone
    return make_config({**values, "stage2": KINDS.get(kind)})


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A finished run of every kind, and of stage 1 alone."""
    out = tmp_path_factory.mktemp("runs")
    for kind in ("plain", *KINDS):
        train(settings(data, kind), out / kind)
    return out


def features_of(model, images):
    """Features (N, D) and labels (N,)."""
    return tuple(torch.cat(part) for part in zip(*stream(model, images, CPU), strict=True))


def loaded(runs, kind):
    return load_trained(runs / kind, device="cpu")


def test_every_method_trains_for_the_same_budget():
    assert set(DEMO) <= set(METHODS) and len(METHODS) == 15
    with pytest.raises(ConfigError, match="icons: no method 'oltr_plus'; did you mean oltr-plus"):
        load_config("icons", method="oltr_plus")
    plain = load_config("icons", method="plain")
    assert plain == load_config("icons")
    for name in METHODS:
        run = load_config("icons", method=name)
        stages = [s for s in (run.stage1, run.stage2) if s is not None]
        assert sum(s.epochs for s in stages) == plain.stage1.epochs == 30, name
        assert (run.data, run.model) == (plain.data, plain.model), name
        assert {s.batch_size for s in stages if s.epochs} == {64}, name
        if run.stage2 is not None and run.stage2.epochs == 0:  # it is the plain model
            assert run.stage1 == plain.stage1, name


def test_a_method_shares_epochs_and_scales_the_rates_of_stage_1(data):
    values = config(data)
    first = {"epochs": 30, "lr": {"feature": 0.01, "classifier": 0.2}, "fc": 8, "clip": 1.0}
    first = {**first, "accumulate": 2, "samples_per_class": 2}
    values = {**values, "stage1": {**values["stage1"], **first}, "stage2": {"epochs": 60}}
    kept = copy.deepcopy(values)
    run = make_config(apply_method(values, "oltr"))
    assert values == kept and (run.stage1.epochs, run.stage2.epochs) == (45, 45)
    assert (
        run.stage1.model_copy(update={"epochs": 30})
        == make_config({**values, "stage2": None}).stage1
    )
    assert run.stage2.lr.model_dump() == pytest.approx(
        {"feature": 0.001, "classifier": 0.2, "centroid": 0.02}
    )
    assert (run.stage2.fc, run.stage2.clip, run.stage2.batch_size) == (8, 1.0, 8)
    assert (run.stage2.accumulate, run.stage2.samples_per_class) == (2, 2)
    assert (run.stage2.schedule.kind, run.stage2.schedule.every) == ("step", 15)
    frozen = make_config(apply_method(values, "lws")).stage2
    assert (frozen.epochs, frozen.lr.feature) == (18, 0.0)
    one = {**values, "stage1": {**values["stage1"], "epochs": 2}, "stage2": None}
    assert make_config(apply_method(one, "crt")).stage2.epochs == 1  # never rounded to none
    plus = make_config(apply_method(one, "oltr-plus"))
    assert (plus.stage1.epochs, plus.stage2.epochs) == (1, 1)  # nor stage 1
    one["stage1"]["epochs"] = 1
    with pytest.raises(ValueError, match="crt needs an epoch for each of its two stages, got 1"):
        apply_method(one, "crt")
    assert make_config(apply_method(one, "ncm")).stage1.epochs == 1
    fitted = make_config({**apply_method(values, "openmax"), "amp": "bf16"})
    assert (fitted.stage1.epochs, fitted.open_set.score) == (90, "openmax")
    mine = {**values, "open_set": {"rule": "balanced"}}
    assert make_config(apply_method(mine, "openmax")).open_set.rule == "balanced"


def test_a_method_takes_numbers_that_yaml_leaves_as_text(data, tmp_path):
    values = config(data)
    values["stage1"] = {**values["stage1"], "lr": {"feature": 0.25, "classifier": 0.25}}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values).replace("0.25", "25e-2"))
    assert "25e-2" in file.read_text() and yaml.safe_load("25e-2") == "25e-2"
    for name in METHODS:
        values["stage1"]["accumulate"] = 1
        assert load_config(file, method=name) == make_config(apply_method(values, name)), name


@pytest.mark.parametrize("kind", ["fslwf", "ncm", "openmax"])
def test_a_class_without_images_is_no_answer(kind, tmp_path):
    """Against all features a direction of zeros would score 0, and others less."""
    parts = arrays()
    features, labels = parts["train"]
    parts["train"] = features[labels != 3], labels[labels != 3]
    write_embeddings(tmp_path / "own", parts, list("abcd"))
    values = {"data": {"kind": "embeddings", "root": str(tmp_path / "own"), "shots": [8, 4]}}
    stage = {"epochs": 1, "batch_size": 8, "lr": {"feature": 0.0, "classifier": 0.1}}
    second = {"kind": kind, **({**stage, "base_shots": 5} if kind == "fslwf" else {})}
    run = make_config({**values, "stage1": stage, "stage2": second})
    model = load_trained(train(run, tmp_path / kind), device="cpu").model
    if kind == "openmax":  # it revises what the linear classifier says; the fit is what must hold
        return
    rows = -torch.from_numpy(features).float()[:, :, None, None]
    assert (model(rows).argmax(1) != 3).all()
    assert (model(-rows).argmax(1) != 3).all()


def test_official_is_oltr_with_the_released_code_s_defects():
    mended, official = (load_config("icons", method=n) for n in ("oltr", "oltr-official"))
    changed = {"compat": "fixed", "fc_start": "identity"}
    assert official.stage2.model_copy(update=changed) == mended.stage2
    assert official.model_copy(update={"stage2": mended.stage2}) == mended
    splits = load_splits(mended.data)
    for run, decay in ((mended, 0.0), (official, 5e-4)):
        model = build_model(run, 2, splits)
        groups = {g["name"]: g for g in build_optimizer(model, run.stage2).param_groups}
        assert groups["centroid"]["weight_decay"] == decay
        assert model.head.centroid_loss.compat == run.stage2.compat
        # the mended start lets pooled features, which are not negative, through as they are
        x = torch.rand(3, 256)
        assert torch.equal(model.fc(x), x) == (run is mended)


@pytest.mark.parametrize(
    ("loss", "where", "kind"),
    [
        ({"kind": "focal", "gamma": 1.5}, "criterion", FocalLoss(1.5)),
        ({"kind": "lifted", "margin": 2, "weight": 0.1}, "metric", LiftedStructureLoss(2.0)),
        ({"kind": "range", "k": 3, "intra": 0.1}, "metric", RangeLoss(3, 10.0, 0.1, 1.0)),
    ],
)
def test_stage_one_trains_on_the_chosen_loss(data, tmp_path, loss, where, kind):
    values = {**config(data), "stage2": None}
    values["stage1"] = {**values["stage1"], "loss": loss, "sampler": "class_aware"}
    run = make_config(values)
    head = build_model(run, 1, load_splits(run.data)).head
    assert repr(getattr(head, where)) == repr(kind)  # the type and all its numbers
    assert head.metric_weight == loss.get("weight", 1.0)
    train(run, tmp_path)
    trained = load_trained(tmp_path, device="cpu")
    assert assess(trained, name="x").summary["closed"]["overall"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_classifier_leaves_the_features_alone(runs, data, kind):
    plain = checkpoint.load(runs / "plain" / "model.safetensors")[0]
    tensors = checkpoint.load(runs / kind / "model.safetensors")[0]
    frozen = [name for name in plain if name.startswith(("model.backbone.", "model.fc."))]
    assert "model.fc.weight" in frozen and any(name.endswith("running_mean") for name in frozen)
    for name in frozen:
        assert torch.equal(plain[name], tensors[name]), name
    if kind == "fslwf":
        features, target = features_of(
            loaded(runs, "plain").model, load_splits(settings(data, kind).data).plain
        )
        novel = target >= 2  # nine images make a base class, four do not
        assert torch.equal(tensors["model.head.support_target"], target[novel])
        torch.testing.assert_close(tensors["model.head.support"], features[novel])
        return
    same = {"lws": "weight", "openmax": "weight", "logit_adjustment": "weight"}.get(kind)
    other = {"crt": "weight", "ncm": "weight", "tau_norm": "bias", "logit_adjustment": "bias"}
    for name, equal in ((same, True), (other.get(kind), False)):
        if name is not None:
            name = f"model.head.linear.{name}"
            assert torch.equal(plain[name], tensors[name]) == equal, name


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_no_second_stage_starts_from_logits_of_the_training_set(data, kind, monkeypatch):
    """A million faces would have 264 GB of them; features are enough."""
    run = settings(data, kind) if kind else make_config(config(data))
    splits = load_splits(run.data)
    old, new = (build_model(run, stage, splits) for stage in (1, 2))
    for model in (old, new):
        monkeypatch.setattr(model.head, "outputs", None)
    hand_over(old, new, run.stage2, splits, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_judged_and_predicts(runs, data, kind, tmp_path):
    trained = loaded(runs, kind)
    result = assess(trained, name=kind)
    assert "calibrated" in str(result.summary["scores"][trained.threshold["score"]])
    assert ("openmax" in result.summary["scores"]) == (kind == "openmax")
    assert kind in table([result])
    splits = load_splits(trained.config.data)
    answers = predict_images(trained, [data / path for path in splits.test.paths])
    right = sum(a.closed == f"class {t}" for a, t in zip(answers, splits.test.labels, strict=True))
    assert right / len(answers) == pytest.approx(result.summary["closed"]["overall"])
    if kind == "openmax":
        report([result], tmp_path / "report.html")


def test_fitted_heads_hold_what_their_formula_says(runs, data):
    plain = loaded(runs, "plain").model.head.linear
    splits = load_splits(settings(data, "plain").data)
    model = loaded(runs, "ncm").model
    torch.testing.assert_close(
        model.head.linear.weight, class_directions([features_of(model, splits.plain)], 4)
    )
    adjusted = loaded(runs, "logit_adjustment").model.head.linear
    frequency = torch.tensor(COUNTS) / sum(COUNTS)
    torch.testing.assert_close(adjusted.bias, plain.bias - frequency.log())
    assert torch.equal(adjusted.weight, plain.weight)
    # tau-norm: only lengths change, and validation is at least as good as for any other tau
    weight = loaded(runs, "tau_norm").model.head.linear.weight
    torch.testing.assert_close(F.normalize(weight), F.normalize(plain.weight))
    features, target = features_of(loaded(runs, "plain").model, splits.val)

    def right(w):
        return int(((features @ w.t()).argmax(1) == target).sum())

    length = plain.weight.norm(dim=1, keepdim=True)
    assert right(weight) == max(right(plain.weight / length**t) for t in (0, 0.25, 0.5, 0.75, 1))
    head = loaded(runs, "openmax").model.head
    features, target = features_of(loaded(runs, "openmax").model, splits.plain)
    logits = head(features)
    own = (target == 0) & (logits.argmax(1) == 0)
    torch.testing.assert_close(head.mean[0], logits[own].mean(0))


def test_the_openmax_score_is_used_once_there_is_one(data, tmp_path):
    values = {**config(data), "stage2": FITTED["openmax"], "open_set": {"score": "openmax"}}
    trained = load_trained(train(make_config(values), tmp_path), device="cpu")
    assert trained.threshold["score"] == trained.model.head.score == "openmax"
    stage1 = checkpoint.load(tmp_path / "previous.safetensors")[1]
    assert stage1["state"]["stage"] == 1 and stage1["threshold"]["score"] == "max_softmax"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before_the_last", [0, 1])
def test_interrupted_it_ends_with_the_same_bits(
    data, runs, kind, before_the_last, tmp_path, monkeypatch
):
    """Stopped while the last row of the log is written, or the one before it."""
    rows = len((runs / kind / "log.csv").read_text().splitlines()) - 1
    with monkeypatch.context() as inner:
        stop_after(inner, row=rows - before_the_last)
        with pytest.raises(KeyboardInterrupt):
            train(settings(data, kind), tmp_path)
    torch.manual_seed(123)
    train(settings(data, kind), tmp_path)
    same_run(runs / kind, tmp_path)


def stop_before_last_of_stage_2(monkeypatch):
    """Interrupt a run when stage 2 has written its `best` checkpoint and not yet `last`."""
    save_last = checkpoint.save_last

    def stop(folder, tensors, header):
        if header["state"]["stage"] == 2:
            raise KeyboardInterrupt
        save_last(folder, tensors, header)

    monkeypatch.setattr(checkpoint, "save_last", stop)


@pytest.mark.parametrize("kind", ["openmax", "logit_adjustment", "memory"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_stopped_between_the_two_checkpoints_of_stage_2(data, tmp_path, monkeypatch, kind, select):
    values = {**config(data), "checkpoint_every": None} if kind == "memory" else None
    run = make_config(values or settings(data, kind).model_dump(), [f"select={select}"])
    with monkeypatch.context() as inner:
        stop_before_last_of_stage_2(inner)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "parts")
    assert checkpoint.load(tmp_path / "parts" / "best.safetensors")[1]["state"]["stage"] == 2
    train(run, tmp_path / "parts")
    train(run, tmp_path / "whole")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_stage_1_of_a_run_with_one_best_file(data, tmp_path, monkeypatch):
    """It goes on where that file still holds stage 1, and is refused where it does not."""
    run = make_config(settings(data, "ncm").model_dump(), ["select=best"])
    with monkeypatch.context() as inner:
        stop_before_last_of_stage_2(inner)
        with pytest.raises(KeyboardInterrupt):
            train(run, tmp_path / "old")
    first = tmp_path / "old" / "best_stage1.safetensors"
    moved = first.rename(tmp_path / "first.safetensors")
    with pytest.raises(OtherRunError, match=r"best\.safetensors holds stage 2, .*--fresh"):
        train(run, tmp_path / "old")
    moved.rename(tmp_path / "old" / "best.safetensors")
    train(run, tmp_path / "old")
    train(run, tmp_path / "whole")
    same_run(tmp_path / "whole", tmp_path / "old")


def test_a_fitted_stage_is_a_row_of_the_log_and_not_made_twice(data, runs, monkeypatch):
    before = (runs / "ncm" / "log.csv").read_bytes()
    rows = list(csv.DictReader((runs / "ncm" / "log.csv").open()))
    assert (rows[-1]["stage"], rows[-1]["step"], rows[-1]["loss"]) == ("2", "0", "")
    assert float(rows[-1]["val_overall"]) >= 0 and rows[-2]["stage"] == "1"
    monkeypatch.setattr("oltr_ext.engine.train.hand_over", None)
    said = []
    train(settings(data, "ncm"), runs / "ncm", say=said.append)
    assert said == [f"{runs / 'ncm'} is trained already"]
    assert (runs / "ncm" / "log.csv").read_bytes() == before


def test_a_run_from_before_a_key_goes_on(data, runs, tmp_path):
    """Checkpoints whose configuration lacks what was added since stand for its default."""
    train(settings(data, "plain"), tmp_path)
    for name in ("last", "previous"):
        tensors, header = checkpoint.load(tmp_path / f"{name}.safetensors")
        del header["config"]["stage1"]["loss"]
        checkpoint.save(tmp_path / f"{name}.safetensors", tensors, header)
    said = []
    train(settings(data, "plain"), tmp_path, say=said.append)
    assert said == [f"{tmp_path} is trained already"]
