"""The centroid loss against its double sum, and the released code's gradient."""

from __future__ import annotations

import pytest
import torch

from oltr_ext import ops, use_backend

pytestmark = pytest.mark.usefixtures("device")

BACKENDS = pytest.mark.parametrize("backend", ["native", "reference"])


def workload(B=8, C=5, D=6, offset=0.0, dtype=torch.float64):
    x = (torch.randn(B, D, dtype=dtype) + offset).requires_grad_()
    centroids = (torch.randn(C, D, dtype=dtype) + offset).requires_grad_()
    return x, torch.randint(C, (B,)), centroids


def double_sum(x, target, centroids, margin, repel_weight):
    """The loss as METHOD writes it, one pair at a time."""
    B, C = x.shape[0], centroids.shape[0]
    attract = sum((x[i] - centroids[target[i]]).square().sum() for i in range(B)) / (2 * B)
    R = sum(
        (x[i] - centroids[j]).square().sum() for i in range(B) for j in range(C) if j != target[i]
    ) / (B * C)
    return attract + repel_weight * (margin - R).clamp(0, 1e6)


@BACKENDS
@pytest.mark.parametrize("margin", [0.0, 10.0, 100.0, 1e7])
def test_is_the_double_sum(backend, margin):
    x, target, centroids = workload()
    with use_backend(backend):
        got = ops.disc_centroids_loss(x, target, centroids, margin=margin, repel_weight=0.3)
    want = double_sum(x, target, centroids, margin, 0.3)
    torch.testing.assert_close(got, want)
    for a, b in zip(
        torch.autograd.grad(got * 0.01, (x, centroids)),
        torch.autograd.grad(want * 0.01, (x, centroids)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_common_offset_costs_no_precision():
    x, target, centroids = workload(40, 30, 16, offset=1000.0, dtype=torch.float32)
    got = ops.disc_centroids_loss(x, target, centroids, margin=1e3, repel_weight=1.0)
    want = ops.disc_centroids_loss(
        x.double(), target, centroids.double(), margin=1e3, repel_weight=1.0
    )
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


@BACKENDS
def test_official_gradient_is_the_released_codes(backend):
    """Defect 2: the 0.01 in front does not reach the centroids; counts are one too many."""
    x, target, centroids = workload()
    with use_backend(backend):
        loss = ops.disc_centroids_loss(x, target, centroids, margin=0.0, compat="official")
        grad_x, grad_c = torch.autograd.grad(0.01 * loss, (x, centroids))
    counts = torch.bincount(target, minlength=5) + 1
    pull = torch.zeros_like(centroids).index_add(0, target, centroids[target] - x)
    torch.testing.assert_close(grad_c, pull / counts[:, None] / 8)
    torch.testing.assert_close(grad_x, 0.01 * (x - centroids[target]) / 8)
    fixed = ops.disc_centroids_loss(x, target, centroids, margin=0.0)
    torch.testing.assert_close(loss, fixed)


@BACKENDS
def test_official_and_fixed_share_the_repel_gradient(backend):
    x, target, centroids = workload()
    grads = {}
    with use_backend(backend):
        for compat in ("fixed", "official"):
            for margin in (0.0, 1e3):
                loss = ops.disc_centroids_loss(
                    x, target, centroids, margin=margin, repel_weight=0.5, compat=compat
                )
                grads[compat, margin] = torch.autograd.grad(0.1 * loss, centroids)[0]
    torch.testing.assert_close(
        grads["fixed", 1e3] - grads["fixed", 0.0], grads["official", 1e3] - grads["official", 0.0]
    )


@BACKENDS
def test_empty_batch_asks_for_nothing(backend):
    x, target, centroids = workload(B=0)
    with use_backend(backend):
        loss = ops.disc_centroids_loss(x, target, centroids)
        grads = torch.autograd.grad(loss, (x, centroids))
    assert loss == 0 and (grads[1] == 0).all()


@BACKENDS
def test_nan_is_not_hidden_by_the_clamp(backend):
    x, target, centroids = workload()
    with torch.no_grad():
        x[0, 0] = float("nan")
    with use_backend(backend):
        assert ops.disc_centroids_loss(x, target, centroids).isnan()


def test_class_means_of_many_rows_that_are_alike():
    """One float32 sum of them is a hundredth off."""
    x, target = torch.full((1_000_000, 1), 0.1), torch.zeros(1_000_000, dtype=torch.int64)
    with use_backend("native"):
        means = ops.class_means(x, target, 1).means
    torch.testing.assert_close(means, x[:1], rtol=1e-5, atol=0)


@BACKENDS
def test_class_means_with_empty_classes(backend):
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([3, 0, 3, 3, 0, 5])
    with use_backend(backend):
        means, counts = ops.class_means(x, target, 7)
        (grad,) = torch.autograd.grad((means * torch.arange(1, 8)[:, None]).sum(), x)
    assert counts.tolist() == [2, 0, 0, 3, 0, 1, 0]
    torch.testing.assert_close(means[3], x[[0, 2, 3]].mean(0))
    assert (means[[1, 2, 4, 6]] == 0).all()
    share = torch.tensor([4, 1, 4, 4, 1, 6]) / torch.tensor([3, 2, 3, 3, 2, 1])
    torch.testing.assert_close(grad[:, 0], share.double())
