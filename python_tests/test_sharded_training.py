"""Steps of training with shared classes are those of one process, by torch's own parts."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pair import group, in_processes
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from oltr_ext.nn import (
    GradScaler,
    LinearHead,
    OLTRHead,
    clip_grad_norm_,
    param_groups,
    shard_classes,
)

WIDTH, CLASSES = 6, 5
OPTIMIZERS = {
    "sgd": lambda p, **k: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3, **k),
    "adamw": lambda p, **k: torch.optim.AdamW(p, lr=0.01, **k),
}


def _backbone():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(4, WIDTH), torch.nn.Tanh()).double()


def _head(kind=OLTRHead):
    torch.manual_seed(2)
    head = kind(WIDTH, CLASSES, class_prior=torch.rand(CLASSES) + 0.1).double()
    if kind is OLTRHead:
        start = torch.randn(15, WIDTH, dtype=torch.float64)
        head.init_from(None, start, torch.arange(15) % CLASSES)
    return head


def _data(number=8):
    torch.manual_seed(3)
    return torch.randn(number, 4, dtype=torch.float64), torch.arange(number) % CLASSES


def _steps(backbone, head, make, x, y, *, clip, scaler=None, number=3):
    plain = not hasattr(next(head.parameters()), "_local_tensor")
    every = [*backbone.parameters(), *head.parameters()]
    optimizer = make(every if plain else param_groups(every))
    norms = []
    for _ in range(number):
        optimizer.zero_grad()
        loss = head.loss(backbone(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if scaler is not None:
            scaler.unscale_(optimizer)
        norms.append(
            torch.nn.utils.clip_grad_norm_(every, clip) if plain else clip_grad_norm_(every, clip)
        )
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return torch.stack(norms), optimizer


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _near(parted, whole, what):
    shard = parted.layout.shard
    for (name, p), q in zip(parted.named_parameters(), whole.parameters(), strict=True):
        want = q[shard.start : shard.stop] if hasattr(p, "_local_tensor") else q
        torch.testing.assert_close(_local(p), want, rtol=1e-10, atol=1e-10, msg=f"{what} {name}")


def _optimizers():
    """SGD and AdamW in every implementation, with one norm for all, on the mean over processes."""
    mesh, (x, y) = init_device_mesh("cpu", (dist.get_world_size(),)), _data()
    here = slice(dist.get_rank() * 4, dist.get_rank() * 4 + 4)
    for name, make in OPTIMIZERS.items():
        for how in ({"foreach": False}, {"foreach": True}, {"fused": True}):
            if name == "sgd" and "fused" in how:
                continue  # torch has no rule for DTensors there
            whole, parted = _head(), shard_classes(_head(), mesh)
            backbone, shared = _backbone(), DistributedDataParallel(_backbone())

            def made(p, make=make, how=how):
                return make(p, **how)

            want, _ = _steps(backbone, whole, made, x, y, clip=0.5)
            scaler = GradScaler("cpu", init_scale=64.0) if how.get("foreach") else None
            got, _ = _steps(shared, parted, made, x[here], y[here], clip=0.5, scaler=scaler)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
            assert (want > 0.5).all()  # it is clipped
            _near(parted, whole, (name, how))
            for p, q in zip(shared.parameters(), backbone.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-10)


def _sharded_backbone():
    """`fully_shard` for the backbone; and for a head by itself, as PyTorch would have it."""
    mesh, (x, y) = init_device_mesh("cpu", (dist.get_world_size(),)), _data()
    here = slice(dist.get_rank() * 4, dist.get_rank() * 4 + 4)
    whole, parted, backbone = _head(), shard_classes(_head(), mesh), _backbone()
    shared = fully_shard(_backbone(), mesh=mesh)
    want, _ = _steps(backbone, whole, OPTIMIZERS["sgd"], x, y, clip=0.5)
    got, _ = _steps(shared, parted, OPTIMIZERS["sgd"], x[here], y[here], clip=0.5)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    _near(parted, whole, "fully_shard")
    alone, head = LinearHead(WIDTH, CLASSES).double(), LinearHead(WIDTH, CLASSES).double()
    head.load_state_dict(alone.state_dict())
    fully_shard(head, mesh=mesh)
    register_fsdp_forward_method(head, "loss")
    rows = torch.randn(4, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(head.loss(rows, y[:4]), alone.loss(rows, y[:4]))


def _overflow():
    """A gradient that overflows in one process lets all of them pass over the step."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    head = shard_classes(LinearHead(WIDTH, CLASSES), mesh)
    optimizer = torch.optim.SGD(param_groups(head.parameters()), lr=1.0)
    scaler = GradScaler("cpu", init_scale=4.0)
    before = [_local(p).clone() for p in head.parameters()]
    scaler.scale(head.loss(torch.randn(2, WIDTH), torch.tensor([0, 1]))).backward()
    if dist.get_rank() == 0:
        head.linear.weight.grad._local_tensor[0, 0] = torch.inf
    scaler.unscale_(optimizer)
    clip_grad_norm_(head.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    return all(torch.equal(_local(p), q) for p, q in zip(head.parameters(), before, strict=True))


def _norms(rank, folder):
    """Of gradients on several meshes: a backbone's by `fully_shard` over all or in replicas, and a
    head's, whichever comes first."""
    with group(rank, folder, 4):
        line = init_device_mesh("cpu", (4,))
        plane = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "class"))
        x, y = _data()
        whole, backbone, here = _head(), _backbone(), slice(rank * 2, rank * 2 + 2)
        whole.loss(backbone(x), y).backward()
        params = [*backbone.parameters(), *whole.parameters()]
        want = torch.nn.utils.clip_grad_norm_(params, 0.5)
        assert want > 0.5  # it is clipped
        for of_head, of_backbone in ((plane, line), (line, plane), (plane, plane), (line, line)):
            for head_first in (False, True):
                parted = shard_classes(_head(), of_head)
                shared = fully_shard(_backbone(), mesh=of_backbone)
                parted.loss(shared(x[here]), y[here]).backward()
                parts = [shared, parted][:: -1 if head_first else 1]
                got = clip_grad_norm_((p for part in parts for p in part.parameters()), 0.5)
                torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
                for p, q in zip(shared.parameters(), backbone.parameters(), strict=True):
                    grad = p.grad.full_tensor()
                    torch.testing.assert_close(grad, q.grad, rtol=1e-10, atol=1e-10)


def test_the_norm_is_that_of_all_gradients_whatever_their_meshes(tmp_path):
    in_processes(4, _norms, tmp_path)


def _named():
    """Parameters with their names are split as others are."""
    head = shard_classes(_head(), init_device_mesh("cpu", (dist.get_world_size(),)))
    for given in (head.named_parameters(), [{"params": [*head.named_parameters()], "lr": 1}]):
        groups = param_groups(given)
        names = [{name.partition(".")[0] for name, _ in group["params"]} for group in groups]
        shared = [{hasattr(p, "_local_tensor") for _, p in group["params"]} for group in groups]
        assert names == [{"classifier"}, {"memory", "classifier"}] and shared == [{False}, {True}]
        optimizer = torch.optim.SGD(groups, lr=0.1, foreach=True)
        head.loss(torch.randn(2, WIDTH).double(), torch.tensor([0, 1])).backward()
        optimizer.step()


def _train(rank, folder):
    with group(rank, folder, 2):
        _named()
        _optimizers()
        _sharded_backbone()
        assert _overflow()


def test_steps_of_two_processes_are_those_of_one(tmp_path):
    in_processes(2, _train, tmp_path)


def _saved(rank, folder, number, path):
    """A bank and its momentum after two steps, written by `torch.distributed.checkpoint`."""
    with group(rank, folder, number):
        head = shard_classes(_head(), init_device_mesh("cpu", (number,)), batches="same")
        x, y = _backbone()(_data()[0]).detach(), _data()[1]
        _, optimizer = _steps(torch.nn.Identity(), head, OPTIMIZERS["sgd"], x, y, clip=9.0)
        model, state = get_state_dict(head, optimizer)
        dcp.save({"model": model, "optimizer": state}, checkpoint_id=str(path))
        return _whole(model), _whole(state["state"])


def _loaded(rank, folder, number, path):
    with group(rank, folder, number):
        torch.manual_seed(rank)
        mesh = init_device_mesh("cpu", (number,))
        prior = torch.rand(CLASSES)
        head = OLTRHead(WIDTH, CLASSES, class_prior=prior, device="meta")
        shard_classes(head, mesh, batches="same").double()
        optimizer = OPTIMIZERS["sgd"](param_groups(head.parameters()))
        model, state = get_state_dict(head, optimizer)
        dcp.load({"model": model, "optimizer": state}, checkpoint_id=str(path))
        set_state_dict(head, optimizer, model_state_dict=model, optim_state_dict=state)
        found = _whole(head.state_dict()), _whole(get_state_dict(head, optimizer)[1]["state"])
        x, y = _backbone()(_data()[0]).detach(), _data()[1]
        loss = head.loss(x, y)  # its memory has found out which classes there are
        return *found, loss.item()


def _whole(state):
    flat = {}
    for name, value in state.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{k}": v for k, v in _whole(value).items()}
        elif isinstance(value, torch.Tensor):
            whole = value.full_tensor() if hasattr(value, "full_tensor") else value
            flat[name] = whole.clone().numpy()  # a tensor would have to be fetched from its process
    return flat


def test_checkpoints_reload_at_any_number_of_processes(tmp_path):
    (model, momentum), *_ = in_processes(4, _saved, tmp_path, 4, tmp_path / "saved")
    assert any("momentum" in name for name in momentum)
    losses = []
    for number in (3, 2, 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        for got_model, got_momentum, loss in in_processes(
            number, _loaded, folder, number, tmp_path / "saved"
        ):
            for got, want in ((got_model, model), (got_momentum, momentum)):
                assert got.keys() == want.keys()
                for name, value in want.items():
                    assert got[name].dtype == value.dtype and (got[name] == value).all(), name
            losses.append(loss)
    assert max(losses) - min(losses) < 1e-12


def test_groups_keep_their_options():
    one, two = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3))
    assert param_groups([{"params": one, "lr": 2}, {"params": [two]}]) == [
        {"params": [one], "lr": 2},
        {"params": [two]},
    ]
    assert clip_grad_norm_([one], 1.0) == 0
    one.grad = torch.tensor([3.0, 4.0])
    norm = clip_grad_norm_(one, 1.0)
    assert norm == 5 and one.grad.norm() == pytest.approx(1, abs=1e-5)
    assert copy.deepcopy(one).shape == (2,)


def test_groups_that_are_none():
    one = torch.zeros(2)
    assert param_groups([]) == [] and param_groups([{"params": one, "lr": 1}])[0]["lr"] == 1
    for wrong in (one, [one, {"params": [one]}], [{"lr": 1}]):
        with pytest.raises(TypeError, match="param_groups: expected parameters, or groups"):
            param_groups(wrong)
