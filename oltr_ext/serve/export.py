"""A trained model as one program file, for where neither its run nor its configuration is."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from oltr_ext.config.schema import Data, EmbeddingsData, ListData
from oltr_ext.data import network_input
from oltr_ext.engine.build import own_defaults
from oltr_ext.models import OLTRModel
from oltr_ext.serve.inputs import is_made
from oltr_ext.serve.trained import Trained

__all__ = ["ABOUT", "export"]

ABOUT = "oltr.json"
"""What the file holds beside the program."""


class _Answers(nn.Module):
    """Pixels or embeddings -> (label, confidence), as `Head.predict`."""

    def __init__(self, model: OLTRModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.model.head.bank.keep_for(model.head.score)
        self.model.to(memory_format=torch.contiguous_format)  # as the file holds them

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        images = inputs[:, :, None, None] if inputs.dim() == 2 else network_input(inputs)
        return self.model.head.predict(self.model.features(images).float())


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
    fit = (data.augment.fit or "crop") if isinstance(data, ListData) else "pad"
    ink = "; inverted where that is light" if channels == 1 and is_made(data) else ""
    colour = "grey" if channels == 1 else "RGB"
    return f"{colour}, EXIF orientation applied, transparency on white, {fits[fit]}{ink}"


@own_defaults()
@torch.no_grad()
def export(trained: Trained, path: str | Path) -> Path:
    """Write a trained model as a program of `torch.export`.

    It takes uint8 pixels (B, channels, size, size) as the model is trained on, upright and before
    their mean and std (``images`` of ``oltr.json`` says how they are made), or embeddings (B, D)
    float32, of any number of rows; and gives the label (B,) int64, -1 for unknown, and the
    confidence (B,) float64::

        about = {"oltr.json": ""}
        program = torch.export.load("model.pt2", extra_files=about)
        label, confidence = program.module()(pixels)
        names = json.loads(about["oltr.json"])["class_names"]

    The ops of a memory head, and of a score by training features, are those of `import oltr_ext`,
    which must come first; or, exported under the backend ``reference``, torch's own. Of the
    training's features the file holds what the model's score needs, all that are kept for one by
    the nearest feature.

    Args:
        trained: on the CPU.

    Raises:
        ValueError: a model on another device, or a file of another name than .pt2.
    """
    path = Path(path)
    if trained.device.type != "cpu":
        raise ValueError(f"export: expected a model on the CPU, got one on {trained.device}")
    if path.suffix != ".pt2":
        raise ValueError(f"export: expected a file named .pt2, got {path}")
    data, shape = trained.config.data, trained.image_shape
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    if isinstance(data, EmbeddingsData):
        example = torch.zeros(2, shape[0], dtype=torch.float32)
    program = torch.export.export(
        _Answers(trained.model),
        (example,),
        dynamic_shapes=({0: torch.export.Dim("rows")},),
    )
    about = {
        "class_names": trained.names,
        "score": trained.threshold["score"],
        "threshold": trained.threshold["value"],
        "input": f"{str(example.dtype).removeprefix('torch.')} (rows, "
        f"{', '.join(map(str, example.shape[1:]))})",
        "images": _made_so(data, *shape[:2]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    torch.export.save(
        program, unfinished, extra_files={ABOUT: json.dumps(about, ensure_ascii=False)}
    )
    unfinished.replace(path)
    return path
