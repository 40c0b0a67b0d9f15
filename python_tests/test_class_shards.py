"""Runs whose processes share the classes are those of one process, and go on in any number."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.distributed as dist
from nets import drawn, saved
from pair import group, in_float64, in_pair, in_processes, near, settings, stopping_at
from sharded_answers import none_whole
from test_backbones_whole import values as whole_net
from test_shared_files import never_whole
from tiny import COUNTS, same_run

from oltr_ext.config.loading import make_config
from oltr_ext.engine import checkpoint, class_shards
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import _Run, train
from oltr_ext.serve.trained import load_trained

KINDS = ("memory", "openmax")  # the second of which cannot share its classes, but in stage 1


def _settings(data, kind, classes):
    """Batches that divide by one to four processes."""
    made = settings(data, kind, distributed={"classes": classes})
    stages = {}
    for name in ("stage1", "stage2"):
        stage = getattr(made, name)
        if stage is not None and stage.epochs:
            stages[name] = stage.model_copy(update={"batch_size": 12})
    return made.model_copy(update=stages)


def _runs(rank, data, out):
    with group(rank, out, 4), in_float64(), none_whole():
        train(_settings(data, "openmax", "all"), out / "openmax")
        asked = _settings(data, "memory", "all")
        with never_whole(len(COUNTS)):
            train(asked, out / "memory")
            train(_settings(data, "memory", 2), out / "two_groups")
            train(_settings(data, None, "all"), out / "first")
            train(asked, out / "second", stage1=out / "first")
        with stopping_at(2, step=2), pytest.raises(KeyboardInterrupt):
            train(asked, out / "parts")
        dist.barrier()
        if rank == 0:
            for number in (3, 2, 1):
                shutil.copytree(out / "parts", out / f"on_{number}")
        dist.barrier()
        with never_whole(len(COUNTS)):
            train(asked, out / "parts")
        with pytest.raises(ValueError, match=r"distributed.classes: 3 processes .* divide the 4"):
            train(_settings(data, "memory", 3), out / "refused")


def _go_on(rank, data, folder, number):
    with group(rank, folder, number), in_float64():
        asked = _settings(data, "memory", "all")
        tensors, header, _ = checkpoint.load_latest(folder)
        assert header["state"]["stage"] == 2 and header["state"]["step"] == 1
        dist.barrier()
        splits = load_splits(asked.data)
        run = _Run(
            asked.model_copy(update={"data": splits.data}), splits, folder, _mute, True, None
        )
        shared = run.model.head.layout.shard
        assert (shared is None) == (number == 1)
        again = {**run.weights(), **class_shards.momentum(run.optimizer, run.model, "momentum.")}
        assert again.keys() == tensors.keys() and any("momentum.head" in name for name in again)
        for name, value in tensors.items():
            assert torch.equal(class_shards.whole(again[name]), value), name
        train(asked, folder)


def _tuned(rank, values, out):
    with group(rank, out):
        run = train(make_config(values), out / "run")
        assert train(make_config(values), out / "run") == run


def test_a_tuned_model_holds_what_was_trained_alone(data, tmp_path):
    weights = saved(drawn("test_resnet"), tmp_path / "net.pth")
    net = {"backbone": "timm:test_resnet", "weights": weights, "tune": "bias_and_norms"}
    in_pair(_tuned, {**whole_net(data, net), "distributed": {"classes": "all"}}, tmp_path)
    tensors, header = checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert header["state"]["stage"] == 2 and header["base"]["weights"] == weights
    assert "model.backbone.body.conv1.0.weight" not in tensors
    assert "model.backbone.body.bn1.weight" in tensors
    load_trained(tmp_path / "run", device="cpu")


def _mute(line):
    pass


@pytest.fixture(scope="module")
def shared(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    in_processes(4, _runs, data, out)
    return out


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    with in_float64():
        for kind in KINDS:
            train(_settings(data, kind, None), out / kind)
    return out


@pytest.mark.parametrize("kind", [*KINDS, "two_groups"])
def test_four_processes_give_what_one_gives(shared, alone, kind):
    near(alone / kind.replace("two_groups", "memory"), shared / kind)


def test_stage_2_starts_from_another_run(shared):
    one, two = (checkpoint.load(shared / n / "model.safetensors")[0] for n in ("memory", "second"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        if not name.endswith(".residual"):  # a basis of its space, of which there are many
            torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-7, msg=name)


def test_they_resume_to_the_same_bits(shared):
    same_run(shared / "memory", shared / "parts")


@pytest.mark.parametrize("number", [3, 2, 1])
def test_other_numbers_go_on(data, shared, number):
    in_processes(number, _go_on, data, shared / f"on_{number}", number)
    near(shared / "memory", shared / f"on_{number}")
