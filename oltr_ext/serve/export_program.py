"""A trained model as a graph of `torch.export`, and what a file of it says beside."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from oltr_ext.config.schema import Data, EmbeddingsData, ListData
from oltr_ext.data import network_input
from oltr_ext.data.transforms import Fit
from oltr_ext.models import OLTRModel
from oltr_ext.models.tuning import merge_adapters
from oltr_ext.serve.inputs import is_made
from oltr_ext.serve.trained import Trained

__all__ = ["Traced", "traced"]


@dataclass
class Traced:
    """A graph of pixels or embeddings to (label, confidence)."""

    program: ExportedProgram
    about: dict[str, Any]
    axes: dict[int, str]  # of the input, those of any size
    ops: list[str] = field(default_factory=list)  # of this package, that the graph calls


class _Answers(nn.Module):
    """Pixels or embeddings -> (label, confidence), as `Head.predict`."""

    def __init__(self, model: OLTRModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.head.bank.keep_for(model.head.score)
        merge_adapters(self.model.backbone)
        self.model.to(memory_format=torch.contiguous_format)  # as the file holds them

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        images = inputs[:, :, None, None] if inputs.dim() == 2 else network_input(inputs)
        return self.model.head.predict(self.model.features(images).float())


def traced(trained: Trained) -> Traced:
    """Trace a model on the CPU, under the backend that is chosen."""
    data, shape = trained.config.data, trained.image_shape
    axes = {0: "rows"}
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    if isinstance(data, EmbeddingsData):
        example = torch.zeros(2, shape[0], dtype=torch.float32)
    program = torch.export.export(
        _Answers(trained.model),
        (example,),
        dynamic_shapes=({axis: Dim(name) for axis, name in axes.items()},),
    )
    extent = [axes.get(axis, str(size)) for axis, size in enumerate(example.shape)]
    about = {
        "class_names": trained.names,
        "score": trained.threshold["score"],
        "threshold": trained.threshold["value"],
        "input": f"{str(example.dtype).removeprefix('torch.')} ({', '.join(extent)})",
        "images": _made_so(data, *shape[:2]),
    }
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ops = sorted(name.split(".")[1] for name in called if name.startswith("oltr_ext."))
    return Traced(program, about, axes, ops)


def _made_so(data: Data, channels: int, size: int) -> str | None:
    """How a file becomes the program's pixels, in words; None for embeddings."""
    if isinstance(data, EmbeddingsData):
        return None
    cubic = isinstance(data, ListData) and data.interpolation == "bicubic"
    by = f"{round(size * 256 / 224)}{' bicubically' if cubic else ''}"
    fits = {
        "crop": f"short side resized to {by}, middle {size} x {size} cut out",
        "pad": f"longer side resized to {size}, padded to a square with the median of the border",
        "resize": f"resized to {size} x {size}",
    }
    ink = "; inverted where that is light" if channels == 1 and is_made(data) else ""
    colour = "grey" if channels == 1 else "RGB"
    return f"{colour}, EXIF orientation applied, transparency on white, {fits[fit_of(data)]}{ink}"


def fit_of(data: Data) -> Fit:
    """How images of these data become squares."""
    return (data.augment.fit or "crop") if isinstance(data, ListData) else "pad"
