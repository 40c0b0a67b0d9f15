"""Bad arguments are named: the op, what was expected, what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from op_cases import CASES, cast

from oltr_ext import ops, use_backend

every_op = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def float_inputs(case):
    return cast(case.make(4, 5, 6), torch.float32, case)


@every_op
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_wrong_shape_of_each_argument(case, backend):
    good = float_inputs(case)
    for name, value in good.items():
        if not isinstance(value, torch.Tensor):
            continue
        for wrong in (value[:-1], value.unsqueeze(0)):
            if case.name == "nearest_centroid" and wrong.dim() == 2:
                continue  # any number of rows fits there
            if name in ("weight", "x", "v", "centroids") and wrong.dim() == 2:
                first = name in ("x", "v")
                if (first and "target" not in good) or case.name == "cosine_logits":
                    continue
                if name == "centroids":
                    continue
            with use_backend(backend), pytest.raises(ValueError, match=f"^{case.name}: expected"):
                case.call(**{**good, name: wrong})


@every_op
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_wrong_dtype_of_each_argument(case, backend):
    good = float_inputs(case)
    for name, value in good.items():
        if name == "class_prior" or not isinstance(value, torch.Tensor):
            continue
        for dtype in (torch.int32, torch.float64 if name != case.differentiable[0] else torch.bool):
            with use_backend(backend), pytest.raises(TypeError, match=f"^{case.name}: expected"):
                case.call(**{**good, name: value.detach().to(dtype)})


@every_op
def test_wrong_device(case):
    good = float_inputs(case)
    for name, value in good.items():
        if isinstance(value, torch.Tensor) and name != case.differentiable[0]:
            with pytest.raises(ValueError, match=f"^{case.name}: expected {name} on cpu, got meta"):
                case.call(**{**good, name: value.to("meta")})


@every_op
def test_not_a_tensor(case):
    good = float_inputs(case)
    with pytest.raises(TypeError, match=f"^{case.name}: expected .* to be a Tensor, got list"):
        case.call(**{**good, case.differentiable[0]: [[1.0]]})


@every_op
def test_meta_tensors_have_the_right_shapes(case):
    good = float_inputs(case)
    meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in good.items()}
    for real, fake in zip(case.call(**good), case.call(**meta), strict=True):
        assert real.shape == fake.shape and real.dtype == fake.dtype


@pytest.mark.parametrize("op", ["disc_centroids_loss", "class_means"])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("bad", [-1, 5])
def test_label_out_of_range(op, backend, bad):
    x, target = torch.randn(3, 4), torch.tensor([0, bad, 2])
    last = 5 if op == "class_means" else torch.randn(5, 4)
    with use_backend(backend), pytest.raises(RuntimeError, match=rf"{op}: .*got {bad} at row 1"):
        getattr(ops, op)(x, target, last)


def test_options():
    x, w, t = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="reduction to be one of mean, sum, none, got 'avg'"):
        ops.cosine_cross_entropy(x, w, t, reduction="avg")
    with pytest.raises(ValueError, match="label_smoothing to be finite, at least 0 and at most 1"):
        ops.cosine_cross_entropy(x, w, t, label_smoothing=1.5)
    with pytest.raises(ValueError, match="compat to be one of fixed, official, got 'new'"):
        ops.disc_centroids_loss(x, t, w, compat="new")
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match=f"scale to be finite, at least 0, got {bad}"):
            ops.cosine_logits(x, w, scale=float(bad))
    for prior in ([1.0] * 5, np.ones(5)):
        with pytest.raises(TypeError, match=r"class_prior to be a Tensor, got (list|ndarray)"):
            ops.cosine_cross_entropy(x, w, t, class_prior=prior)
    with pytest.raises(ValueError, match="at least one class, got 0"):
        ops.nearest_centroid(x, w[:0])
    with pytest.raises(ValueError, match="num_classes of at least 1, got 0"):
        ops.class_means(x, t, 0)
    with pytest.raises(ValueError, match="feature width of at least 1"):
        ops.nearest_centroid(x[:, :0], w[:, :0])


def test_raw_ops_check_too():
    """torch.ops is reachable without the public functions and must not read out of bounds."""
    x = torch.randn(3, 4)
    with pytest.raises(RuntimeError, match=r"expected memory of shape \(5, 4\), got \(5, 3\)"):
        torch.ops.oltr_ext.nearest_centroid(x, torch.randn(5, 3), "highest")
    with pytest.raises(RuntimeError, match="expected memory of dtype float32, got float64"):
        torch.ops.oltr_ext.nearest_centroid(x, torch.randn(5, 4).double(), "highest")
    index = torch.tensor([0, 9, 1])
    with pytest.raises(RuntimeError, match="got 9 at row 1"):
        torch.ops.oltr_ext.nearest_centroid_backward(x[:, 0], x, torch.randn(5, 4), index, True)


def test_whole_numbers():
    x, w, t = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([0, 1, 2])
    for bad in (5.0, None, "5"):
        with pytest.raises(TypeError, match=f"class_means: expected num_classes .*got {bad!r}"):
            ops.class_means(x, t, bad)
        with pytest.raises(TypeError, match=f"entropy: expected ignore_index .*got {bad!r}"):
            ops.cosine_cross_entropy(x, w, t, ignore_index=bad)
    assert ops.class_means(x, t, np.int64(5)).counts.tolist() == [1, 1, 1, 0, 0]


def test_raw_backwards_of_no_feature():
    """Their plans divide by the width."""
    f = torch.ops.oltr_ext
    x, bank, row, each = torch.zeros(2, 0), torch.zeros(3, 0), torch.zeros(2), torch.zeros(3)
    index, counts, square = torch.zeros(2).long(), torch.ones(3).long(), torch.zeros(0, 0)
    calls = {
        "cosine_logits": (torch.zeros(2, 3), x, bank, 16.0, "highest"),
        "cosine_cross_entropy": (
            *(row, x, bank, index, None, row, 16.0, 0.0, -100, -1, "highest"),
        ),
        "class_means": (bank, index, counts),
        "disc_centroids_loss": (row.sum(), x, index, bank, torch.zeros(1).double(), 0.01, False),
        "nearest_centroid": (row, x, bank, index, True),
        "memory_attention": (x, x, bank, each, bank, x, row, True, "highest"),
        "meta_embedding": (
            *(x, x, None, row, x, bank, bank, each, square, x, x, row, index, row),
            *(10.0, 1e-6, True, "highest"),
        ),
    }
    for name, arguments in calls.items():
        with pytest.raises(RuntimeError, match=f"{name}.*: expected at least one feature"):
            getattr(f, f"{name}_backward")(*arguments)
