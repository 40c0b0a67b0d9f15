"""One workload an op: its inputs, our call, and the inputs that get gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oltr_ext import ops

Inputs = dict[str, Any]
MODES = ("forward", "backward", "full")


@dataclass(frozen=True)
class Workload:
    """``make(B, C, D)`` gives float32 inputs. The first output of a call is differentiated."""

    make: Callable[[int, int, int], Inputs]
    ours: Callable[..., Any]
    leaves: tuple[str, ...]
    shape: Callable[[int, int, int], tuple[int, ...]]
    """Of the first output."""

    def inputs(self, B: int, C: int, D: int, dtype: torch.dtype, grad: bool) -> Inputs:
        """The same numbers at every call; leaves of one dtype, with gradients or without."""
        torch.manual_seed(0)
        made = self.make(B, C, D)
        leaves = {n: made[n].to(dtype).requires_grad_(grad) for n in self.leaves}
        return {**made, **leaves}


def _attention(B: int, C: int, D: int) -> Inputs:
    return {
        "x": torch.randn(B, D),
        "keys": torch.randn(C, D) / D**0.5,
        "key_bias": torch.randn(C),
        "memory": torch.randn(C, D),
    }


def _nearest(B: int, C: int, D: int) -> Inputs:
    return {"x": torch.randn(B, D), "memory": torch.randn(C, D)}


def _meta(B: int, C: int, D: int) -> Inputs:
    return {
        **_attention(B, C, D),
        "selector_weight": torch.randn(D, D) / D**0.5,
        "selector_bias": torch.randn(D),
    }


def _cosine(B: int, C: int, D: int) -> Inputs:
    return {"v": torch.randn(B, D), "weight": torch.randn(C, D)}


def _cross_entropy(B: int, C: int, D: int) -> Inputs:
    return {**_cosine(B, C, D), "target": torch.randint(C, (B,))}


def _centroids(B: int, C: int, D: int) -> Inputs:
    return {
        "x": torch.randn(B, D),
        "target": torch.randint(C, (B,)),
        "centroids": torch.randn(C, D),
    }


def _means(B: int, C: int, D: int) -> Inputs:
    return {"x": torch.randn(B, D), "target": torch.randint(C, (B,)), "num_classes": C}


def _rows(B: int, C: int, D: int) -> tuple[int, ...]:
    return B, D


def _scalar(B: int, C: int, D: int) -> tuple[int, ...]:
    return ()


WORKLOADS = {
    "memory_attention": Workload(
        _attention, ops.memory_attention, ("x", "keys", "key_bias", "memory"), _rows
    ),
    "nearest_centroid": Workload(
        _nearest, ops.nearest_centroid, ("x", "memory"), lambda B, C, D: (B,)
    ),
    "meta_embedding": Workload(
        _meta,
        lambda **k: ops.meta_embedding(**k, memory_grad=True),
        ("x", "keys", "key_bias", "memory", "selector_weight", "selector_bias"),
        _rows,
    ),
    "cosine_logits": Workload(_cosine, ops.cosine_logits, ("v", "weight"), lambda B, C, D: (B, C)),
    "cosine_cross_entropy": Workload(
        _cross_entropy, ops.cosine_cross_entropy, ("v", "weight"), _scalar
    ),
    # A margin that keeps the repel term at work, whatever D.
    "disc_centroids_loss": Workload(
        _centroids,
        lambda **k: ops.disc_centroids_loss(**k, margin=1e5),
        ("x", "centroids"),
        _scalar,
    ),
    "class_means": Workload(_means, ops.class_means, ("x",), lambda B, C, D: (C, D)),
}


def first(output: Any) -> Tensor:
    """The output that is differentiated."""
    return output if isinstance(output, Tensor) else output[0]


def caller(
    function: Callable[..., Any], inputs: Inputs, mode: str, shape: tuple[int, ...]
) -> Callable[[], Any]:
    """One call as it is timed, of a function whose first output has this shape.

    ``"backward"`` runs on a graph that is kept; ``"full"`` is both passes. Gradients are fresh
    tensors, never added to old ones, and begin with random numbers.
    """
    leaves = [t for t in inputs.values() if isinstance(t, Tensor) and t.requires_grad]
    if mode == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(**inputs)

        return forward

    torch.manual_seed(1)
    seed = torch.randn(shape).to(leaves[0])
    if mode == "full":

        def full() -> Any:
            output = first(function(**inputs))
            grads = torch.autograd.grad(output, leaves, seed.to(output.dtype))
            return output.detach(), *grads

        return full

    kept = first(function(**inputs))
    seed = seed.to(kept.dtype)
    return lambda: torch.autograd.grad(kept, leaves, seed, retain_graph=True)
