"""Distances stay exact where the product form cancels, and ties and NaN have one answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oltr_ext import ops, use_backend

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4])
def test_close_to_a_centroid(offset, gap):
    """|x|^2 + |c|^2 - 2 x.c has no correct digit here; selecting and measuring has them all."""
    memory = torch.randn(300, 64) + offset
    x = memory[:40] + gap * torch.randn(40, 64)
    got = ops.nearest_centroid(x, memory)
    want = torch.cdist(
        x.double(), memory.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    torch.testing.assert_close(got.distance.double(), want.values, rtol=2e-6, atol=1e-9)
    assert torch.equal(got.index, want.indices)


def test_near_ties_beyond_the_product_precision():
    """Candidates the product cannot tell apart are all measured."""
    memory = torch.full((200, 32), 100.0) + torch.randn(200, 32) * 1e-3
    x = torch.full((20, 32), 100.0) + torch.randn(20, 32) * 1e-3
    got = ops.nearest_centroid(x, memory)
    want = torch.cdist(
        x.double(), memory.double(), compute_mode="donot_use_mm_for_euclid_dist"
    ).min(1)
    torch.testing.assert_close(got.distance.double(), want.values, rtol=2e-6, atol=0)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-5])
@pytest.mark.parametrize("width", [2048, 3 * 64 * 64])
def test_rows_that_are_nearly_flat_find_themselves(width, noise, precision):
    """All additions of a product round the same way, so that its error grows with the width."""
    memory = torch.linspace(0, 1, 80)[:, None] + noise * torch.randn(80, width)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        got = ops.nearest_centroid(memory.clone(), memory)
        assert torch.equal(got.index, torch.arange(80)) and not got.distance.any()
        if width > 2048:  # of a square gate
            return
        keys, bias, gate = torch.zeros(80, width), torch.zeros(80), torch.zeros(width, width)
        at = ops.meta_embedding(
            memory[::20], memory, keys, bias, gate, torch.zeros(width), return_details=True
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert at.nearest.tolist() == [0, 20, 40, 60]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("classes", [2, 65, 700])
def test_ties_go_to_the_lower_class(backend, classes):
    memory = torch.ones(classes, 7)
    memory[0] = 50
    with use_backend(backend):
        distance, index = ops.nearest_centroid(torch.zeros(3, 7), memory)
    assert (index == 1).all()
    torch.testing.assert_close(distance, torch.full((3,), 7.0).sqrt())


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_on_a_centroid_the_gradient_is_zero(backend):
    memory = torch.randn(9, 5, requires_grad=True)
    x = memory.detach()[[4, 7]].clone().requires_grad_()
    with use_backend(backend):
        distance, index = ops.nearest_centroid(x, memory)
        distance.sum().backward()
    assert distance.tolist() == [0, 0] and index.tolist() == [4, 7]
    assert (x.grad == 0).all() and (memory.grad == 0).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nan_answers(backend):
    memory = torch.randn(700, 5)
    x = torch.randn(4, 5)
    x[2, 1] = float("nan")
    with use_backend(backend):
        distance, index = ops.nearest_centroid(x, memory)
        assert distance[2].isnan() and index[2] == 0
        assert distance[[0, 1, 3]].isfinite().all()
        memory[650, 0] = float("nan")
        distance, index = ops.nearest_centroid(x[[0, 1]], memory)
    assert distance.isnan().all() and (index == 650).all()


def test_infinite_rows():
    x = torch.tensor([[float("inf"), 0.0], [1.0, 0.0]])
    memory = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    distance, index = ops.nearest_centroid(x, memory)
    assert distance.tolist() == [float("inf"), 0.0] and index.tolist() == [0, 0]


def test_shared_winner_sums_its_gradient():
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    grads = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            weighted = ops.nearest_centroid(x, memory).distance * torch.arange(50)
            grads.append(torch.autograd.grad(weighted.sum(), (x, memory)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


# The device stays the same for all examples.
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.integers(1, 20), st.integers(1, 600), st.integers(1, 40), st.integers(0, 2**31))
def test_matches_cdist_at_any_size(rows, classes, width, seed):
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64)
    memory = torch.randn(classes, width, generator=g, dtype=torch.float64)
    distance, index = ops.nearest_centroid(x, memory)
    want = torch.cdist(x, memory, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    torch.testing.assert_close(distance, want.values)
    assert torch.equal(index, want.indices)
