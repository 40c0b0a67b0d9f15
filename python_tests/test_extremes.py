"""Features as small and as large as their dtype holds: the same class, the distance scaled."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from oltr_ext import ops, use_backend
from oltr_ext.nn import CentroidMemory, MetaEmbedding

pytestmark = pytest.mark.usefixtures("device")

backends = pytest.mark.parametrize("backend", ["native", "reference"])
# Scales that keep 2^-6, the lowest bit of `grid`, and distances of its numbers in range; half of
# the dtype's smallest number.
RANGE = {
    torch.float32: (-143, 122, 2.0**-150),
    torch.bfloat16: (-127, 122, 2.0**-134),
    torch.float16: (-18, 10, 2.0**-25),
    torch.float64: (-1068, 1018, 0.0),
}
dtypes = pytest.mark.parametrize("dtype", RANGE, ids=str)


def grid(*shape, generator=None):
    """float64 of eight bits: exact in every dtype, and so are small distances in float32."""
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 64).round().clamp(
        -255, 255
    ) / 64


def power(k):
    return torch.tensor(2.0, dtype=torch.float64) ** k


def scaled(t, k):
    """In two steps, for a float64 beyond 2^1023 or below 2^-1022 is no power of two to scale by."""
    return t * power(k // 2) * power(k - k // 2)


def nearest(x, memory):
    gaps = torch.cdist(x, memory, compute_mode="donot_use_mm_for_euclid_dist")
    return gaps.min(dim=1)


def check_scales(backend, dtype, k, x, memory):
    want = nearest(x, memory)
    leaves = [scaled(t, k).to(dtype).requires_grad_() for t in (x, memory)]
    with use_backend(backend):
        distance, index = ops.nearest_centroid(*leaves)
        grads = torch.autograd.grad(distance.sum(), leaves)
    assert torch.equal(index, want.indices)
    rtol, least = 2 * torch.finfo(dtype).eps, RANGE[dtype][2]
    torch.testing.assert_close(distance.double(), scaled(want.values, k), rtol=rtol, atol=least)
    exact = [t.clone().requires_grad_() for t in (x, memory)]
    nearest(*exact).values.sum().backward()
    for got, leaf in zip(grads, exact, strict=True):
        torch.testing.assert_close(got.double(), leaf.grad, rtol=0, atol=20 * rtol)


@backends
@dtypes
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_scaling_changes_nothing_but_the_scale(backend, dtype, data):
    low, high, _ = RANGE[dtype]
    k, seed = data.draw(st.integers(low, high)), data.draw(st.integers(0, 2**31))
    rows, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 70))
    g = torch.Generator(torch.get_default_device()).manual_seed(seed)
    x, memory = grid(rows, 7, generator=g), grid(classes, 7, generator=g)
    x[0] = memory[-1]
    check_scales(backend, dtype, k, x, memory)


@backends
@pytest.mark.parametrize("k", [-100, -64, 0, 62, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_rows(backend, dtype, k):
    """Enough for products by pairs of bfloat16, or by matrix tiles."""
    check_scales(backend, dtype, k, grid(130, 48), grid(600, 48))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_reference_where_it_cannot_look_at_values(dtype):
    far = 62 if dtype == torch.float32 else 512
    memory = grid(60, 9)
    x = grid(3, 4, 9)
    want = nearest(x.flatten(0, 1), memory)
    each = torch.func.vmap(ops.nearest_centroid, in_dims=(0, None))
    whole = torch.compile(ops.nearest_centroid, fullgraph=True, backend="eager")
    for k in (-far, 0, far):
        a, b = scaled(x, k).to(dtype), scaled(memory, k).to(dtype)
        with use_backend("reference"):
            for distance, index in (each(a, b), whole(a.flatten(0, 1), b)):
                assert torch.equal(index.flatten(), want.indices)
                got = scaled(distance.double().flatten(), -k)
                torch.testing.assert_close(got, want.values, rtol=1e-6, atol=0)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_all_sizes_in_one_bank(backend, dtype):
    sizes = torch.tensor([-120, -70, -62, -40, 0, 62, 70, 120])
    if dtype == torch.float64:
        sizes = torch.tensor([-1000, -560, -500, -320, 0, 480, 560, 1000])
    memory = torch.stack([scaled(grid(19), k) for k in sizes.repeat(12).tolist()])
    memory[60:70] = memory[20:30]
    x = torch.stack([scaled(grid(19), k) for k in sizes.repeat_interleave(3).tolist()])
    x = torch.cat([x, memory[60:70]]).to(dtype)
    with use_backend(backend):
        distance, index = ops.nearest_centroid(x, memory.to(dtype))
    assert index[24:].tolist() == list(range(20, 30)) and (distance[24:] == 0).all()
    # one gap at a time, scaled by its own size
    gap = x.double()[:, None] / 4 - memory.to(dtype).double() / 4
    exponent = gap.abs().amax(dim=2).clamp_min(2.0**-1060).log2().round()
    unit = scaled(gap, -exponent[..., None]).norm(dim=2)
    order = torch.where(unit > 0, unit.log2() + exponent, -torch.inf)
    want = order.min(dim=1).values
    picked = order.gather(1, index[:, None]).squeeze(1)
    torch.testing.assert_close(picked, want, rtol=0, atol=1e-6)
    got = (distance.double() / 4).log2()
    torch.testing.assert_close(got, want, rtol=0, atol=2 * torch.finfo(dtype).eps)


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_infinities_and_what_lies_too_far_to_say(backend, dtype):
    inf, most = torch.inf, torch.finfo(dtype).max
    with use_backend(backend):
        got = ops.nearest_centroid(
            torch.tensor([[inf], [1.0], [-most]], dtype=dtype),
            torch.tensor([[-inf], [5.0], [inf], [most]], dtype=dtype),
        )
        far = ops.nearest_centroid(
            torch.tensor([[-most]], dtype=dtype),
            torch.tensor([[most], [most / 2]], dtype=dtype),
        )
    assert got.index.tolist() == [2, 1, 1] and got.distance[0].isnan()
    assert got.distance[1:].tolist() == [4, most]
    assert far.distance.isinf() and far.index == 1


@backends
@pytest.mark.parametrize("k", [-100, -64, -40, 62, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_meta_embedding_does_not_see_the_scale_of_features(backend, dtype, k):
    """With what multiplies features scaled by the inverse, 10/d (x + e m) stays, and so do the
    gradients of attention and gate."""
    tensors = [grid(9, 20), grid(60, 20), grid(60, 20) / 8, grid(60), grid(20, 20) / 8, grid(20)]
    by = (k, k, -k, 0, -k, 0)

    def run(dtype, powers, backend):
        leaves = [
            scaled(t, p).to(dtype).requires_grad_() for t, p in zip(tensors, powers, strict=True)
        ]
        with use_backend(backend):
            got = ops.meta_embedding(*leaves, eps=0, memory_grad=True, return_details=True)
            grads = torch.autograd.grad(got.embedding.double().square().sum(), leaves)
        grads = [scaled(g.double(), p) for g, p in zip(grads, powers, strict=True)]
        parts = [got.embedding.double(), scaled(got.memory_feature.double(), -powers[0])]
        return [*parts, scaled(got.distance.double(), -powers[0]), *grads], got.nearest

    want, index = run(torch.float64, (0,) * 6, "reference")
    got, found = run(dtype, by, backend)
    assert torch.equal(found, index)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())


@backends
@pytest.mark.parametrize("k", [-100, 100])
def test_heads_and_memories_of_small_features(backend, k):
    features, classes = grid(40, 12), torch.arange(40) % 10
    features[:10] = features[10:20] = features[:10] * 4
    found = []
    for by in (0, k):
        memory = CentroidMemory(10, 12)
        memory.initialise(scaled(features, by).float(), classes)
        x = scaled(features[20:], by).float()
        with use_backend(backend):
            near, more = memory(x), memory.closest(x, 4)
        torch.testing.assert_close(more.distance[:, 0], near.distance)
        found.append((near.index, more.index, scaled(more.distance.double(), -by)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@backends
@pytest.mark.parametrize("k", [-100, 100])
def test_a_meta_embedding_without_its_parts(backend, k):
    """10 x / d, by `nearest_centroid` and not by the op above."""
    embed = MetaEmbedding(12, 10, eps=0, without=("memory", "selector"))
    x, memory, found = grid(6, 12), grid(10, 12), []
    for by in (0, k):
        leaf = scaled(x, by).float().requires_grad_()
        with use_backend(backend):
            got = embed.embed(leaf, scaled(memory, by).float())
            (grad,) = torch.autograd.grad(got.embedding.square().sum(), leaf)
        found.append((got.nearest, got.embedding, scaled(grad.double(), by)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_alone_gets_the_bits_it_gets_in_a_batch(dtype):
    memory = scaled(grid(200, 40), -64).to(dtype)
    x = torch.cat([scaled(grid(60, 40), k).to(dtype) for k in (-64, 0, 64)])
    together, alone = (
        ops.nearest_centroid(x, memory),
        [ops.nearest_centroid(r, memory) for r in x.split(1)],
    )
    assert torch.equal(together.index, torch.cat([one.index for one in alone]))
    assert torch.equal(together.distance, torch.cat([one.distance for one in alone]))
