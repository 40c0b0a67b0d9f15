"""Checkpoints that hold what was trained alone: what they say of the rest; reading them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from oltr_ext.config.schema import Config
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model
from oltr_ext.models import OLTRModel
from oltr_ext.models.weights import is_file

__all__ = ["described", "read_back", "with_base"]

BASE = "base"  # key of the header


def described(model: OLTRModel, config: Config) -> dict[str, str] | None:
    """JSON-able, the weights that a checkpoint of this model leaves out; None where it has all."""
    if model.base is None:
        return None
    asked = config.model
    return {
        "backbone": asked.backbone,
        "weights": str(asked.weights),
        "sha256": model.base.sha256,
    }


def with_base(
    model: OLTRModel, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> checkpoint.Contents:
    """Tensors and header of a model's checkpoint, with the weights it stands on in it."""
    if model.base is None:
        return dict(tensors), dict(header)
    own = model.state_dict()
    rest = {f"model.{key}": own[key] for key in model.base.keys}
    return {**tensors, **rest}, {**header, BASE: None}


def read_back(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    config: Config,
    *,
    fill: Callable[[OLTRModel, Mapping[str, Tensor]], None] = OLTRModel.load_learned,
    banks: bool = True,
) -> OLTRModel:
    """The model of a checkpoint, on the CPU.

    A file of base weights that is not where it was is looked for beside the checkpoint.

    Args:
        path: what to call it.
        config: of the run; of its base weights, which may have moved, the place is taken from here.
        fill: gives a model its tensors.
        banks: see `build_model`.

    Raises:
        CheckpointError: the base weights are gone, or are others.
    """
    base, stage, shape = header.get(BASE), header["state"]["stage"], header["shape"]
    learned = checkpoint.under("model.", tensors)
    if base is None:
        model = build_model(config, stage, shape, weights=False, banks=banks)
        fill(model, learned)
        return model
    config = _found_beside(path, config)
    what = f"{path} holds what was trained alone, and stands on {base['weights']} of "
    what += f"{base['backbone']} (SHA-256 {base['sha256'][:16]}...)"
    try:
        model = build_model(config, stage, shape, weights=True, banks=banks)
    except ValueError as error:
        folder = path if path.is_dir() else path.parent
        raise checkpoint.CheckpointError(
            f"{what}, which cannot be read: {error}\nput the file there again, or a copy of it in "
            f"{folder}"
        ) from None
    there = None if model.base is None else model.base.sha256
    if there != base["sha256"]:
        raise checkpoint.CheckpointError(
            f"{what}\nbut {config.model.weights} holds other weights (SHA-256 {str(there)[:16]}...)"
        )
    fill(model, learned)
    return model


def _found_beside(path: Path, config: Config) -> Config:
    asked = config.model.weights
    if asked is None or not is_file(asked) or Path(asked).exists():
        return config
    beside = (path if path.is_dir() else path.parent) / Path(asked).name
    if not beside.exists():
        return config
    moved = config.model.model_copy(update={"weights": str(beside)})
    return config.model_copy(update={"model": moved})
