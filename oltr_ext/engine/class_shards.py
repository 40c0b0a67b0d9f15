"""A run whose processes share the classes of its head: what is whole on files is in parts here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.config.schema import Config, Distributed
from oltr_ext.engine import distributed
from oltr_ext.engine.build import build_model
from oltr_ext.engine.splits import Splits
from oltr_ext.models import OLTRModel
from oltr_ext.nn import GradScaler, clip_grad_norm_, param_groups, shard_classes
from oltr_ext.nn.layout import Sharded, as_shard, is_dtensor

__all__ = [
    "as_asked",
    "clip",
    "momentum",
    "regroup",
    "scaler_for",
    "take_momentum",
    "whole",
    "whole_model",
]


def as_asked(model: OLTRModel, settings: Distributed, device: torch.device) -> None:
    """Share the classes of a model's head, where the configuration asks for it and the head can.

    Raises:
        ValueError: the number of processes that are to share them does not divide all.
    """
    asked, world = settings.classes, distributed.world()
    if asked is None or world == 1 or model.head.UNSHARDED:
        return
    number = world if asked == "all" else asked
    if world % number:
        raise ValueError(
            f"distributed.classes: {counted(number, 'process')} that share the classes do not "
            f"divide the {world} there are"
        )
    from torch.distributed.device_mesh import init_device_mesh

    shape, names = (world // number, number), ("data", "class")
    shard_classes(model.head, init_device_mesh(device.type, shape, mesh_dim_names=names))


def whole(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """All of each tensor, on the CPU where processes share it, its name after the prefix. Every
    process calls it."""
    return {
        prefix + name: value.full_tensor().cpu() if is_dtensor(value) else value  # type: ignore[attr-defined]
        for name, value in tensors.items()
    }


def whole_model(model: OLTRModel, config: Config, splits: Splits) -> OLTRModel:
    """Stage 1's model with all classes in each process."""
    if model.head.layout.shard is None:
        return model
    state = whole(model.state_dict())
    made = build_model(config, 1, splits, weights=False).to(model.head.threshold.device)
    made.load_state_dict(state)
    made.base = model.base  # which it keeps out of checkpoints
    return made


def momentum(optimizer: torch.optim.Optimizer, model: OLTRModel, prefix: str) -> dict[str, Tensor]:
    """Of SGD, whole, under the names of parameters after the prefix. Every process calls it."""
    found = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[name] = buffer
    return whole(found, prefix)


def take_momentum(
    optimizer: torch.optim.Optimizer, model: OLTRModel, given: Mapping[str, Tensor]
) -> None:
    """What `momentum` gave, in as many processes or others."""
    layout = model.head.layout
    for name, parameter in model.named_parameters():
        if name in given:
            value = given[name].to(parameter.device)
            if is_dtensor(parameter) and isinstance(layout, Sharded):
                value = as_shard(layout.cut(value).clone(), layout)
            optimizer.state[parameter]["momentum_buffer"] = value


def regroup(optimizer: torch.optim.Optimizer) -> None:
    """Split groups of which some parameters are shared, and the others not."""
    groups = param_groups(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        optimizer.add_param_group(group)


def clip(parameters: Iterable[Tensor], most: float) -> Tensor:
    """The norm of all gradients, which are no longer than that afterwards."""
    given = list(parameters)
    if any(is_dtensor(p) for p in given):
        return clip_grad_norm_(given, most)
    return torch.nn.utils.clip_grad_norm_(given, most)


def scaler_for(device: torch.device, enabled: bool, shared: Any) -> torch.amp.GradScaler:
    """Of losses; for processes that share classes one that takes both kinds of parameters."""
    kind = torch.amp.GradScaler if shared is None or not dist.is_initialized() else GradScaler
    return kind(device.type, enabled=enabled)
