"""One workload per op, shared by the tests: inputs, the call, the differentiable inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oltr_ext import ops, use_backend

Inputs = dict[str, Any]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class Case:
    """`make(B, C, D)` gives float64 inputs; `call` returns a tuple of outputs."""

    name: str
    make: Callable[[int, int, int], Inputs]
    call: Callable[..., tuple[Tensor, ...]]
    differentiable: tuple[str, ...]


def _bank(C: int, D: int) -> Tensor:
    return torch.randn(C, D, dtype=torch.float64)


def _labels(B: int, C: int) -> Tensor:
    return torch.randint(C, (B,))


def _attention(B: int, C: int, D: int) -> Inputs:
    return {
        "x": torch.randn(B, D, dtype=torch.float64),
        "keys": _bank(C, D) / D**0.5,
        "key_bias": torch.randn(C, dtype=torch.float64),
        "memory": _bank(C, D),
    }


def _nearest(B: int, C: int, D: int) -> Inputs:
    return {"x": torch.randn(B, D, dtype=torch.float64), "memory": _bank(C, D)}


def _meta(B: int, C: int, D: int) -> Inputs:
    return {
        **_attention(B, C, D),
        "selector_weight": torch.randn(D, D, dtype=torch.float64) / D**0.5,
        "selector_bias": torch.randn(D, dtype=torch.float64),
    }


def _cosine(B: int, C: int, D: int) -> Inputs:
    return {"v": torch.randn(B, D, dtype=torch.float64), "weight": _bank(C, D)}


def _cross_entropy(B: int, C: int, D: int) -> Inputs:
    target = _labels(B, C)
    target[B // 2 : B // 2 + 1] = -100
    return {**_cosine(B, C, D), "target": target, "class_prior": torch.rand(C) + 0.1}


def _centroids(B: int, C: int, D: int) -> Inputs:
    return {
        "x": torch.randn(B, D, dtype=torch.float64) + 3,
        "target": _labels(B, C),
        "centroids": _bank(C, D) + 3,
    }


def _means(B: int, C: int, D: int) -> Inputs:
    return {
        "x": torch.randn(B, D, dtype=torch.float64),
        "target": _labels(B, C),
        "num_classes": C,
    }


CASES = [
    Case(
        "memory_attention",
        _attention,
        lambda **k: (ops.memory_attention(**k),),
        ("x", "keys", "key_bias", "memory"),
    ),
    Case("nearest_centroid", _nearest, lambda **k: ops.nearest_centroid(**k), ("x", "memory")),
    Case(
        "meta_embedding",
        _meta,
        lambda **k: ops.meta_embedding(**k, memory_grad=True, return_details=True),
        ("x", "keys", "key_bias", "memory", "selector_weight", "selector_bias"),
    ),
    Case("cosine_logits", _cosine, lambda **k: (ops.cosine_logits(**k),), ("v", "weight")),
    Case(
        "cosine_cross_entropy",
        _cross_entropy,
        lambda **k: (ops.cosine_cross_entropy(**k, label_smoothing=0.1, reduction="none"),),
        ("v", "weight"),
    ),
    Case(
        # A margin that keeps the repel term inside its clamp, whatever D.
        "disc_centroids_loss",
        _centroids,
        lambda **k: (ops.disc_centroids_loss(**k, margin=1e5, repel_weight=0.3),),
        ("x", "centroids"),
    ),
    Case("class_means", _means, lambda **k: ops.class_means(**k), ("x",)),
]
BY_NAME = {case.name: case for case in CASES}


def cast(
    inputs: Inputs, dtype: torch.dtype, case: Case, grad: bool = True, device: str | None = None
) -> Inputs:
    """Fresh leaves of another dtype, and all of it on `device` where one is given."""
    out = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in inputs.items()}
    for name in case.differentiable:
        out[name] = out[name].detach().to(dtype).clone().requires_grad_(grad)
    return out


def run(case: Case, inputs: Inputs, backend: str = "native") -> dict[str, Tensor]:
    """Outputs `out0..` and gradients `grad_<input>` of a fixed random combination of outputs."""
    with use_backend(backend):
        outputs = case.call(**inputs)
    result = {f"out{i}": o.detach() for i, o in enumerate(outputs)}
    generator = torch.Generator().manual_seed(7)
    total = outputs[0].new_zeros((), dtype=torch.float64)
    for o in outputs:
        if o.is_floating_point():
            weight = torch.randn(o.shape, generator=generator, dtype=torch.float64)
            total = total + (o.double() * weight.to(o.device)).sum()
    leaves = [inputs[n] for n in case.differentiable]
    grads = torch.autograd.grad(total, leaves)
    result.update({f"grad_{n}": g for n, g in zip(case.differentiable, grads, strict=True)})
    return result


def relative_error(got: Tensor, want: Tensor) -> float:
    """Largest difference over the largest magnitude (1 at least)."""
    if got.numel() == 0:
        return 0.0
    got, want = got.double().cpu(), want.double().cpu()
    return (got - want).abs().max().item() / max(1.0, want.abs().max().item())
