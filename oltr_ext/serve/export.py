"""A trained model as one file, for where neither its run nor its configuration is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from oltr_ext._defaults import own_defaults
from oltr_ext.data.folders import made_folder, scratch_folder
from oltr_ext.ops import use_backend
from oltr_ext.serve import export_aoti, export_onnx
from oltr_ext.serve.export_program import Traced, traced
from oltr_ext.serve.trained import Trained

__all__ = ["ABOUT", "FORMATS", "Format", "export"]

ABOUT = "oltr.json"
"""What the file holds beside the program."""

Format = Literal["torch", "aoti", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIX = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}


@own_defaults()
@torch.no_grad()
def export(
    trained: Trained,
    path: str | Path,
    *,
    format: Format = "torch",
    any_size: bool = False,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Write a trained model as a program.

    It takes uint8 pixels (B, channels, size, size) as the model is trained on, upright and before
    their mean and std (``images`` of ``oltr.json`` says how they are made), or embeddings (B, D)
    float32, of any number of rows; and gives the label (B,) int64, -1 for unknown, and the
    confidence (B,) float64.

    ``torch``, a program of `torch.export`::

        import json, torch, oltr_ext  # oltr_ext: for programs that call its ops

        about = {"oltr.json": ""}
        program = torch.export.load("model.pt2", extra_files=about)
        label, confidence = program.module()(pixels)
        names = json.loads(about["oltr.json"])["class_names"]

    ``aoti``, compiled by AOTInductor for libtorch without Python; examples/cpp runs it. In both the
    ops of a memory head, and of a score by training features, are those of `import oltr_ext` or of
    its op library, loaded first; or, exported under the backend ``reference``, torch's own.
    ``onnx``, of ONNX's own operators alone, ``oltr.json`` among its metadata.

    Of the training's features the file holds what the model's score needs, all that are kept for
    one by the nearest feature.

    Args:
        trained: on the CPU.
        any_size: the program takes pixels (B, channels, height, width) of any size, as an image
            has them, and makes of them what the model is trained on.
        say: gets what the target needs, in words.

    Raises:
        ValueError: a model on another device or with streamed banks, a folder, a file of another
            name than .pt2 or .onnx, or what the format cannot carry.
        RuntimeError: what the format needs here is not installed.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ValueError(f"export: expected a format of {', '.join(FORMATS)}, got {format!r}")
    if trained.device.type != "cpu":
        raise ValueError(f"export: expected a model on the CPU, got one on {trained.device}")
    trained.check_in_memory("export")
    if path.is_dir():
        raise ValueError(f"export: expected a file, {path} is a folder")
    if path.suffix != SUFFIX[format]:
        raise ValueError(f"export: expected a file named {SUFFIX[format]}, got {path}")
    if format == "onnx":
        export_onnx.check()
        with use_backend("reference"):
            it = traced(trained, any_size)
        export_onnx.check_program(it)
    else:
        if format == "aoti":
            export_aoti.check()
        it = traced(trained, any_size)
    needs = {"torch": _needs, "aoti": export_aoti.needs, "onnx": export_onnx.needs}[format](it)
    about = json.dumps({**it.about, "format": format, "needs": needs}, ensure_ascii=False)
    # named as it will be, for a file may name its neighbours
    with made_folder(path.parent), scratch_folder(path) as folder:
        unfinished = folder / path.name
        if format == "torch":
            torch.export.save(it.program, unfinished, extra_files={ABOUT: about})
        else:
            write = {"aoti": export_aoti.write, "onnx": export_onnx.write}[format]
            write(it, unfinished, {ABOUT: about})
        for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            file.replace(path.with_name(file.name))
    if say is not None:
        say(f"needs: {needs}")
    return path


def _needs(it: Traced) -> str:
    first = f", and `import oltr_ext` first ({', '.join(it.ops)})" if it.ops else " alone"
    return f"Python with torch {torch.__version__.split('+')[0]} or later{first}"
