"""Several processes give what one gives: the pieces, whole runs, resuming, and how they fail."""

from __future__ import annotations

import csv
import io
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from pair import KINDS, group, in_float64, in_pair, near, settings, stopping_at
from tiny import config, same_run, write_data
from torch import nn

from oltr_ext.cli import main
from oltr_ext.config.loading import ConfigError, make_config
from oltr_ext.engine import checkpoint, distributed
from oltr_ext.engine.batchnorm import synchronise
from oltr_ext.engine.train import TrainingError, train
from oltr_ext.models import OLTRModel
from oltr_ext.nn import FocalLoss, FSLwFHead, LiftedStructureLoss, LinearHead, OLTRHead, RangeLoss


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    return folder


# The pieces, in float64 where they can be exact.


def _pieces(rank, folder):
    with group(rank, folder):
        _gathers_and_averages(rank)
        _heads(rank)


def _gathers_and_averages(rank):
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(8, 3, 2, 5, dtype=torch.float64, generator=generator) * 3 + 7
    weight = torch.randn(8, 3, 2, 5, dtype=torch.float64, generator=generator)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    own = slice(4 * rank, 4 * rank + 4)

    for make in (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, affine=False, momentum=None)):
        alone, shared = make().double(), nn.Sequential(make().double())
        if alone.affine:
            nn.init.normal_(alone.weight, generator=generator)
            nn.init.normal_(alone.bias, generator=generator)
        shared[0].load_state_dict(alone.state_dict())
        names = list(shared.state_dict())
        synchronise(shared)
        assert list(shared.state_dict()) == names
        for _ in range(2):
            x, x_own = whole.clone().requires_grad_(), whole[own].clone().requires_grad_()
            y, y_own = alone(x), shared(x_own)
            torch.testing.assert_close(y_own, y[own])
            (y.sin() * weight).sum().div(8).backward()
            (y_own.sin() * weight[own]).sum().div(4).backward()
            torch.testing.assert_close(x_own.grad / 2, x.grad[own])  # W times: see the module
        distributed.average([p.grad for p in shared.parameters()])
        for p, q in zip(alone.parameters(), shared.parameters(), strict=True):
            torch.testing.assert_close(q.grad, p.grad)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[f"0.{name}"], value)
        torch.testing.assert_close(shared.eval()(whole), alone.eval()(whole))

    # bfloat16, channels last: as exact as BatchNorm's own
    x = whole.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    alone, shared = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    synchronise(shared)
    x_own = x[own].detach().requires_grad_()
    y, y_own = alone(x), shared(x_own)
    assert y_own.dtype == torch.bfloat16
    assert y_own.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y_own, y[own])
    y_own.sum().backward()
    assert x_own.grad.dtype == torch.bfloat16

    # pairs across processes
    rows = whole.flatten(1)
    x, x_own = rows.clone().requires_grad_(), rows[own].clone().requires_grad_()
    loss = LiftedStructureLoss(20.0)
    loss(x, target).backward()
    features, labels = distributed.gather(x_own, target[own])
    assert torch.equal(features, rows) and torch.equal(labels, target)
    loss(features, labels).backward()
    assert x.grad.abs().max() > 0.01
    torch.testing.assert_close(x_own.grad / 2, x.grad[own])

    # an overflow in one process is skipped in both
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler.scale(parameter.sum()).backward()
    if rank == 1:
        parameter.grad[0] = torch.inf
    distributed.average([parameter.grad])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0 and torch.equal(parameter.detach(), torch.ones(2))

    # large and small tensors, each once
    many = [torch.full((n,), float(rank + i)) for i, n in enumerate((3, 9, 2, 2))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET", 8)
        distributed.average(many)
    assert [t.unique().tolist() for t in many] == [[0.5 + i] for i in range(4)]

    flags = torch.tensor([rank == 0, rank == 1, False])
    distributed.unite(flags)
    assert flags.tolist() == [True, True, False]
    assert distributed.mean(torch.tensor(float(rank))) == 0.5
    assert distributed.mean(torch.tensor([1.0, torch.nan][rank])) != 0.5
    batch = np.arange(16).reshape(8, 2)
    parts = list(distributed.share([batch, batch + 100], parts=2))
    assert len(parts) == 4 and (parts[1] == batch[4 + 2 * rank : 6 + 2 * rank]).all()
    assert (parts[2] == 100 + batch[2 * rank : 2 * rank + 2]).all()


def _heads(rank):
    """The mean of the losses is the batch's, gradients too, for each way that heads see a batch."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 6) * 2, torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    x[:4] *= 3  # mean squared distances on either side of the margin
    own = slice(4 * rank, 4 * rank + 4)
    prior = torch.tensor([4.0, 2.0, 2.0])
    strong = {"feature_loss_weight": 1.0, "repel_weight": 1.0, "class_prior": prior}
    for head in (
        OLTRHead(6, 3, margin=110.0, **strong),
        OLTRHead(6, 3, margin=110.0, compat="official", **strong),
        LinearHead(6, 3, metric=RangeLoss(), class_prior=prior),
        LinearHead(6, 3, criterion=FocalLoss()),
        FSLwFHead(6, (4, 2, 1), base_shots=2, fake=1),
    ):
        torch.manual_seed(1)
        loss = head.loss(x, target)
        alone = torch.autograd.grad(loss, list(head.parameters()), allow_unused=True)
        torch.manual_seed(1)
        shared = head.loss(x[own], target[own], gather=distributed.gather)
        assert distributed.mean(shared) == pytest.approx(loss.item(), rel=1e-5)
        parts = torch.autograd.grad(shared, list(head.parameters()), allow_unused=True)
        distributed.average([g for g in parts if g is not None])
        for (name, _), a, b in zip(head.named_parameters(), alone, parts, strict=True):
            assert (a is None) == (b is None), name
            if a is not None:
                torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_the_pieces(tmp_path):
    in_pair(_pieces, tmp_path)


def test_one_process_where_nobody_says_how_many(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    with distributed.joined():
        assert distributed.world() == 1 and not dist.is_initialized()


# Whole runs.


def _runs(rank, data, broken, out):
    with group(rank, out):
        _good_runs(data, out)
        _bad_runs(data, broken, out)


def _good_runs(data, out):
    train(settings(data, "memory", amp="fp16"), out / "fp16")
    with in_float64():
        for kind in KINDS:
            train(settings(data, kind), out / kind)
        # stopped in either stage, both at once
        often = settings(data, "memory", checkpoint_every=1)
        for stage in (1, 2):
            with stopping_at(stage, step=2), pytest.raises(KeyboardInterrupt):
                train(often, out / "parts")
        if distributed.lead():
            shutil.copytree(out / "parts", out / "for_one")
        distributed.barrier()
        train(often, out / "parts")


def _bad_runs(data, broken, out):
    often = settings(data, "memory", checkpoint_every=1)
    # what is wrong in one process ends both, with the same words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OLTRModel, "features", _poisoned(OLTRModel.features))
        with pytest.raises(TrainingError, match="the loss is nan after step 2 of stage 1"):
            train(often, out / "nan")
    assert checkpoint.load_latest(out / "nan")[1]["state"]["step"] == 1
    odd = settings(data, None, stage1={**often.stage1.model_dump(), "batch_size": 7})
    with pytest.raises(ValueError, match=r"batch_size: 7 does not divide by 2 .*can be 1, 7"):
        train(odd, out / "odd")

    # two unreadable images, each seen by one process (each image comes once, and this seed deals
    # them so) and counted in both
    images = {**config(data)["data"], "val": str(broken / "val.txt"), "max_bad_images": 2}
    images["train"] = str(broken / "train.txt")
    once = {**often.stage1.model_dump(), "batch_size": 10}
    said = []
    train(settings(data, None, data=images, stage1=once), out / "bad", say=said.append)
    words = ["2 of 30 images cannot be read, the first broken.png", "1 of 17 images"]
    found = [sum(word in line for line in said) for word in words]
    assert found == ([1, 1] if distributed.lead() else [0, 0]), said
    images["max_bad_images"] = 1
    with pytest.raises(ValueError, match=f"{words[0]}; data.max_bad_images = 1"):
        train(settings(data, None, data=images, stage1=once), out / "worse")


def _poisoned(features):
    calls = []

    def poison(self, images):
        calls.append(self.training)
        out = features(self, images)
        return out * float("nan") if sum(calls) == 2 and distributed.rank() == 1 else out

    return poison


@pytest.fixture(scope="module")
def broken(data, tmp_path_factory):
    """Lists with two unreadable images for training, one of validation, in place of good ones."""
    folder = tmp_path_factory.mktemp("broken")
    (data / "broken.png").write_bytes((data / "train_0_0.png").read_bytes()[:300])
    (data / "text.png").write_text("no image")
    lines = (data / "train.txt").read_text().splitlines()
    lines[3], lines[-1] = "broken.png 0", "text.png 3"
    (folder / "train.txt").write_text("\n".join(lines))
    lines = (data / "val.txt").read_text().splitlines()
    (folder / "val.txt").write_text("\n".join([lines[0], "text.png 1", *lines[1:]]))
    return folder


@pytest.fixture(scope="module")
def pair(data, broken, tmp_path_factory):
    out = tmp_path_factory.mktemp("pair")
    in_pair(_runs, data, broken, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_what_one_gives(data, pair, kind, tmp_path):
    with in_float64():
        train(settings(data, kind), tmp_path)
    near(tmp_path, pair / kind)


def test_mixed_precision_in_two_processes(data, pair, tmp_path):
    """Which steps overflow may differ, for the loss of a process is a mean over fewer rows."""
    train(settings(data, "memory", amp="fp16"), tmp_path)
    one, two = (list(csv.DictReader((p / "log.csv").open())) for p in (tmp_path, pair / "fp16"))
    assert float(one[0]["loss"]) == pytest.approx(float(two[0]["loss"]), rel=0.01)
    assert [row["step"] for row in one] == [row["step"] for row in two]
    assert checkpoint.load(pair / "fp16" / "last.safetensors")[1]["scaler"]["scale"] > 1


def test_two_processes_resume_to_the_same_bits(pair):
    same_run(pair / "memory", pair / "parts")


def test_one_process_goes_on_with_the_run_of_two(data, pair):
    said = []
    with in_float64():
        train(settings(data, "memory"), pair / "for_one", say=said.append)
    assert said[0] == f"going on from stage 2, step 1 in {pair / 'for_one'}"
    near(pair / "memory", pair / "for_one")


def _command(rank, commands):
    """`oltr` as torchrun starts it, which keeps the store; (code, out, err) of each command."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="localhost", TORCHELASTIC_USE_AGENT_STORE="True")
    said = []
    for port, words in commands:
        os.environ["MASTER_PORT"] = str(port)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main(words)
            except SystemExit as stop:
                code = stop.code
        said.append((code, out.getvalue(), err.getvalue()))
    return said


def test_the_command_under_torchrun(data, broken, tmp_path):
    """One of them speaks, and a process that fails ends the other too."""
    values = {**config(data), "stage2": None}
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(values))
    values["data"] = {**values["data"], "train": str(broken / "train.txt")}
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(values))
    stores = [
        dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False) for _ in range(2)
    ]
    runs = [
        ["train", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]
        for name in ("good", "broken")
    ]
    commands = [(store.port, words) for store, words in zip(stores, runs, strict=True)]
    (good, bad), (silent, bad_too) = in_pair(_command, commands)
    assert good[:2] == (0, f"model  {tmp_path}/good/model.safetensors\n") and silent == (0, "", "")
    first, images, steps, *epochs, floor = good[2].splitlines()
    assert first.startswith("4 classes, 30 training images (14 to 3 a class); stage 1: 2 epochs")
    assert images.startswith("images: 16 x 16 (pad), augmented by `gentle`")
    assert steps.startswith("6 steps are few")
    assert floor.startswith("warning: val ")  # after two epochs
    lines = [*(f"stage 1/1, epoch {n}/2" for n in (1, 2)), "unknown"]
    assert [line.split(":")[0] for line in epochs] == lines
    assert bad[0] == bad_too[0] == 1 and not bad[1] and not bad_too[1]
    told = bad[2].removeprefix(f"{first}\n{images}\n{steps}\n") + bad_too[2]
    assert told.count("\n") == 1 and told.startswith("oltr: "), told
    assert "cannot read image" in told


# In one process.


def test_loader_processes_change_nothing(data, broken, tmp_path):
    """Not the bits, with unreadable images in the list, and not where a run goes on."""
    images = {**config(data)["data"], "train": str(broken / "train.txt"), "max_bad_images": 2}
    train(settings(data, "memory", data=images), tmp_path / "whole")
    fetched = settings(data, "memory", data={**images, "workers": 1})
    with stopping_at(1, step=2), pytest.raises(KeyboardInterrupt):
        train(fetched, tmp_path / "parts")
    train(fetched, tmp_path / "parts")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_accumulated_parts_are_the_whole_batch(data, tmp_path, monkeypatch):
    whole = settings(data, "crt")  # no BatchNorm and no coupled loss in its stage 2
    parts = whole.stage2.model_copy(update={"accumulate": 4})
    features, sizes = OLTRModel.features, []

    def watched(self, images):
        sizes.append(len(images) if self.training else 0)
        return features(self, images)

    monkeypatch.setattr(OLTRModel, "features", watched)
    with in_float64():
        train(whole, tmp_path / "whole")
        assert set(sizes) == {8, 0}
        train(whole.model_copy(update={"stage2": parts}), tmp_path / "parts")
    assert sizes.count(2) == 4 * 3
    near(tmp_path / "whole", tmp_path / "parts")


def test_accumulated_runs_resume_to_the_same_bits(data, tmp_path):
    values = config(data)
    for stage in ("stage1", "stage2"):
        values[stage] = {**values[stage], "epochs": 1, "accumulate": 2}
    run = make_config(values)
    train(run, tmp_path / "whole")
    with stopping_at(2, step=3), pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "parts")
    train(run, tmp_path / "parts")
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_batches_that_cannot_be_shared_are_refused(data, tmp_path):
    run = settings(data, "memory")
    odd = run.model_copy(update={"stage2": run.stage2.model_copy(update={"accumulate": 3})})
    with pytest.raises(ValueError, match=r"stage2\.batch_size: 8 does not divide by 1 process x "):
        train(odd, tmp_path)
    values = config(data)
    values["stage2"] = {**values["stage2"], "compat": "official", "accumulate": 2}
    with pytest.raises(ConfigError, match=r"stage2: .*official needs accumulate = 1"):
        make_config(values)
