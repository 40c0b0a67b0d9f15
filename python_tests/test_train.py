"""The training loop: it learns, it survives kills to the same bits, and it says what is wrong."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import random
import shutil
import time
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import COUNTS, config, same_run, stop_after

from oltr_ext.config.loading import make_config
from oltr_ext.engine import checkpoint
from oltr_ext.engine import train as trainer
from oltr_ext.engine.build import build_model, build_optimizer, lr_factor
from oltr_ext.engine.logs import Logs
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, TrainingError, train
from oltr_ext.models import OLTRModel, build_backbone
from oltr_ext.serve.trained import load_trained


def test_a_run_leaves_model_checkpoints_and_logs(finished):
    names = {p.name for p in finished.iterdir()}
    assert names == {
        ".lock",
        "best.safetensors",
        "best_stage1.safetensors",
        "last.safetensors",
        "log.csv",
        "model.safetensors",
        "previous.safetensors",
        "tensorboard",
    }
    rows = list(csv.DictReader((finished / "log.csv").open()))
    steps = sum(COUNTS) // 8
    assert [int(r["step"]) for r in rows if r["val_overall"]] == [steps, 2 * steps] * 2
    assert {r["stage"] for r in rows} == {"1", "2"}
    # the warm-up ends half an epoch in, and the cosine ends near zero
    assert float(rows[0]["lr_feature"]) > 0.04 > 0.03 > float(rows[-1]["lr_feature"])
    assert float(rows[-1]["lr_centroid"]) > 0 and rows[0]["lr_centroid"] == ""
    assert float(rows[-1]["val_overall"]) > 0.3  # four classes, six steps a stage
    tensors, header = checkpoint.load(finished / "model.safetensors")
    assert all(key.startswith(("model.", "sets.")) for key in tensors)
    assert set(header["threshold"]) == {"score", "value", "rule", "words", "observations"}


def test_same_seed_same_bits_other_seed_other_bits(data, finished, tmp_path):
    train(make_config(config(data)), tmp_path / "again")
    same_run(finished, tmp_path / "again")
    train(make_config({**config(data), "seed": 1}), tmp_path / "other")
    one = checkpoint.load(finished / "model.safetensors")[0]
    two = checkpoint.load(tmp_path / "other" / "model.safetensors")[0]
    assert not torch.equal(one["model.head.memory.centroids"], two["model.head.memory.centroids"])


def _train_in_child(values, out):
    train(make_config(values), out)


def test_killed_at_any_moment_it_ends_with_the_same_bits(data, finished, tmp_path):
    context = multiprocessing.get_context("forkserver")  # one import of torch for all the children
    context.set_forkserver_preload(["oltr_ext.engine.train"])
    rng = random.Random(0)
    kills = attempts = 0
    while True:
        child = context.Process(target=_train_in_child, args=(config(data), tmp_path))
        child.start()
        if attempts == 0:  # its start takes what importing takes; count from the first sign of work
            while not (tmp_path / "log.csv").exists() and child.is_alive():
                time.sleep(0.01)
        attempts += 1
        child.join(0.05 + rng.random() * 0.35 if attempts <= 10 else None)
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -9
    assert kills >= 3
    same_run(finished, tmp_path)


def test_a_damaged_last_checkpoint_costs_a_step_and_no_more(data, finished, tmp_path, monkeypatch):
    stop_after(monkeypatch, row=4)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(config(data)), tmp_path)
    monkeypatch.undo()
    last = tmp_path / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    said = []
    train(make_config(config(data)), tmp_path, say=said.append)
    assert "last.safetensors is truncated or damaged" in said[0] and "going on from" in said[1]
    same_run(finished, tmp_path)


@pytest.mark.parametrize("select", ["last", "best"])
def test_stage_1_of_another_run_gives_the_same_bits(data, finished, tmp_path, select):
    values = {**config(data), "select": select}
    whole = finished
    if select == "best":
        whole = tmp_path / "whole"
        train(make_config(values), whole)
    train(make_config({**values, "stage2": None}), tmp_path / "one")
    train(make_config(values), tmp_path / "two", stage1=tmp_path / "one")
    for name in ("model.safetensors", "last.safetensors"):
        (left, header) = checkpoint.load(whole / name)
        (right, other) = checkpoint.load(tmp_path / "two" / name)
        for part in ("threshold", "config"):
            assert header[part] == other[part]
        assert left.keys() == right.keys()
        assert all(torch.equal(left[k], right[k]) for k in left)


def test_stage_1_of_another_run_hands_on_the_scale_of_fp16(data, tmp_path, monkeypatch):
    """That after its last epoch, also where the model is of its first."""
    values = {**config(data), "amp": "fp16", "select": "best", "checkpoint_every": None}
    values["stage2"] = {**values["stage2"], "epochs": 1}
    # At torch's own 2^16 gradients overflow, or do not, by how a processor sums.
    small = partial(torch.amp.GradScaler, init_scale=2.0**8)
    monkeypatch.setattr(torch.amp, "GradScaler", small)
    seen = []
    monkeypatch.setattr(trainer, "expected_accuracy", lambda *a: seen.append(a) or 1 / len(seen))
    for name, stages, first in (
        ("whole", {}, None),
        ("one", {"stage2": None}, None),
        ("two", {}, tmp_path / "one"),
    ):
        seen.clear()
        train(make_config({**values, **stages}), tmp_path / name, stage1=first)
    whole, two = (checkpoint.load(tmp_path / n / "last.safetensors") for n in ("whole", "two"))
    assert whole[1]["scaler"] == two[1]["scaler"] and whole[1]["scaler"]["_growth_tracker"] == 9
    assert all(torch.equal(value, two[0][key]) for key, value in whole[0].items())


def test_published_weights_are_loaded_for_stage_1_alone(data, tmp_path, monkeypatch):
    calls = []

    def record(*names, load=True, **options):
        calls.append(load)
        return build_backbone(*names, load=load, **options)

    monkeypatch.setattr("oltr_ext.engine.build.build_backbone", record)
    train(make_config({**config(data), "stage2": None}), tmp_path / "one")
    assert calls == [True]
    train(make_config(config(data)), tmp_path / "two", stage1=tmp_path / "one")
    assert calls[0] and not any(calls[1:])


def test_generators_resume_too(data, tmp_path, monkeypatch):
    features = OLTRModel.features

    def with_dropout(self, images):
        return F.dropout(features(self, images), 0.5, self.training)

    monkeypatch.setattr(OLTRModel, "features", with_dropout)
    train(make_config(config(data)), tmp_path / "whole")
    with monkeypatch.context() as inner:
        stop_after(inner, row=3)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(config(data)), tmp_path / "parts")
    torch.manual_seed(123)
    train(make_config(config(data)), tmp_path / "parts")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_a_good_checkpoint(data, tmp_path):
    values = {**config(data), "stage2": None}
    values["stage1"] = {**values["stage1"], "lr": {"feature": 1e30, "classifier": 1e30}}
    with pytest.raises(TrainingError, match=r"after step \d of stage 1; the last good checkpoint"):
        train(make_config(values), tmp_path)
    found = checkpoint.load_latest(tmp_path)
    if found is not None:
        assert all(torch.isfinite(v).all() for k, v in found[0].items() if k.startswith("model."))


def test_nan_after_good_steps_keeps_their_checkpoint(data, tmp_path, monkeypatch):
    features, calls = OLTRModel.features, []

    def poison(self, images):
        calls.append(self.training)
        out = features(self, images)
        return out * float("nan") if sum(calls) == 5 else out

    monkeypatch.setattr(OLTRModel, "features", poison)
    with pytest.raises(TrainingError, match="the loss is nan after step 5 of stage 1"):
        train(make_config(config(data)), tmp_path)
    tensors, header, problems = checkpoint.load_latest(tmp_path)
    assert header["state"]["step"] == 4 and not problems
    assert all(torch.isfinite(v).all() for k, v in tensors.items() if k.startswith("model."))


def test_weights_that_are_not_finite_are_never_written(data, tmp_path, monkeypatch):
    """The loss was finite, the gradient was not, and the epoch ends here."""
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def overflow(parameters, limit):
        calls.append(1)
        if len(calls) == 3:
            parameters[0].grad.fill_(float("inf"))
        return clip(parameters, limit)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", overflow)
    with pytest.raises(TrainingError, match=r"backbone\.\S+ is no longer finite after step 3"):
        train(make_config(config(data)), tmp_path)
    assert checkpoint.load_latest(tmp_path)[1]["state"]["step"] == 2


def test_a_folder_of_others_is_not_written_over(data, finished, tmp_path):
    given = make_config(config(data))
    (tmp_path / "theirs").mkdir()
    save_file({"resnet.weight": torch.zeros(2)}, tmp_path / "theirs/model.safetensors")
    (tmp_path / "logged").mkdir()
    (tmp_path / "logged/log.csv").write_text("day,weather\n")
    for name, message in (
        ("theirs", "model.safetensors is not a checkpoint of oltr_ext: choose another folder"),
        ("logged", "log.csv is no log of a run: choose another folder"),
    ):
        before = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for resume in (True, False):
            with pytest.raises(ValueError, match=message):
                train(given, tmp_path / name, resume=resume)
        after = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.name != ".lock"}
        assert after == before
    run = shutil.copytree(finished, tmp_path / "run")
    for name in ("last", "previous"):  # as one does to save room
        (run / f"{name}.safetensors").unlink()
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(OtherRunError, match="holds a run with seed = 0, and this one asks for 1"):
        train(make_config({**config(data), "seed": 1}), run)
    assert (run / "model.safetensors").read_bytes() == before
    (run / "tensorboard/mine.txt").write_text("kept")
    train(make_config({**config(data), "seed": 1}), run, resume=False)
    assert (run / "model.safetensors").read_bytes() != before
    assert (run / "tensorboard/mine.txt").read_text() == "kept"
    assert len(list((run / "tensorboard").iterdir())) == 2


@pytest.mark.parametrize("at", [0, 2])
def test_tensorboard_shows_what_log_csv_says(tmp_path, at):
    """Killed after four rows, with a checkpoint at that step, and gone on from there."""
    with Logs(tmp_path) as logs:
        places = [logs.position()]
        for step in (1, 2, 3, 4):
            logs.row({"step": step, "loss": step / 8}, step)
            places.append(logs.position())
    time.sleep(1.1)  # TensorBoard's files are named by the second
    with Logs(tmp_path, position=places[at], step=at) as logs:
        for step in range(at + 1, 6):
            logs.row({"step": step, "loss": step / 4}, step)
    rows = [
        (int(r["step"]), float(r["loss"])) for r in csv.DictReader((tmp_path / "log.csv").open())
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in board.Scalars("loss")] == rows and len(rows) == 5


def test_a_log_that_cannot_be_opened_says_why(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("notes")
    with pytest.raises(FileExistsError, match="tensorboard"), Logs(tmp_path) as logs:
        logs.row({"step": 1}, 1)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writeheader", full)
    with pytest.raises(OSError, match="No space left"), Logs(tmp_path / "run") as logs:
        logs.row({"step": 1}, 1)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains(data, tmp_path, amp):
    values = config(data)
    once = {stage: {**values[stage], "epochs": 1} for stage in ("stage1", "stage2")}
    train(make_config({**values, **once, "amp": amp}), tmp_path)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) + 2.0
    scale = checkpoint.load(tmp_path / "last.safetensors")[1]["scaler"]
    assert bool(scale) == (amp == "fp16")


def test_stage_1_may_lack_the_score_of_stage_2(data, tmp_path):
    values = {**config(data), "open_set": {"score": "reachability"}}
    train(make_config(values), tmp_path)
    first, last = (
        checkpoint.load(tmp_path / f"{name}.safetensors")[1]["threshold"]["score"]
        for name in ("best_stage1", "model")
    )
    assert (first, last) == ("max_softmax", "reachability")


def test_a_class_without_images_is_carried_along(data, tmp_path):
    values = config(data)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\nnever seen\n")
    values["data"] = {**values["data"], "class_names": str(tmp_path / "names.txt")}
    values["stage2"] = {**values["stage2"], "class_prior": 1.0, "classifier_init": "means"}
    path = train(make_config(values), tmp_path / "out")
    header = checkpoint.load(path)[1]
    assert header["class_names"][-1] == "never seen"
    assert header["shape"]["train_counts"] == [*COUNTS, 0]


def test_stage2_starts_from_means_of_what_it_will_see(data, finished, tmp_path, monkeypatch):
    """With nothing learned in stage 2, its memory is the class means of its own features."""
    values = config(data)
    values["stage2"] = {
        **values["stage2"],
        "epochs": 1,
        "lr": {"feature": 0.0, "classifier": 0.0, "centroid": 0.0},
        "freeze": ["backbone"],
    }
    path = train(make_config(values), tmp_path)
    from oltr_ext.engine.evaluate import stream

    trained = load_trained(path, device="cpu")
    splits = load_splits(trained.config.data)
    batches = stream(trained.model, splits.plain, torch.device("cpu"))
    features, target = (torch.cat(part) for part in zip(*batches, strict=True))
    means = torch.stack([features[target == c].mean(0) for c in range(4)])
    memory = trained.model.head.memory
    torch.testing.assert_close(memory.centroids.detach(), means, rtol=1e-5, atol=1e-6)
    assert memory.counts.tolist() == list(COUNTS)


def test_learning_rates_follow_the_schedules():
    base = {"epochs": 30, "lr": {"feature": 1, "classifier": 1}}
    data = {"kind": "icons"}

    def factors(**schedule):
        stage = make_config({"data": data, "stage1": {**base, "schedule": schedule}}).stage1
        return [lr_factor(stage, step, 10) for step in range(300)]

    step = factors(kind="step", every=10, factor=0.1)
    assert step[0] == step[99] == 1 and step[100] == pytest.approx(0.1)
    assert step[299] == pytest.approx(0.01)
    cosine = factors(kind="cosine", warmup=2)
    assert cosine[0] == pytest.approx(0.05) and max(cosine) == cosine[20] == 1.0
    assert cosine[160] == pytest.approx(0.5) and 0 < cosine[299] < 1e-4
    assert set(factors(kind="constant")) == {1.0}


def test_parameter_groups_and_no_decay_on_centroids(data):
    run = make_config(config(data))
    model = build_model(run, 2, load_splits(run.data)).freeze(["backbone"])
    groups = {g["name"]: g for g in build_optimizer(model, run.stage2).param_groups}
    assert set(groups) == {"feature", "classifier", "centroid"}
    assert groups["centroid"]["weight_decay"] == 0 and groups["feature"]["weight_decay"] == 5e-4
    assert [tuple(p.shape) for p in groups["centroid"]["params"]] == [(4, 256)]
    expected = [*model.attention.parameters(), *model.fc.parameters()]
    assert {id(p) for p in groups["feature"]["params"]} == {id(p) for p in expected}


def test_epochs_ask_for_nothing_that_sets_want(data, tmp_path, monkeypatch):
    """The log-probability of the true class is a sum over all logits in float64."""
    from oltr_ext.engine import evaluate
    from oltr_ext.engine import train as training

    calls = []
    for module, name in ((evaluate, "true_log_probability"), (training, "settle")):
        real = getattr(module, name)

        def noted(*args, real=real, name=name):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, noted)
    train(make_config({**config(data), "stage2": None}), tmp_path)
    assert calls[0] == "settle" and "true_log_probability" in calls
