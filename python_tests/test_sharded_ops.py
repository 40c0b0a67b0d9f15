"""Ops over a bank that several processes hold give what one process with all of it has."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from op_cases import BY_NAME, CASES, cast
from pair import group, in_processes

from oltr_ext import ops, use_backend
from oltr_ext.ops import Shard

BANKS = {  # inputs whose rows are classes
    "memory_attention": ("keys", "key_bias", "memory"),
    "nearest_centroid": ("memory",),
    "meta_embedding": ("memory", "keys", "key_bias"),
    "cosine_logits": ("weight",),
    "cosine_cross_entropy": ("weight", "class_prior"),
    "disc_centroids_loss": ("centroids",),
    "class_means": (),
}
CLASSES = (1, 3, 5, 10, 1001)  # of four processes the first three leave some without one
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 3e-2}


def _inputs(case, classes, dtype):
    torch.manual_seed(classes)
    inputs = cast(case.make(9, classes, 6), dtype, case)
    if "class_prior" in inputs and classes > 4:
        inputs["class_prior"][2] = 0  # impossible, and no target
        inputs["target"][inputs["target"] == 2] = 1
    return inputs


def _results(case, inputs, weights):
    """Outputs, and gradients of the sum of the outputs times `weights`."""
    outputs = {f"out{i}": output for i, output in enumerate(case.call(**inputs))}
    smooth = {name: o for name, o in outputs.items() if o.is_floating_point()}
    if weights is None:
        weights = {name: torch.randn(o.shape, dtype=torch.float64) for name, o in smooth.items()}
    total = sum((output.double() * weights[name]).sum() for name, output in smooth.items())
    leaves = [inputs[name] for name in case.differentiable]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)
    found = {name: output.detach() for name, output in outputs.items()}
    for name, leaf, grad in zip(case.differentiable, leaves, grads, strict=True):
        found[name] = torch.zeros_like(leaf) if grad is None else grad
    return found, weights


def _of_classes(case, name, value, shard):
    """The part of an output or a gradient that belongs to the shard."""
    if name in BANKS[case.name] or (case.name == "class_means" and name.startswith("out")):
        return value[shard.start : shard.stop]
    if case.name == "cosine_logits" and name == "out0":
        return value[:, shard.start : shard.stop]
    return value


def _compare(case, classes, dtype, backend):
    shard, inputs = Shard.of(classes), _inputs(case, classes, dtype)
    with use_backend(backend):
        want, weights = _results(case, inputs, None)
        weights = {name: _of_classes(case, name, w, shard) for name, w in weights.items()}
        for name in BANKS[case.name]:
            part = inputs[name].detach()[shard.start : shard.stop].clone()
            inputs[name] = part.requires_grad_(inputs[name].requires_grad)
        got, _ = _results(case, {**inputs, "shard": shard}, weights)
    for name, value in want.items():
        largest = max(1.0, value.abs().max().item() if value.numel() else 0.0)
        value = _of_classes(case, name, value, shard)
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        worst = (got[name] - value).abs().max().item() if value.numel() else 0.0
        limit = TOLERANCE[dtype] * largest if value.is_floating_point() else 0
        assert worst <= limit, (case.name, classes, name, dtype, worst)


def _all_cases(rank, folder, number):
    with group(rank, folder, number):
        for case in CASES:
            for backend in ("native", "reference"):
                for dtype in TOLERANCE:
                    for classes in CLASSES if dtype == torch.float64 else (5, 1001):
                        _compare(case, classes, dtype, backend)
        _extremes()
        _of_any_size()
        _at_a_centroid()
        _agree()
        if number == 2:
            _compiled()
        _refusals()


def _extremes():
    """Ties go to the lower class, NaN comes first, a tail label keeps its softmax gradient."""
    shard = Shard.of(6)
    memory = torch.tensor([[3.0, 0], [1, 0], [1, 0], [1, 0], [5, 0], [2, 2]])
    x = torch.tensor([[0.0, 0], [torch.nan, 0], [5, 0.5]])
    want = ops.nearest_centroid(x, memory)
    memory[4] = torch.nan
    nan = ops.nearest_centroid(x, memory)
    memory[4] = torch.tensor([5.0, 0])
    for backend in ("native", "reference"):
        with use_backend(backend):
            got = ops.nearest_centroid(x, memory[shard.start : shard.stop], shard=shard)
            assert got.index.tolist() == want.index.tolist() == [1, 0, 4]
            torch.testing.assert_close(got.distance, want.distance, equal_nan=True)
            memory[4] = torch.nan
            got = ops.nearest_centroid(x, memory[shard.start : shard.stop], shard=shard)
            assert got.index.tolist()[::2] == nan.index.tolist()[::2] == [4, 4]
            assert got.distance.isnan().all()
            memory[4] = torch.tensor([5.0, 0])
            # 100.5 and 100.25 are one number of bfloat16, which the lower class would win
            far = torch.tensor([[0.0]] * 5 + [[0.25]], dtype=torch.bfloat16)
            x16 = torch.full((1, 1), 100.5, dtype=torch.bfloat16)
            got = ops.nearest_centroid(x16, far[shard.start : shard.stop], shard=shard)
            assert got.index.item() == ops.nearest_centroid(x16, far).index.item() == 5


def _of_any_size():
    """Distances that squares of float32 do not hold."""
    for backend in ("native", "reference"):
        for dtype, scale in (
            (torch.bfloat16, 1e-25),
            (torch.bfloat16, 1e30),
            (torch.float32, 1e-25),
            (torch.float32, 2e38),  # beyond its range, and still compared
        ):
            torch.manual_seed(0)
            memory = (torch.rand(12, 8, dtype=torch.float64) * scale).to(dtype)
            x = (memory[[9, 2]].double() * -0.5).to(dtype)
            shard, gate = Shard.of(12), (torch.zeros(8, 8).to(dtype), torch.zeros(8).to(dtype))
            own, bias = memory[shard.start : shard.stop], torch.zeros(12).to(dtype)
            with use_backend(backend):
                want = ops.nearest_centroid(x, memory)
                got = ops.nearest_centroid(x, own, shard=shard)
                parts = ops.meta_embedding(
                    *(x, own, own, bias[: shard.size], *gate), return_details=True, shard=shard
                )
            assert torch.equal(got.index, want.index) and torch.equal(parts.nearest, want.index)
            torch.testing.assert_close(got.distance / scale, want.distance / scale)


def _at_a_centroid():
    """A row that is a centroid, at distance 0, has a finite gradient, that of one process."""
    case, shard = BY_NAME["meta_embedding"], Shard.of(5)
    inputs = _inputs(case, 5, torch.float64)
    with torch.no_grad():
        inputs["x"][:5] = inputs["memory"]
    want, weights = _results(case, inputs, None)
    for name in BANKS[case.name]:
        part = inputs[name].detach()[shard.start : shard.stop].clone()
        inputs[name] = part.requires_grad_(inputs[name].requires_grad)
    got, _ = _results(case, {**inputs, "shard": shard}, weights)
    for name, value in want.items():
        value = _of_classes(case, name, value, shard)
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9, msg=name)


def _agree():
    """Every process has the same bits of what all have."""
    shard = Shard.of(7)
    torch.manual_seed(3)
    x, bank, bias = torch.randn(4, 5), torch.randn(7, 5), torch.randn(7)
    x.requires_grad_()
    here = slice(shard.start, shard.stop)
    out = ops.memory_attention(x, bank[here], bias[here], bank[here], shard=shard)
    loss = ops.cosine_cross_entropy(out, bank[here], torch.arange(4), shard=shard)
    (grad,) = torch.autograd.grad(loss, x)
    mine = torch.cat([out.detach().flatten(), loss.detach()[None], grad.flatten()])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    assert all(torch.equal(mine, other) for other in every)


def _compiled():
    """Gradients in float64, where no `.to` of a forward changes anything, too."""
    shard = Shard.of(7)
    here = slice(shard.start, shard.stop)
    torch.manual_seed(4)
    gate = (torch.randn(5, 5), torch.randn(5))
    keys, bias, target = torch.randn(7, 5)[here], torch.randn(7)[here], torch.arange(4)
    x, bank = torch.randn(4, 5), torch.randn(7, 5)[here]
    tensors = (x, bank, keys, bias, *gate)

    def attention(x, bank, keys, bias, *_):
        return ops.memory_attention(x, keys, bias, bank, shard=shard, memory_grad=True)

    def nearest(x, bank, *_):
        return ops.nearest_centroid(x, bank, shard=shard).distance

    def entropy(x, bank, *_):
        return ops.cosine_cross_entropy(x, bank, target, label_smoothing=0.1, shard=shard)

    def centroids(x, bank, *_):
        return ops.disc_centroids_loss(x, target, bank, shard=shard)

    def meta(x, bank, keys, bias, *gate):
        return ops.meta_embedding(x, bank, keys, bias, *gate, memory_grad=True, shard=shard)

    for loss in (attention, nearest, entropy, centroids, meta):
        for dtype in (torch.float32, torch.float64):
            inputs = [t.to(dtype).requires_grad_() for t in tensors]
            graph = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=False)
            found = []
            for call in (loss, graph):
                value = call(*inputs).square().sum()
                grads = torch.autograd.grad(value, inputs, allow_unused=True)
                found.append([value, *(g for g in grads if g is not None)])
            torch.testing.assert_close(*found)


def _refusals():
    shard = Shard.of(6)
    x, bank = torch.randn(3, 4), torch.randn(shard.size + 1, 4)
    with pytest.raises(ValueError, match=r"expected memory to hold the \d classes of its shard"):
        ops.nearest_centroid(x, bank, shard=shard)
    for backend in ("native", "reference"):
        with use_backend(backend):
            with pytest.raises(RuntimeError, match=r"every target in \[0, 6\), got 6 at row 1"):
                target = torch.tensor([0, 6, -100])
                ops.cosine_cross_entropy(x, bank[1:], target, shard=shard)
            with pytest.raises(RuntimeError, match=r"every target in \[0, 6\), got -1 at row 0"):
                ops.disc_centroids_loss(x, torch.tensor([-1, 0, 0]), bank[1:], shard=shard)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with pytest.raises(TypeError, match="nearest_centroid: expected memory to be a plain tensor"):
        ops.nearest_centroid(x, distribute_tensor(torch.randn(6, 4), mesh, [Replicate()]))


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_processes_together_give_what_one_has(number, tmp_path):
    in_processes(number, _all_cases, tmp_path, number)


def test_a_shard_that_is_none():
    for wrong in ((2, 1, 3), (0, 4, 3), (0, 0, 0)):
        with pytest.raises(ValueError, match="Shard: expected 0 <= start"):
            Shard(*wrong)
    assert BY_NAME.keys() == BANKS.keys()  # every op takes a shard
