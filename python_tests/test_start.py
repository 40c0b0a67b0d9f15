"""What a run checks before it starts: its folder, its data, and what stage 2 will need."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
from socket import gethostname

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import config, stop_after

from oltr_ext.config.loading import make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint, preflight
from oltr_ext.engine.lock import BusyError, locked
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, _Run, train
from oltr_ext.models import OLTRModel


def test_stage_1_of_an_unlike_run_is_refused(data, finished, tmp_path):
    values = {**config(data), "stage2": None}
    with pytest.raises(ValueError, match="no stage 2"):
        train(make_config(values), tmp_path / "a", stage1=finished)
    with pytest.raises(ValueError, match="holds the model of a stage 2"):
        train(make_config(config(data)), tmp_path / "b", stage1=finished)
    train(make_config({**values, "seed": 3}), tmp_path / "one")
    with pytest.raises(
        ValueError,
        match=r"seed = 3, and this one asks for 0; the same command with --set stage2=null",
    ):
        train(make_config(config(data)), tmp_path / "c", stage1=tmp_path / "one")
    with pytest.raises(ValueError, match="no run"):
        train(make_config(config(data)), tmp_path / "c", stage1=tmp_path / "nowhere")


def test_a_run_goes_on_from_its_own_stage_1(data, finished, tmp_path):
    values = config(data)
    for seed in (0, 1):
        one = make_config({**values, "stage2": None, "seed": seed})
        train(one, tmp_path / f"one{seed}")
    run = make_config(values)
    path = train(run, tmp_path / "two", stage1=tmp_path / "one0")
    assert train(run, tmp_path / "two", stage1=tmp_path / "one0") == path
    assert train(run, tmp_path / "two") == path
    for folder, other in ((tmp_path / "two", "one1"), (finished, "one0")):
        with pytest.raises(OtherRunError, match=r"holds a run that did not start from .*model"):
            train(run, folder, stage1=tmp_path / other)


def test_stage_1_must_be_finished(data, tmp_path, monkeypatch):
    values = config(data)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(make_config({**values, "stage2": None}), tmp_path / "one")
    for name, message in (
        ("last.safetensors", r"was written \d steps before the end of its stage 1"),
        ("", r"one is no finished run: it has no model.safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            train(make_config(values), tmp_path / "two", stage1=tmp_path / "one" / name)


def test_a_finished_run_is_not_trained_again(data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(OLTRModel, "features", None)
    path = train(make_config(config(data)), finished)
    assert path == finished / "model.safetensors"


def test_another_run_is_never_overwritten_unasked(data, finished, tmp_path):
    values = config(data)
    values["stage1"] = {**values["stage1"], "epochs": 4}
    with pytest.raises(
        OtherRunError, match=r"stage1.epochs = 2, and this one asks for 4; .*--fresh"
    ):
        train(make_config(values), finished)
    # what cannot change the result may change
    assert train(make_config({**config(data), "checkpoint_every": 5}), finished).exists()


def test_a_run_of_other_classes_is_told_by_the_first(data, tmp_path):
    names = tmp_path / "names.txt"
    values = {**config(data), "stage2": None}
    values["data"] = {**values["data"], "class_names": str(names)}
    names.write_text("a\nb\nc\nd\n")
    train(make_config(values), tmp_path / "run")
    names.write_text("a\nc\nb\nd\n")
    with pytest.raises(OtherRunError, match=r"run holds a run whose class 1 is 'b', not 'c'; "):
        train(make_config(values), tmp_path / "run")


def test_fresh_removes_the_run_and_nothing_else(data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "memory.safetensors").write_text("mine")
    train(make_config({**config(data), "seed": 5, "stage2": None}), tmp_path)
    train(make_config({**config(data), "stage2": None}), tmp_path, resume=False)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "memory.safetensors").read_text() == "mine"
    assert checkpoint.load(tmp_path / "last.safetensors")[1]["config"]["seed"] == 0


def test_files_of_others_stay_whatever_their_name(data, finished, tmp_path):
    given = make_config(config(data))
    splits = load_splits(given.data)
    whole = (finished / "last.safetensors").read_bytes()
    for name in (*checkpoint.OF_TRAINING, checkpoint.MODEL):
        (tmp_path / name).mkdir()
        file = tmp_path / name / name
        save_file({"resnet.weight": torch.ones(3)}, file)
        before = file.read_bytes()
        for resume in (True, False):
            with pytest.raises(ValueError, match=f"{name} is not a checkpoint .* another folder"):
                train(given, tmp_path / name, resume=resume)
        assert file.read_bytes() == before
        for ours in (whole[:-1], b""):  # damaged, and nobody else's
            file.write_bytes(ours)
            preflight.check_folder(tmp_path / name, given, splits, fresh=True, say=print)
    (tmp_path / "board").mkdir()
    (tmp_path / "board/tensorboard").write_text("notes")
    with pytest.raises(ValueError, match="tensorboard is no folder: choose another folder"):
        train(given, tmp_path / "board")


def test_a_stage_1_in_the_same_folder_is_not_removed(data, tmp_path):
    out = tmp_path / "run"
    train(make_config({**config(data), "stage2": None}), out)
    before = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    for stage1 in (out, out / "model.safetensors", out / "best.safetensors", tmp_path / "x/../run"):
        for resume in (True, False):
            with pytest.raises(ValueError, match="would be written over by what starts from it"):
                train(make_config(config(data)), out, resume=resume, stage1=stage1)
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == before


def test_epochs_are_compared_under_one_expectation(data, tmp_path, monkeypatch):
    values, said = {**config(data), "stage2": None, "select": "best"}, []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)  # in the second of two epochs
        train(make_config(values), tmp_path / "run")
    other = make_config({**values, "test_prior": "val"})
    with pytest.raises(OtherRunError, match="choosing its epoch under test_prior: balanced, and"):
        train(other, tmp_path / "run")
    train(make_config(values), tmp_path / "run")
    train(other, tmp_path / "run", say=said.append)
    assert any("keeps the epoch that did best under test_prior: balanced" in s for s in said)


def test_few_steps_are_told(data):
    """30 images in batches of 8 are 3 steps an epoch."""

    def line(epochs, **changes):
        values = {**config(data), **changes}
        values["stage1"] = {**values["stage1"], "epochs": epochs}
        made = make_config({**values, "stage2": None})
        splits = load_splits(made.data)
        said = preflight.outline(made, splits, torch.device("cpu")).splitlines()
        return [each for each in said if "steps" in each]

    (few,) = line(10)
    assert few.startswith("30 steps are few for a network that starts at random")
    assert few.endswith("epochs: auto would be 334 epochs in all instead of 10")
    assert line(134) == []  # 402 steps
    weights = {"backbone": "torchvision:resnet18", "weights": "DEFAULT"}
    assert line(10, model=weights) == []


def test_errors_of_data_and_size(data, tmp_path):
    values = config(data)
    for stage in ("stage1", "stage2"):
        values[stage] = {**values[stage], "batch_size": 31}
    said = r"^stage1\.batch_size: 31 is more than the 30 training images: "
    less = "--set stage1.batch_size=4 --set stage2.batch_size=4"
    with pytest.raises(ValueError, match=f"{said}{less}$"):
        train(make_config(values), tmp_path)
    (tmp_path / "val.txt").write_text((data / "val.txt").read_text() + "val_0_0.png 4\n")
    values = config(data)
    values["data"] = {**values["data"], "val": str(tmp_path / "val.txt")}
    with pytest.raises(
        ValueError, match=r"val.txt:17: label 4 is out of range: there are 4 classes"
    ):
        load_splits(make_config(values).data)


FITTED = {"lr": {"feature": 0, "classifier": 0.1}, "epochs": 1, "batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage2": {"fc": 32}}, r"stage2\.fc: .* features have 256 numbers, and not 32"),
        ({"stage2": {"fc": None}, "stage1": {"fc": 32}}, r"features have 32 numbers, and not 256"),
        ({"stage2": {"freeze": ["trunk"]}}, r"stage2: OLTRModel\.freeze: no part named 'trunk'"),
        (
            {"stage2": {"attention": False, "freeze": ["backbone", "fc", "head"]}},
            "stage2: optimizer got an empty parameter list",
        ),
        ({"stage2": {"kind": "fslwf", **FITTED, "base_shots": 99}}, "stage2: .* 99 images, got no"),
        ({"open_set": {"rule": "f_measure"}, "data": {"open_val": None}}, "open validation images"),
        ({"open_set": {"score": "openmax"}}, r"open_set\.score: OLTRHead has no score openmax"),
        (
            {"stage2": {"kind": "ncm"}, "open_set": {"score": "reachability"}},
            r"open_set\.score: LinearHead has no score reachability",
        ),
        ({"stage2": None, "open_set": {"score": "nearest_distance"}}, "LinearHead has no score"),
    ],
)
def test_what_stage_2_lacks_is_told_before_stage_1(data, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(_Run, "train_stage", None)
    values = config(data)
    for group, keys in changes.items():
        whole = keys is None or "kind" in keys
        values[group] = keys if whole else {**values.get(group, {}), **keys}
    with pytest.raises(ValueError, match=message):
        train(make_config(values), tmp_path)


SMALL = {"data": {"image_size": 8}}  # whose last maps are of 1 x 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage1": {"batch_size": 1}}, r"stage1\.batch_size: 1 is too few for the BatchNorm"),
        ({"stage2": {"batch_size": 1}}, r"stage2\.batch_size: 1 is too few .* images of 8 x 8: "),
        (
            {"stage1": {"accumulate": 8}},
            r"stage1\.batch_size: 8, in 8 parts \(accumulate\), is too few for",
        ),
        ({"stage2": {"batch_size": 1, "freeze": ["backbone"]}}, None),
        ({"stage1": {"batch_size": 1}, "data": {"image_size": 16}}, None),
    ],
)
def test_a_batch_of_one_that_batchnorm_cannot_take(data, tmp_path, monkeypatch, changes, message):
    class Begun(Exception):
        pass

    def begin(self):
        raise Begun

    monkeypatch.setattr(_Run, "train_stage", begin)
    values = config(data)
    for group, keys in {**SMALL, **changes}.items():
        values[group] = {**values[group], **keys}
    with pytest.raises(Begun if message is None else ValueError, match=message):
        train(make_config(values), tmp_path)


def test_an_odd_width_for_the_attention_is_told_before_stage_1(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(8) % 2
    parts = {part: (rng.random((8, 5), np.float32), labels) for part in ("train", "val", "test")}
    write_embeddings(tmp_path / "odd", parts, ["a", "b"])
    stage = {**config(tmp_path)["stage1"], "batch_size": 4}
    values = {"data": {"kind": "embeddings", "root": str(tmp_path / "odd")}, "stage1": stage}
    with pytest.raises(ValueError, match=r"stage2: .* even number of channels, got 5"):
        train(make_config({**values, "stage2": stage}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_needs_known_images(data, tmp_path):
    values = config(data)
    (tmp_path / "val.txt").write_text("val_0_0.png -1\n")
    values["data"] = {**values["data"], "val": str(tmp_path / "val.txt")}
    with pytest.raises(ValueError, match=r"val\.txt lists no image of a known class"):
        load_splits(make_config(values).data)


def test_classes_without_an_image_are_told(data, tmp_path):
    values = config(data)
    lines = (data / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(s for s in lines if s.split()[1] != "0") + "\n")
    root = values["data"].get("root") or data
    values["data"] = {**values["data"], "train": str(tmp_path / "train.txt"), "root": str(root)}
    said = []
    train(make_config({**values, "stage2": None}), tmp_path / "out", say=said.append)
    told = "1 of 4 classes have no training image: 0 (labels count from 0)"
    assert told in said[0].splitlines(), said


def test_a_fresh_run_that_cannot_start_leaves_the_old_one(data, tmp_path):
    out = tmp_path / "out"
    train(make_config({**config(data), "stage2": None}), out)
    before = {p.name: p.read_bytes() for p in out.glob("*.safetensors")}
    values = config(data)
    values["stage2"] = {**values["stage2"], "fc": 32}
    with pytest.raises(ValueError, match=r"stage2\.fc: "):
        train(make_config(values), out, resume=False)
    with pytest.raises(ValueError, match="no run"):
        train(make_config(config(data)), out, resume=False, stage1=tmp_path / "nothing")
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == before


def _hold(folder, held, done):
    with locked(folder, "a test"):
        held.set()
        done.wait(60)


def test_a_folder_belongs_to_one_process(data, tmp_path):
    context = multiprocessing.get_context("forkserver")  # one import of torch for all the children
    context.set_forkserver_preload(["oltr_ext.engine.train"])
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held, done))
    other.start()
    try:
        assert held.wait(60)
        wanted = rf"out is in use by a test \(process {other.pid} on {re.escape(gethostname())}, "
        wanted += r"since 2\d+-\d\d-\d\d .*\); wait for it, or choose another folder"
        with pytest.raises(BusyError, match=wanted):
            train(make_config({**config(data), "stage2": None}), tmp_path / "out")
    finally:
        other.kill()  # its lock goes with it
        other.join()
    assert train(make_config({**config(data), "stage2": None}), tmp_path / "out").exists()


NO_LOCKS = ("ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EIO", "EPERM")


@pytest.mark.parametrize("name", NO_LOCKS)
def test_a_file_system_without_locks_holds_nothing_and_says_so(tmp_path, monkeypatch, name):
    """As NFS without a lock daemon and Lustre answer, to us and to filelock alike."""
    number, said, run = getattr(errno, name), [], tmp_path / "run"

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(run, "a test", said.append), locked(run, "a test", said.append):
        (run / "file").touch()
    line = f"{run} has no file locks ({os.strerror(number)}): nothing keeps another run out of it"
    assert said == [line, line] and (run / "file").exists()
    with locked(tmp_path / "empty", "a test"):
        pass
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", ["EAGAIN", "EACCES"])
def test_a_lock_that_another_holds_is_no_lack_of_locks(tmp_path, monkeypatch, name):
    def refuse(*_):
        raise OSError(getattr(errno, name), "held")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(BusyError, match="run is in use by another process;"),
        locked(tmp_path / "run", "a test"),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_errors_of_the_block_pass_through_its_lock(tmp_path):
    with pytest.raises(OSError, match="disk"), locked(tmp_path / "run", "a test"):
        raise OSError("disk")
    with (
        locked(tmp_path / "run", "a test"),
        pytest.raises(BusyError),
        locked(tmp_path / "run", "a test"),
    ):
        pass


@pytest.mark.parametrize("native", [True, False])
def test_arithmetic_that_the_processor_lacks_is_told(data, tmp_path, monkeypatch, native):
    for kind in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{kind}_supported", lambda: native)
    values, said = {**config(data), "device": "cpu", "stage2": None}, []
    train(make_config({**values, "amp": "bf16"}), tmp_path / "bf16", say=said.append)
    assert (
        said[0].endswith("amp: bf16 is emulated on this processor; amp: off is many times faster")
        != native
    )
    train(make_config(values), tmp_path / "off", say=said.append)
    assert "emulated" not in "".join(said[1:])
