"""What we build and draw names dtype and device: torch's defaults are for what the user makes."""

from __future__ import annotations

import copy
import random
import threading

import numpy as np
import pytest
import torch
from head_cases import heads_of_every_kind
from tiny import arrays, config, same_run

from oltr_ext import ops
from oltr_ext._defaults import own_dtype
from oltr_ext.config.loading import make_config
from oltr_ext.engine.build import class_frequencies
from oltr_ext.engine.train import train
from oltr_ext.nn import OLTRHead, OpenMaxHead
from oltr_ext.nn.memory import means_over
from oltr_ext.nn.sets import set_thresholds
from oltr_ext.serve.assess import assess, report
from oltr_ext.serve.export import export
from oltr_ext.serve.predict import predict_images
from oltr_ext.serve.trained import load_embedder, load_trained


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=["f64", "bf16"])
def default(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def answers(finished, data):
    return _answers(finished, data)


def _answers(run, data):
    trained = load_trained(run, device="cpu")
    images = [data / f"test_{label}_0.png" for label in range(4)]
    return assess(trained, name="tiny").summary, predict_images(trained, images)


def test_a_run_and_its_answers(default, finished, answers, data, tmp_path):
    train(make_config(config(data)), tmp_path)
    assert torch.get_default_dtype() == default
    same_run(tmp_path, finished)
    summary, predictions = _answers(tmp_path, data)
    assert repr(summary) == repr(answers[0]) and predictions == answers[1]


def test_threads_share_one_default_and_the_last_brings_it_back(default):
    inside, leave = threading.Barrier(2), threading.Event()

    def first():
        with own_dtype():
            inside.wait(10)
        leave.set()

    other = threading.Thread(target=first)
    other.start()
    with own_dtype():
        inside.wait(10)
        assert leave.wait(10) and torch.get_default_dtype() == torch.float32
    other.join()
    assert torch.get_default_dtype() == default


def test_training_leaves_the_process_as_it_was(data, tmp_path):
    def drawn():
        return torch.rand(3).tolist(), np.random.rand(), random.random()

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    want = drawn()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = torch.get_num_threads()
    torch.backends.cudnn.benchmark = True
    train(make_config({**config(data), "stage2": None, "threads": before + 1}), tmp_path)
    assert drawn() == want and torch.get_num_threads() == before
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False


@pytest.fixture
def elsewhere():
    """The default device is not the CPU; meta stands in for a GPU."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def test_a_run_and_its_answers_on_another_default_device(
    elsewhere, finished, answers, data, tmp_path
):
    train(make_config(config(data)), tmp_path)
    assert torch.get_default_device().type == "meta"
    same_run(tmp_path, finished)
    summary, predictions = _answers(tmp_path, data)
    assert repr(summary) == repr(answers[0]) and predictions == answers[1]
    trained = load_trained(tmp_path, device="cpu")
    export(trained, tmp_path / "model.pt2")
    report([assess(trained, name="tiny")], tmp_path / "report.html")


def test_means_on_another_default_device(elsewhere):
    x, y = (torch.from_numpy(part) for part in arrays()["train"])
    means, counts = means_over([(x[:10], y[:10]), (x[10:], y[10:])], 4)
    assert means.device.type == counts.device.type == "cpu"
    torch.testing.assert_close(means.float(), ops.class_means(x, y, 4).means)


def _changed(head, x, y):
    """All that a head does to a bank and to its classes, and what it says then."""
    head, counts = copy.deepcopy(head), y.bincount(minlength=4)
    torch.manual_seed(1)
    loss = head.loss(x, y).detach()
    head.eval().fit_bank([(x, y)], counts, most=20)
    head.bank.standardise(head.scores(head.outputs(x)))
    if not isinstance(head, OpenMaxHead):
        head.enroll(x[:3], ["a", "b", "a"])
        head.enroll(x[3:5] + 1, ["b", "c"])
        head.remove([1, head.num_classes - 2])
        head.enroll(x[5:6] + 2, ["d"])
    best = head.best(x, 2, ["max_logit+nearest_feature", "gen"])
    thresholds = [
        set_thresholds(kind, 0.2, best.scores["gen"], y, 4, groups=counts.clamp_max(1))
        for kind in ("class", "shots", "interp")
    ]
    return [loss, *head.state_dict().values(), *best[:2], *best.scores.values(), *thresholds]


@pytest.mark.parametrize("other", ["float64", "bfloat16", "meta"])
def test_heads_that_are_there_change_alike(other):
    """What they make meets tensors of theirs, and what is given."""
    cases = heads_of_every_kind()
    want = [_changed(*case) for case in cases]
    if other == "meta":
        torch.set_default_device(other)
    else:
        torch.set_default_dtype(getattr(torch, other))
    try:
        got = [_changed(*case) for case in cases]
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    for one, before in zip(got, want, strict=True):
        for value, expected in zip(one, before, strict=True):
            assert value.dtype == expected.dtype and torch.equal(value, expected)


@pytest.mark.parametrize("kind", ["ncm", "openmax", "fslwf"])
def test_every_kind_of_second_stage(kind, data, tmp_path):
    values = config(data)
    second = {"kind": kind}
    if kind == "fslwf":
        second |= {"epochs": 1, "batch_size": 8, "lr": values["stage1"]["lr"], "base_shots": 4}
    values["stage1"]["epochs"] = 1
    made = make_config({**values, "stage2": second})
    train(made, tmp_path / "float32")
    torch.set_default_dtype(torch.bfloat16)
    try:
        train(made, tmp_path / "bfloat16")
    finally:
        torch.set_default_dtype(torch.float32)
    same_run(tmp_path / "bfloat16", tmp_path / "float32")


def test_an_embedder(default, finished):
    trained = load_trained(finished, device="cpu")
    embedder = load_embedder(trained.config, trained, device="cpu")
    assert {p.dtype for p in embedder.model.parameters()} == {torch.float32}
    assert class_frequencies([3, 0, 1]).dtype == torch.float32


def test_a_head_is_of_the_default_but_for_what_must_be_exact(default):
    """As every layer of torch's own."""
    for head, _, _ in heads_of_every_kind():
        kept = {name: head.get_buffer(name) for name in head.EXACT if hasattr(head, name)}
        assert {p.dtype for p in head.parameters()} == {default}
        for name, value in kept.items():
            assert value is None or value.dtype == head.EXACT[name], name
    old = OLTRHead(6, 5).state_dict()
    del old["prior_share"]
    head = OLTRHead(6, 5)
    head.load_state_dict(old, assign=True)
    assert head.prior_share.dtype == torch.float32
