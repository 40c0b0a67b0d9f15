"""The fused loss against torch's own on the whole logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from oltr_ext import ops, use_backend

pytestmark = pytest.mark.usefixtures("device")

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


def workload(B=12, C=30, D=7):
    v = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(C, D, dtype=torch.float64, requires_grad=True)
    return v, weight, torch.randint(C, (B,))


@BACKENDS
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_is_torch_cross_entropy_of_the_logits(backend, reduction, smoothing):
    v, weight, target = workload()
    target[[2, 5]] = -100
    prior = torch.randint(1, 50, (30,)).double()
    with use_backend(backend):
        logits = ops.cosine_logits(v, weight, scale=9.0)
        got = ops.cosine_cross_entropy(
            v, weight, target,
            scale=9.0, class_prior=prior, label_smoothing=smoothing, reduction=reduction,
        )  # fmt: skip
    want = F.cross_entropy(
        logits + prior.log(), target, label_smoothing=smoothing, reduction=reduction
    )
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got.sum(), (v, weight)),
        torch.autograd.grad(want.sum(), (v, weight)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@BACKENDS
def test_a_class_of_frequency_zero_takes_no_part(backend):
    v, weight, target = workload()
    target.clamp_(max=19)
    prior = torch.ones(30)
    prior[20:] = 0
    with use_backend(backend):
        full = ops.cosine_cross_entropy(v, weight, target, class_prior=prior, label_smoothing=0.3)
        short = ops.cosine_cross_entropy(v, weight[:20], target, label_smoothing=0.3)
        (grad,) = torch.autograd.grad(full, weight)
    torch.testing.assert_close(full, short)
    assert torch.isfinite(grad).all() and (grad[20:] == 0).all()


@BACKENDS
def test_all_ignored(backend):
    v, weight, target = workload()
    target.fill_(-1)
    with use_backend(backend):
        loss = ops.cosine_cross_entropy(v, weight, target, ignore_index=-1, reduction="sum")
        grads = torch.autograd.grad(loss, (v, weight))
        mean = ops.cosine_cross_entropy(v, weight, target, ignore_index=-1)
    assert loss == 0 and all((g == 0).all() for g in grads)
    assert mean.isnan()


@BACKENDS
def test_zero_rows_give_zero_logits_and_finite_gradients(backend):
    v = torch.zeros(2, 5, requires_grad=True)
    weight = torch.randn(3, 5)
    weight[1] = 0
    weight.requires_grad_()
    with use_backend(backend):
        logits = ops.cosine_logits(v, weight)
        assert (logits == 0).all()
        grads = torch.autograd.grad((logits * torch.randn(2, 3)).sum(), (v, weight))
        rows = torch.randn(2, 5)
        loss = ops.cosine_cross_entropy(rows, weight, torch.tensor([0, 1]))
        grads += torch.autograd.grad(loss, weight)
    assert all(torch.isfinite(g).all() for g in grads)
    assert all((g[1] == 0).all() for g in grads[1:])  # no direction, and none to turn in


@BACKENDS
def test_a_scale_of_zero_leaves_nothing_of_the_rows(backend):
    v, weight, target = workload()
    with use_backend(backend):
        logits = ops.cosine_logits(v, weight, scale=0)
        loss = ops.cosine_cross_entropy(v, weight, target, scale=0, label_smoothing=0.1)
        grads = torch.autograd.grad(logits.sum() + loss, (v, weight))
    assert (logits == 0).all() and all((g == 0).all() for g in grads)
    torch.testing.assert_close(loss.item(), math.log(30))


@BACKENDS
@pytest.mark.parametrize("bad", [-1, 30, 10**12])
def test_target_out_of_range(backend, bad, device):
    if device != "cpu" and backend == "native":
        pytest.skip("a GPU is not waited for: test_cuda.py has what happens")
    v, weight, target = workload()
    target[4] = bad
    with use_backend(backend), pytest.raises(RuntimeError, match=rf"\[0, 30\), got {bad} at row 4"):
        ops.cosine_cross_entropy(v, weight, target)


@BACKENDS
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_bad_prior(backend, bad, device):
    if device != "cpu" and backend == "native":
        pytest.skip("a GPU is not waited for: the loss is NaN")
    v, weight, target = workload()
    prior = torch.ones(30)
    prior[3] = bad
    with use_backend(backend), pytest.raises(RuntimeError, match="finite and not negative"):
        ops.cosine_cross_entropy(v, weight, target, class_prior=prior)


def test_is_the_classifier_of_the_paper():
    """16 |v|/(1+|v|) (v/|v|).(w/|w|), spelt as in the paper."""
    v, weight, _ = workload()
    norm = v.norm(dim=1, keepdim=True)
    want = 16 * (norm / (1 + norm)) * (v / norm) @ (weight / weight.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(ops.cosine_logits(v, weight), want)
