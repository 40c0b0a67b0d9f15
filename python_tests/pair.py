"""Runs in one process or several, interrupted or whole, and how near their ends are."""

from __future__ import annotations

import csv
import multiprocessing
import sys
import traceback
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from tiny import config

from oltr_ext import _defaults
from oltr_ext.config.loading import make_config
from oltr_ext.engine import checkpoint
from oltr_ext.engine.train import _Run
from oltr_ext.models import OLTRModel

KINDS = ("memory", "lifted", "range", "crt", "lws", "fslwf", "openmax")
PATIENCE = 300  # seconds


def settings(folder, kind, **changes):
    """A run of two short stages, or one, as configured for the method."""
    values = {**config(folder), "log_every": 1}
    first = {**values["stage1"], "epochs": 1}
    second = {**values["stage2"], "epochs": 1}
    if kind in ("lifted", "range"):
        first |= {"loss": {"kind": kind}, "sampler": "class_aware", "clip": 5.0}
    retrained = {"kind": kind, "epochs": 1, "batch_size": 8, "lr": first["lr"]}
    second = {
        "memory": second,
        "crt": retrained,
        "lws": retrained,
        "fslwf": {**retrained, "base_shots": 4, "fake": 1},
        "openmax": {"kind": "openmax"},
    }.get(kind)
    return make_config({**values, "stage1": first, "stage2": second, **changes})


def in_pair(job, *arguments):
    """As `in_processes`, in two."""
    first, second = in_processes(2, job, *arguments)
    return first, second


def in_processes(number, job, *arguments, missing=()):
    """What `job(rank, *arguments)` returns in each of several processes; fails as they fail.

    Args:
        missing: ranks of those that will not return.
    """
    context = multiprocessing.get_context("forkserver")  # one import of torch for all of them
    context.set_forkserver_preload(["oltr_ext.engine.train"])
    results = context.Queue()
    members = [
        context.Process(target=_member, args=(results, job, rank, *arguments))
        for rank in range(number)
    ]
    for process in members:
        process.start()
    returned = {}
    try:
        for _ in range(number - len(missing)):
            rank, error, value = results.get(timeout=PATIENCE)
            assert error is None, error
            returned[rank] = value
    finally:
        for process in members:
            process.join(1 if sys.exc_info()[0] else PATIENCE)
            process.kill()
    return [returned[rank] for rank in range(number) if rank not in missing]


def _member(results, job, rank, *arguments):
    torch.set_num_threads(1)
    try:
        results.put((rank, None, job(rank, *arguments)))
    except BaseException:
        results.put((rank, traceback.format_exc(), None))


@contextmanager
def group(rank, folder, number=2):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=number)
    yield
    dist.destroy_process_group()


@contextmanager
def stopping_at(stage, step):
    """Runs are interrupted after a step, before the step's checkpoint."""
    whole = _Run.step

    def stop(self, parts, steps):
        whole(self, parts, steps)
        if (self.state.stage, self.state.step) == (stage, step):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Run, "step", stop)
        yield


@contextmanager
def in_float64():
    """Runs in float64, where what one and two processes give differs by rounding and no more."""
    features = OLTRModel.features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OLTRModel, "features", lambda self, images: features(self, images.double()))
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(_defaults, "DTYPE", torch.float64)
        yield


def near(one, two, tolerance=1e-7):
    """Every tensor of the model, and the losses on the way."""
    (left, header), (right, other) = (checkpoint.load(p / "model.safetensors") for p in (one, two))
    assert left.keys() == right.keys() and header["state"]["total"] == other["state"]["total"]
    for name, value in left.items():
        if name.endswith(".residual"):  # a basis of its space, of which there are many
            left_space, right_space = value @ value.t(), right[name] @ right[name].t()
            torch.testing.assert_close(right_space, left_space, rtol=1e-5, atol=1e-5)
            continue
        torch.testing.assert_close(
            right[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    for a, b in zip(*(csv.DictReader((p / "log.csv").open()) for p in (one, two)), strict=True):
        assert a["val_overall"] == b["val_overall"]
        if a["loss"]:
            assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=tolerance)
            assert float(a["grad_norm"]) == pytest.approx(float(b["grad_norm"]), rel=tolerance)
