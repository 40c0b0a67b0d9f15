"""What processes share is written, read and handed over without being whole in one of them."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pair import group, in_float64, in_processes
from test_methods import KINDS as SECOND
from tiny import arrays
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from oltr_ext.config.loading import make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint, class_shards, handover, names, pieces
from oltr_ext.engine.checkpoint import CheckpointError
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.tensorfile import TensorFile
from oltr_ext.nn import LinearHead, OLTRHead, best_tau, shard_classes

PROCESSES, CLASSES, WIDTH = 4, 10, 6
KINDS = ("memory", *(kind for kind in SECOND if kind not in ("crt", "fslwf", "openmax")))


@contextmanager
def never_whole(classes):
    """Nobody asks for all rows of what has one a class."""
    read = TensorFile.__getitem__

    def some(self, name):
        assert self.like[name].dim() < 2 or len(self.like[name]) != classes, f"{name} is whole"
        return read(self, name)

    def none(self):
        raise AssertionError(f"a tensor {tuple(self.shape)} is whole")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorFile, "__getitem__", some)
        patch.setattr(DTensor, "full_tensor", none)
        yield


def _head(device=None):
    torch.manual_seed(0)
    head = OLTRHead(WIDTH, CLASSES, class_prior=torch.rand(CLASSES) + 0.1, device=device)
    if device is None:
        rows = torch.randn(3 * CLASSES, WIDTH)
        head.init_from(None, rows, torch.arange(3 * CLASSES) % (CLASSES - 1))
    return head


def _file(mesh, out):
    """The bytes of one process's file, from pieces of at most 50; and its rows back."""
    head, sent = shard_classes(_head(), mesh), []
    send, receive = dist.send, dist.recv

    def watched(how):
        def call(data, other):
            sent.append(data.numel())
            how(data, other)

        return call

    with pytest.MonkeyPatch.context() as patch, never_whole(CLASSES):
        patch.setattr(pieces, "PIECE", 50)
        patch.setattr(dist, "send", watched(send))
        patch.setattr(dist, "recv", watched(receive))
        checkpoint.save(out / f"{mesh.ndim}.safetensors", head.state_dict(), {"step": 1})
        dist.barrier()
        sharing = mesh.ndim == 1 or dist.get_rank() < 2
        assert bool(sent) == sharing and all(0 < size <= 50 for size in sent)
        other = shard_classes(_head("meta"), mesh)
        found, header = checkpoint.opened(out / f"{mesh.ndim}.safetensors")
        assert header == {"step": 1} and found.keys() == head.state_dict().keys()
        model = SimpleNamespace(state_dict=other.state_dict, load_learned=other.load_state_dict)
        class_shards.load_learned(model, found)
    for (name, one), two in zip(
        head.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(pieces.here(one), pieces.here(two)), name
    assert torch.equal(head.memory._present, other.memory._present)


def _damaged(out):
    """All processes pass over a file alike, and say so alike where there is no other."""
    for step in (1, 2):
        checkpoint.save_last(out, {"x": torch.tensor(step)}, {"step": step})
    dist.barrier()
    assert checkpoint.load_latest(out)[1] == {"step": 2}
    dist.barrier()
    if dist.get_rank() == 0:
        data = bytearray((out / "last.safetensors").read_bytes())
        data[-1] ^= 1
        (out / "last.safetensors").write_bytes(data)
    dist.barrier()
    tensors, header, problems = checkpoint.load_latest(out)
    assert header == {"step": 1} and tensors["x"] == 1
    assert len(problems) == 1 and "is damaged: its checksum does not match" in problems[0]
    dist.barrier()
    assert (out / "last.safetensors.damaged").exists()
    dist.barrier()
    if dist.get_rank() == 0:
        (out / "previous.safetensors").write_bytes(b"nothing")
    dist.barrier()
    with pytest.raises(CheckpointError, match=r"previous\.safetensors is truncated or damaged"):
        checkpoint.load_latest(out)


def _handed_over(data, classes, kinds):
    """Every second stage starts as in one process, where its classes are shared."""
    rates = {"feature": 0.0, "classifier": 0.1}
    stage = {"epochs": 1, "batch_size": 8, "lr": rates}
    starts = {"classifier_init": "means", "selector_init": "zero", "attention": False}
    memory = {**stage, **starts, "lr": {**rates, "centroid": 0.1}}
    values = {"data": {"kind": "embeddings", "root": str(data), "shots": [8, 4]}, "stage1": stage}
    for kind in kinds:
        second = memory if kind == "memory" else SECOND[kind]
        alone = make_config({**values, "stage2": second})
        shared = make_config({**values, "stage2": second, "distributed": {"classes": classes}})
        splits, cpu, made = load_splits(alone.data), torch.device("cpu"), []
        for run in (alone, shared):
            models = []
            for stage in (1, 2):
                torch.manual_seed(stage)
                models.append(class_shards.built(run, stage, splits, cpu, weights=False))
            with never_whole(splits.num_classes) if run is shared else nullcontext():
                handover.hand_over(*models, run.stage2, splits, cpu)
            made.append(models[1].state_dict())
        assert any(isinstance(value, DTensor) for value in made[1].values())
        for name, value in made[0].items():
            got = class_shards.whole(made[1][name])
            torch.testing.assert_close(got, value, rtol=1e-12, atol=1e-12, msg=f"{kind} {name}")
            if kind in ("memory", "ncm", "lws"):
                assert torch.equal(got, value), (kind, name)


def _named(mesh):
    """Each process encodes the names of its own classes alone."""
    asked = []

    def texts(name, weights, some, templates):
        asked.append(list(some))
        rows = torch.stack([torch.full((WIDTH,), float(label)) for label in some])
        rows[:, 0] = 1
        return rows

    model = SimpleNamespace(backbone="open_clip:any", weights="any", templates=None)
    for kind in (LinearHead, OLTRHead):
        torch.manual_seed(0)
        whole = kind(WIDTH, CLASSES)
        torch.manual_seed(0)
        parted = shard_classes(kind(WIDTH, CLASSES), mesh)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(names, "text_directions", texts)
            for head in (whole, parted):
                names.start_at_names(head, SimpleNamespace(model=model), list("0123456789"))
        for (name, one), two in zip(
            whole.state_dict().items(), parted.state_dict().values(), strict=True
        ):
            assert torch.equal(one, class_shards.whole(two)), name
        assert len(asked[-2]) == CLASSES and len(asked[-1]) <= 3


def _tau(mesh):
    """A class that is ten times as long, here and there, beside processes without any."""
    weight, rows = torch.tensor([[10.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    layout = shard_classes(LinearHead(2, 2), mesh).layout
    for order in ([0, 1], [1, 0]):
        place = torch.tensor(order)
        own = layout.cut(weight[place])
        target, worth = place.argsort(), torch.ones(2)
        assert best_tau(own, rows, target, [1.0, 0.9, 0.8, 0.6, 0.0], worth, layout) == 0.8


def _bank(mesh, unread):
    """The means of a bank are shared too, and its scores are those of one process's."""
    torch.manual_seed(4)
    rows, target = torch.randn(40, WIDTH), torch.arange(40) % (CLASSES - 2)
    counts = target.bincount(minlength=CLASSES)
    counts[0] += unread
    counts[-2] = unread  # of a class whose images could not be read there is no mean
    whole, parted = _head(), shard_classes(_head(), mesh)
    for head in (whole, parted):
        head.fit_bank([(rows[:25], target[:25]), (rows[25:], target[25:])], counts)
    assert isinstance(parted.bank.means, DTensor) and len(parted.bank.means) == CLASSES - 2
    for (name, one), two in zip(
        whole.bank.state_dict().items(), parted.bank.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(class_shards.whole(two), one, rtol=1e-5, atol=1e-5, msg=name)
    own = torch.randn(1 + dist.get_rank(), WIDTH)
    want, got = (head.scores(head.outputs(own)) for head in (whole, parted))
    assert want.keys() == got.keys() and "relative_mahalanobis" in want
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4, msg=name)
    with parted.layout.same_rows():
        together = parted.scores(parted.outputs(rows))
    torch.testing.assert_close(
        together["mahalanobis"], whole.scores(whole.outputs(rows))["mahalanobis"]
    )


def _by_dcp(mesh, out):
    """What PyTorch's own writer of safetensors makes of a shared head: a file a process."""
    head = shard_classes(_head(), mesh)
    writer = HuggingFaceStorageWriter(str(out / "dcp"), save_distributed=True)
    dcp.save(head.state_dict(), storage_writer=writer)


def _reloaded(out, mesh):
    head = _head() if mesh is None else shard_classes(_head("meta"), mesh)
    if mesh is None:
        for value in head.state_dict().values():
            value.zero_()
    state = head.state_dict()
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(out / "dcp")))
    head.load_state_dict(state)
    for name, value in _head().state_dict().items():
        assert torch.equal(class_shards.whole(head.state_dict()[name]), value), name


def _all(rank, data, out):
    with group(rank, out, PROCESSES):
        line = init_device_mesh("cpu", (PROCESSES,))
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "class"))
        for mesh in (line, grid):
            _file(mesh, out)
            _tau(mesh)
            for unread in (0, 2):
                _bank(mesh, unread)
        _damaged(out / "run")
        _named(line)
        _by_dcp(line, out)
        with in_float64():
            _handed_over(data, "all", KINDS)
            _handed_over(data, 2, ("memory", "tau_norm"))


def _fewer(rank, out):
    with group(rank, out / "fewer", 3):
        _reloaded(out, init_device_mesh("cpu", (3,)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("shared")
    parts = arrays(classes=5)  # two processes of four have two of them, one has none
    features, labels = parts["train"]
    parts["train"] = features[labels != 1], labels[labels != 1]
    write_embeddings(out / "data", parts, list("abcde"))
    for folder in ("run", "fewer"):
        os.mkdir(out / folder)
    in_processes(PROCESSES, _all, out / "data", out)
    return out


def test_four_processes_write_the_bytes_of_one(written, tmp_path):
    checkpoint.save(tmp_path / "one.safetensors", _head().state_dict(), {"step": 1})
    one = (tmp_path / "one.safetensors").read_bytes()
    assert (written / "1.safetensors").read_bytes() == one  # whose classes all of them share
    assert (written / "2.safetensors").read_bytes() == one  # two groups


def test_torch_s_own_files_reload_at_another_number(written):
    in_processes(3, _fewer, written)
    _reloaded(written, None)
