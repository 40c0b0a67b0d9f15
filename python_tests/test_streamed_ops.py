"""Ops over a bank that passes by in blocks give what they give for the tensor."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from op_cases import BY_NAME, cast
from safetensors.torch import save_file

from oltr_ext import ops, use_backend
from oltr_ext.ops import StreamedBank

BANKS = {
    "memory_attention": ("keys", "memory"),
    "nearest_centroid": ("memory",),
    "meta_embedding": ("memory", "keys"),
    "cosine_logits": ("weight",),
    "cosine_cross_entropy": ("weight",),
}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def _inputs(name, classes, dtype, rows=9, width=7):
    case = BY_NAME[name]
    torch.manual_seed(classes)
    inputs = cast(case.make(rows, classes, width), dtype, case)
    inputs = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    if "class_prior" in inputs and classes > 4:
        inputs["class_prior"][2] = 0  # impossible, and no target
        inputs["target"][inputs["target"] == 2] = 1
    return case, inputs


def _streamed(inputs, names, folder, block):
    file = folder / "banks.safetensors"
    save_file({name: inputs[name] for name in names}, str(file))
    banks = {name: StreamedBank(file, name, block=block) for name in names}
    return {**inputs, **banks}


def _results(case, inputs):
    """Outputs, and the gradients of features and gate under some weights."""
    leaves = {
        name: inputs[name].clone().requires_grad_()
        for name in ("x", "v", "selector_weight", "selector_bias")
        if name in inputs
    }
    outputs = case.call(**{**inputs, **leaves})
    torch.manual_seed(0)
    total = sum(
        (o.double() * torch.randn(o.shape, dtype=torch.float64)).sum()
        for o in outputs
        if o.is_floating_point()
    )
    return [o.detach() for o in outputs], torch.autograd.grad(total, [*leaves.values()])


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("classes", "block"), [(1, 1), (10, 3), (33, 100), (1001, 64)])
@pytest.mark.parametrize("name", BANKS)
def test_blocks_give_what_the_tensor_gives(name, classes, block, dtype, backend, tmp_path):
    case, inputs = _inputs(name, classes, dtype)
    with use_backend(backend):
        expected, slopes = _results(case, inputs)
        found, grads = _results(case, _streamed(inputs, BANKS[name], tmp_path, block))
    for one, other in zip([*found, *grads], [*expected, *slopes], strict=True):
        assert one.dtype == other.dtype
        scale = max(1.0, float(other.abs().max())) if other.is_floating_point() else 1
        atol = TOLERANCE[dtype] * scale
        torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("prior", [False, True])
def test_smoothing_and_prior_run_over_all_blocks(smoothing, prior, backend, tmp_path):
    _, inputs = _inputs("cosine_cross_entropy", 50, torch.float64)
    v, target = inputs["v"].requires_grad_(), inputs["target"]
    options = {
        "label_smoothing": smoothing,
        "class_prior": inputs["class_prior"] if prior else None,
        "reduction": "mean",
    }
    np.save(tmp_path / "w.npy", inputs["weight"].numpy())
    bank = StreamedBank(tmp_path / "w.npy", block=7)
    with use_backend(backend):
        losses = [
            ops.cosine_cross_entropy(v, w, target, **options) for w in (inputs["weight"], bank)
        ]
        slopes = [torch.autograd.grad(loss, v)[0] for loss in losses]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_ties_go_to_the_lower_class_and_nan_comes_first(backend, dtype):
    memory = torch.zeros(12, 3, dtype=dtype)
    memory[1:] = 5
    memory[7], memory[9] = 1, 1  # a tie across blocks
    x = torch.tensor([[1.5, 1, 1], [float("nan"), 0, 0], [5, 5, 5]], dtype=dtype)
    bank = StreamedBank(memory, block=2)
    with use_backend(backend):
        found = ops.nearest_centroid(x, bank)
        assert found.index.tolist() == [7, 0, 1]
        assert found.distance[2] == 0 and found.distance[1].isnan()
        memory[10] = float("nan")
        assert ops.nearest_centroid(x, bank).index.tolist() == [10, 0, 10]


def test_rounded_distances_are_no_ties():
    x = torch.zeros(1, 2, dtype=torch.bfloat16)
    memory = torch.tensor([[256.0, 2.0], [256.0, 1.0]], dtype=torch.bfloat16)
    assert ops.nearest_centroid(x, StreamedBank(memory, block=1)).index.item() == 1
    x = torch.full((1, 4), -3e38)
    memory = torch.stack([torch.full((4,), 3e38), torch.full((4,), 2.9e38)])
    found = ops.nearest_centroid(x, StreamedBank(memory, block=1))
    assert found.index.item() == 1 and found.distance.isinf()


def test_gradients_at_and_far_from_a_centroid():
    x = torch.tensor([[1.0, 1.0], [4.0, 5.0], [3e-30, 0.0]], dtype=torch.float64) * 1e200
    x.requires_grad_()
    bank = StreamedBank(torch.tensor([[0.0, 0.0], [1e200, 1e200]], dtype=torch.float64), block=1)
    ops.nearest_centroid(x, bank).distance.sum().backward()
    assert torch.allclose(x.grad, torch.tensor([[0, 0], [0.6, 0.8], [1, 0]]).double())


def test_a_pass_is_for_all_rows_at_once_and_reads_each_byte_once_in_order(tmp_path, monkeypatch):
    import os

    _, inputs = _inputs("nearest_centroid", 100, torch.float32)
    np.save(tmp_path / "m.npy", inputs["memory"].numpy())
    bank = StreamedBank(tmp_path / "m.npy", block=7)
    reads, plain = [], os.preadv

    def watched(file, buffers, offset):
        count = plain(file, buffers, offset)
        reads.append((offset, count))
        return count

    monkeypatch.setattr(os, "preadv", watched)
    monkeypatch.setattr("oltr_ext.ops.bank.leased", lambda file: nullcontext())
    ops.nearest_centroid(inputs["x"], bank)
    assert [at for at, _ in reads] == [128 + 7 * 28 * n for n in range(15)]
    assert sum(count for _, count in reads) == bank.nbytes == inputs["memory"].numel() * 4


def test_only_some_classes(tmp_path):
    case, inputs = _inputs("meta_embedding", 40, torch.float64)
    kept = torch.tensor([0, 3, 4, 17, 18, 39])
    parts = {k: inputs[k][kept] for k in ("memory", "keys", "key_bias")}
    expected = case.call(**{**inputs, **parts})
    streamed = _streamed(inputs, ("memory", "keys"), tmp_path, 5)
    banks = {k: streamed[k].only(kept) for k in ("memory", "keys")}
    found = case.call(**{**inputs, **parts, **banks})
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    at = torch.tensor([5, 0, 3])
    assert torch.equal(banks["memory"].at(at), inputs["memory"][kept[at]])
    again = banks["memory"].only(torch.tensor([1, 5]))
    assert torch.equal(again.at(torch.tensor([1, 0])), inputs["memory"][[39, 3]])
    for wrong in ([3, 1], [1, 1], [40], [-1]):
        with pytest.raises(ValueError, match="ascending"):
            streamed["memory"].only(torch.tensor(wrong))


def test_autocast_computes_in_the_dtype_of_the_bank(tmp_path):
    _, inputs = _inputs("nearest_centroid", 20, torch.float32)
    expected = ops.nearest_centroid(inputs["x"], inputs["memory"])
    with torch.autocast("cpu"):
        found = ops.nearest_centroid(inputs["x"].bfloat16(), StreamedBank(inputs["memory"]))
    assert found.distance.dtype == torch.float32
    assert torch.equal(found.index, expected.index)


def test_a_bank_gets_no_gradient_and_no_shard():
    case, inputs = _inputs("memory_attention", 10, torch.float32)
    banks = {**inputs, "keys": StreamedBank(inputs["keys"])}
    for name in ("memory", "key_bias"):
        with pytest.raises(ValueError, match=f"read-only.*{name}"):
            case.call(**{**banks, name: inputs[name].clone().requires_grad_()})
    with pytest.raises(ValueError, match="read-only"):
        StreamedBank(inputs["keys"].clone().requires_grad_())
    with pytest.raises(ValueError, match="no shard"):
        ops.nearest_centroid(inputs["x"], banks["keys"], shard=ops.Shard(0, 10, 10))


def test_what_does_not_fit():
    x = torch.randn(3, 4)
    bank = StreamedBank(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"memory of shape \(5, 3\), got \(5, 4\)"):
        ops.nearest_centroid(x[:, :3], bank)
    with pytest.raises(TypeError, match=r"dtype torch\.float64, got torch\.float32"):
        ops.nearest_centroid(x.double(), bank)
    with pytest.raises(ValueError, match="at least one class, got 0"):
        ops.nearest_centroid(x, StreamedBank(torch.randn(0, 4)))
    with pytest.raises(ValueError, match="memory of shape"):
        ops.memory_attention(x, bank, torch.zeros(5), torch.randn(6, 4))
    with pytest.raises(RuntimeError, match=r"\[0, 5\), got 5 at row 1"):
        ops.cosine_cross_entropy(x, bank, torch.tensor([0, 5, 0]))
    with pytest.raises(TypeError, match="got StreamedBank"):
        ops.disc_centroids_loss(x, torch.tensor([0, 1, 0]), bank)
    with pytest.raises(ValueError, match="block of at least 1"):
        StreamedBank(torch.randn(5, 4), block=0)


def test_no_rows():
    bank = StreamedBank(torch.randn(5, 4), block=2)
    none = torch.empty(0, 4)
    assert ops.nearest_centroid(none, bank).index.shape == (0,)
    assert ops.memory_attention(none, bank, torch.zeros(5), bank).shape == (0, 4)
    assert ops.cosine_logits(none, bank).shape == (0, 5)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_distances_of_any_size_are_those_of_the_tensor(dtype, scale, backend):
    memory = (torch.randn(12, 8, dtype=torch.float64) * scale).to(dtype)
    x = memory[[9, 2]] * 1.25
    with use_backend(backend):
        want = ops.nearest_centroid(x, memory)
        got = ops.nearest_centroid(x, StreamedBank(memory, block=4))
    assert got.index.tolist() == want.index.tolist() == [9, 2]
    torch.testing.assert_close(got.distance / scale, want.distance / scale)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("name", BANKS)
def test_double_backward_is_refused(name, backend, tmp_path):
    """Also where what comes in, as of a mean, is a constant."""
    case, inputs = _inputs(name, 5, torch.float32)
    leaf = "x" if "x" in inputs else "v"
    inputs = _streamed(inputs, BANKS[name], tmp_path, 2)
    inputs[leaf] = inputs[leaf].requires_grad_()
    for power in (1, 2):
        out = case.call(**inputs)[0]
        (grad,) = torch.autograd.grad(out.pow(power).sum(), inputs[leaf], create_graph=True)
        if name == "nearest_centroid":  # whose gradient is one of the nearest row
            assert grad.square().sum().requires_grad
            continue
        with pytest.raises(RuntimeError, match="double backward is not supported over a streamed"):
            grad.square().sum().backward()


@pytest.mark.parametrize("name", BANKS)
def test_a_compiled_graph_breaks_there(name, tmp_path):
    torch._dynamo.reset()
    case, inputs = _inputs(name, 5, torch.float32)
    inputs = _streamed(inputs, BANKS[name], tmp_path, 2)

    def twice(lead):
        return 2 * case.call(**{**inputs, leaf: lead + 1})[0]

    leaf = "x" if "x" in inputs else "v"
    want = twice(inputs[leaf])
    torch.testing.assert_close(torch.compile(twice, backend="eager")(inputs[leaf]), want)
