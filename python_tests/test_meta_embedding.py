"""The meta-embedding against the formulas written out, its floor, and what is detached."""

from __future__ import annotations

import pytest
import torch
from op_cases import BY_NAME, cast

from oltr_ext import ops, use_backend

pytestmark = pytest.mark.usefixtures("device")

CASE = BY_NAME["meta_embedding"]
ARGUMENTS = ("x", "memory", "keys", "key_bias", "selector_weight", "selector_bias")


def inputs(B=6, C=9, D=11):
    i = cast(CASE.make(B, C, D), torch.float64, CASE)
    return [i[n] for n in ARGUMENTS]


def test_is_the_formula_of_the_paper():
    x, M, W_h, b_h, W_s, b_s = inputs()
    m = torch.softmax(x @ W_h.T + b_h, 1) @ M
    e = torch.tanh(x @ W_s.T + b_s)
    d = (x[:, None] - M[None]).norm(dim=2).min(1)
    v = (7.5 / d.values)[:, None] * (x + e * m)
    got = ops.meta_embedding(x, M, W_h, b_h, W_s, b_s, scale=7.5, return_details=True)
    for a, b in zip(got, (v, m, e, d.values, d.indices), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(ops.meta_embedding(x, M, W_h, b_h, W_s, b_s, scale=7.5), v)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_floored_distance(backend):
    """x on a centroid: a finite embedding of s/eps and no gradient through the distance."""
    x, M, *rest = inputs()
    with torch.no_grad():
        x[3] = M[2]
    with use_backend(backend):
        got = ops.meta_embedding(x, M, *rest, eps=0.5, memory_grad=True, return_details=True)
        assert got.distance[3] == 0.5 and got.nearest[3] == 2
        grad_x, grad_M = torch.autograd.grad(got.distance.sum(), (x, M))
        assert (grad_x[3] == 0).all() and (grad_x[0] != 0).any()
        assert torch.isfinite(grad_M).all()
        (grad,) = torch.autograd.grad(ops.meta_embedding(x, M, *rest).sum(), x)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_memory_gets_a_gradient_only_when_asked(backend):
    x, M, *rest = inputs()
    with use_backend(backend):
        without = ops.meta_embedding(x, M, *rest)
        assert torch.autograd.grad(without.sum(), M, allow_unused=True) == (None,)
        asked = ops.meta_embedding(x, M, *rest, memory_grad=True)
        (grad,) = torch.autograd.grad(asked.sum(), M)
    assert (grad != 0).any()


@pytest.mark.parametrize("part", ["memory_feature", "selector", "distance"])
def test_gradient_of_each_detail_alone(part):
    leaves = inputs()
    grads = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            out = ops.meta_embedding(*leaves, memory_grad=True, return_details=True)
            total = getattr(out, part).square().sum()
            grads.append(torch.autograd.grad(total, leaves, materialize_grads=True))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_with_and_without_memory_gradient():
    i = cast(BY_NAME["memory_attention"].make(4, 6, 5), torch.float64, BY_NAME["memory_attention"])
    out = ops.memory_attention(**i, memory_grad=False)
    grads = torch.autograd.grad(out.sum(), [i["x"], i["memory"]], allow_unused=True)
    assert grads[0] is not None and grads[1] is None


def test_extreme_logits_do_not_overflow():
    x = torch.eye(4) * 300
    keys, memory = torch.eye(4) * 300, torch.randn(4, 4)
    out = ops.memory_attention(x, keys, torch.zeros(4), memory)
    torch.testing.assert_close(out, memory)
    low = ops.memory_attention(x, keys, torch.full((4,), -1e30), memory)
    assert torch.isfinite(low).all()
