"""A program of ONNX's own operators."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from oltr_ext.serve.any_size import RESIZE
from oltr_ext.serve.export_program import Traced

__all__ = ["OPSET", "check", "check_program", "needs", "write"]

OPSET = 18
"""The lowest that torch writes, and so what most runtimes read."""


def check() -> None:
    """Raises RuntimeError where the packages of the extra are not installed."""
    lacking = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if lacking:
        raise RuntimeError(
            f"export: format onnx needs {' and '.join(lacking)}: pip install oltr_ext[onnx]"
        )


def check_program(it: Traced) -> None:
    """Raises ValueError for what ONNX has no operator for."""
    resizes = {op.default for op in RESIZE.values()}
    if any(node.target in resizes for node in it.program.graph.nodes):
        raise ValueError(
            "export: format onnx cannot carry any size of images that are cropped: its Resize "
            "rounds eight bits otherwise than torch's. Export without it, and resize and cut "
            "before the program as `images` of oltr.json says, or train with data.augment.fit "
            "pad or resize"
        )


def needs(it: Traced) -> str:
    """What runs the file, in words."""
    return (
        f"a runtime for ONNX opset {OPSET} that has its operators in float64 too, such as "
        "onnxruntime 1.18 or later on a CPU; files over 2 GB have their weights in FILE.data beside"
    )


def write(it: Traced, path: Path, about: Mapping[str, str]) -> None:
    """Translate a graph of torch's own operators into a file."""
    # all of it: of an attention over three axes, say, the translation takes the parts alone
    table = torch.export.default_decompositions()
    table[torch.ops.aten._cdist_forward.default] = _distances
    table[torch.ops.aten.amax.default] = _largest
    program = torch.onnx.export(
        it.program.run_decompositions(table),
        dynamo=True,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["label", "confidence"],
        dynamic_shapes=({**it.axes},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(about)
    program.save(str(path))


def _distances(x: Tensor, memory: Tensor, p: float, mode: int | None) -> Tensor:
    """`torch.cdist`, for which ONNX has no operator, by products in float64.

    The reference only selects by it, and measures what it selected.
    """
    assert p == 2
    a, b = x.double(), memory.double()
    square = a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1) - 2 * (a @ b.t())
    return square.clamp_min(0).sqrt().to(x.dtype)


def _largest(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """`torch.amax`: NaN where there is one.

    Of ONNX's, onnxruntime makes NaN or the largest number by where NaN stands and how often.
    """
    for d in sorted((d % x.dim() for d in dim or range(x.dim())), reverse=True):
        top = x.max(d, keepdim).values
        x = torch.where(x.isnan().any(d, keepdim), torch.nan, top) if x.is_floating_point() else top
    return x
