"""A trained model as a graph of `torch.export`, and what a file of it says beside."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from oltr_ext.config.schema import Data, EmbeddingsData
from oltr_ext.data import network_input
from oltr_ext.models import OLTRModel
from oltr_ext.models.tuning import merge_adapters
from oltr_ext.serve.any_size import AnySize
from oltr_ext.serve.inputs import fit_of, is_made, smooth_of
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

    def __init__(self, model: OLTRModel, made: AnySize | None = None) -> None:
        super().__init__()
        self.made = made
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.head.bank.keep_for(model.head.score)
        merge_adapters(self.model.backbone)
        self.model.to(memory_format=torch.contiguous_format)  # as the file holds them

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.made is not None:
            inputs = self.made(inputs)
        images = inputs[:, :, None, None] if inputs.dim() == 2 else network_input(inputs)
        return self.model.head.predict(self.model.features(images).float())


def traced(trained: Trained, any_size: bool = False) -> Traced:
    """Trace a model on the CPU, under the backend that is chosen.

    Raises:
        ValueError: any size, and embeddings.
    """
    data, shape = trained.config.data, trained.image_shape
    axes, made = {0: "rows"}, None
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    if isinstance(data, EmbeddingsData):
        if any_size:
            raise ValueError("export: any size is of images, and this model takes embeddings")
        example = torch.zeros(2, shape[0], dtype=torch.float32)
    elif any_size:
        axes |= {2: "height", 3: "width"}
        made = AnySize(shape[1], fit_of(data), smooth_of(data), invert=inverted(data, shape[0]))
        example = torch.zeros(2, shape[0], 37, 53, dtype=torch.uint8)  # no size is like another
    program = torch.export.export(
        _Answers(trained.model, made),
        (example,),
        dynamic_shapes=({axis: Dim(name) for axis, name in axes.items()},),
    )
    extent = [axes.get(axis, str(size)) for axis, size in enumerate(example.shape)]
    about = {
        "class_names": trained.names,
        "score": trained.threshold["score"],
        "threshold": trained.threshold["value"],
        "input": f"{str(example.dtype).removeprefix('torch.')} ({', '.join(extent)})",
        "images": _made_so(data, *shape[:2], any_size),
    }
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    ops = sorted(name.split(".")[1] for name in called if name.startswith("oltr_ext."))
    return Traced(program, about, axes, ops)


def _made_so(data: Data, channels: int, size: int, any_size: bool) -> str | None:
    """How a file becomes the program's pixels, in words; None for embeddings."""
    if isinstance(data, EmbeddingsData):
        return None
    colour = "grey" if channels == 1 else "RGB"
    first = f"{colour}, EXIF orientation applied, transparency on white"
    if any_size:
        return f"{first}, of any size"
    by = f"{round(size * 256 / 224)}{' bicubically' if smooth_of(data) == 'bicubic' else ''}"
    fits = {
        "crop": f"short side resized to {by}, middle {size} x {size} cut out",
        "pad": f"longer side resized to {size}, padded to a square with the median of the border",
        "resize": f"resized to {size} x {size}",
    }
    ink = "; inverted where that is light" if inverted(data, channels) else ""
    return f"{first}, {fits[fit_of(data)]}{ink}"


def inverted(data: Data, channels: int) -> bool:
    """Whether images on a light ground are."""
    return channels == 1 and is_made(data)
