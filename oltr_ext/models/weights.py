"""Weights to start from: published ones, fetched once, or a file of your own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

__all__ = ["CUT_OFF", "fill", "is_file", "published", "read_file"]

State = Mapping[str, Tensor]
CUT_OFF = ("classifier", "fc", "head", "heads", "aux", "AuxLogits", "dropout", "avgpool")
"""Modules behind the last feature map of torchvision's classifiers: what a backbone leaves out."""


def is_file(weights: str | None) -> bool:
    """Whether `model.weights` is a path, and not the name of published weights."""
    return weights is not None and (
        os.sep in weights or weights.endswith((".pth", ".pt", ".bin", ".safetensors"))
    )


def published(name: str, weights: str) -> WeightsEnum:
    """Raises ValueError where torchvision has no such weights of this model."""
    there = get_model_weights(name)
    try:
        return there[weights.removeprefix(f"{there.__name__}.")]
    except KeyError:
        names = ", ".join(["DEFAULT", *(each.name for each in there)])
        raise ValueError(
            f"build_backbone: torchvision:{name} has no weights={weights!r}: expected {names}, or "
            "the path of a file"
        ) from None


def fetch(name: str, weights: str) -> tuple[State, str]:
    """Published weights from the cache of torch.hub, else from the network; what to call them."""
    found = published(name, weights)
    url = str(found.url)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    there, what = cached.exists(), f"model.weights: {weights} of torchvision:{name}"
    try:
        return found.get_state_dict(progress=True, check_hash=True), f"{what}, {cached}"
    except Exception as error:  # of urllib, zip files, pickle and torch
        reason = " ".join(str(error).split()) or type(error).__name__
        if there:
            raise ValueError(
                f"{what}: {cached} is damaged ({reason[:200]}); remove it, and it is fetched again "
                f"from {url}, or set model.weights to a file"
            ) from None
        raise ValueError(
            f"{what} cannot be fetched from {url} ({reason[:200]}); fetch it elsewhere, and set "
            f"model.weights to the file or copy it to {cached}"
        ) from None


def read_file(path: str) -> tuple[State, str]:
    """A state dict, as it is or under ``state_dict`` or ``model``; what to call it."""
    what = f"model.weights: {path}"
    if not Path(path).is_file():
        raise ValueError(f"{what}: no such file")
    try:
        if path.endswith(".safetensors"):
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of zip files, pickle, safetensors and torch
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{what} is damaged, or holds more than tensors ({reason[:200]})"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
        raise ValueError(f"{what} holds no tensors by name: expected a state dict")
    return {str(key).removeprefix("module."): value for key, value in state.items()}, what


def fill(net: nn.Module, state: State, what: str) -> None:
    """Load the weights of a net up to its classifier, which may be there, be another, or lack.

    Position embeddings of a vision transformer are interpolated to the size of its images.

    Raises:
        ValueError: the weights are of another net; `what` they are, and the first differences.
    """
    state = {_today(key): value for key, value in state.items()}
    place = "encoder.pos_embedding"
    if isinstance(net, VisionTransformer) and place in state:
        try:
            state = interpolate_embeddings(net.image_size, net.patch_size, state)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
    own = net.state_dict()
    needed = {k: v.shape for k, v in own.items() if not k.startswith(CUT_OFF)}
    given = {k: v for k, v in state.items() if not k.startswith(CUT_OFF)}
    lacking = [k for k in needed if k not in given and not k.endswith("num_batches_tracked")]
    strange = [k for k in given if k not in needed]
    shapes = [k for k, shape in needed.items() if k in given and given[k].shape != shape]
    differences = [
        f"{len(keys)} {words}, the first {keys[0]}"
        for keys, words in (
            (lacking, "tensors are missing"),
            (strange, "are not in this net"),
            (shapes, "have another shape"),
        )
        if keys
    ]
    if differences:
        raise ValueError(f"{what} holds the weights of another net: {'; '.join(differences)}")
    net.load_state_dict({**own, **given})


def _today(key: str) -> str:
    """The published DenseNets have names from before torch forbade dots in them."""
    return re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", key)
