"""A run whose processes share the classes of its head: what is whole in files is in parts here, and
whole in no process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.config.schema import Config
from oltr_ext.engine import base, distributed
from oltr_ext.engine.build import build_model
from oltr_ext.engine.names import start_at_names, starts_at_names
from oltr_ext.engine.pieces import first_here, here, steps
from oltr_ext.engine.splits import Splits
from oltr_ext.engine.tensorfile import TensorFile
from oltr_ext.models import OLTRModel
from oltr_ext.nn import GradScaler, clip_grad_norm_, param_groups, shard_classes
from oltr_ext.nn.layout import Layout, Sharded, as_shard, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "as_rows",
    "built",
    "clip",
    "first_of_replicas",
    "load_learned",
    "momentum",
    "not_finite",
    "read_back",
    "regroup",
    "scaler_for",
    "take_momentum",
    "whole",
]


def built(
    config: Config, stage: int, splits: Splits, device: torch.device, *, weights: bool
) -> OLTRModel:
    """As `build_model`, on a device, its classes shared as configured: no process draws or holds
    those of others. Every process calls it."""
    mesh = _mesh(config, device)
    with distributed.lead_first():  # it fetches published weights, once
        model = build_model(config, stage, splits, weights=weights, banks=mesh is None)
    _share(model, mesh, device)
    settings = config.stage1 if stage == 1 else config.stage2
    if mesh is not None and settings is not None and starts_at_names(settings):
        with distributed.lead_first():
            start_at_names(model.head, config, splits.class_names)
    return model


def read_back(
    path: Path, tensors: TensorFile, header: Mapping[str, Any], config: Config, device: torch.device
) -> OLTRModel:
    """As `oltr_ext.engine.base.read_back`, on a device, its classes shared as configured: each
    process reads its own. Every process calls it."""
    mesh = _mesh(config, device)

    def fill(model: OLTRModel, learned: Mapping[str, Tensor]) -> None:
        assert isinstance(learned, TensorFile)
        _share(model, mesh, device)
        load_learned(model, learned)

    return base.read_back(path, tensors, header, config, fill=fill, banks=mesh is None)


@torch.no_grad()
def load_learned(model: OLTRModel, tensors: TensorFile) -> None:
    """As `OLTRModel.load_learned`, of which each process reads its own rows, a piece at a time."""
    own: Mapping[str, Tensor] = model.state_dict()
    state = {}
    for name, like in tensors.like.items():
        mine = own.get(name)
        if mine is None or mine.shape != like.shape:
            state[name] = tensors[name]
        else:  # in place; that it is loaded is said below
            tensors.into(name, here(mine), first_here(mine))
            state[name] = mine
    model.load_learned(state)


def as_rows(rows: Tensor, layout: Layout) -> Tensor:
    """The tensor (C, ...) of which a layout has these rows here."""
    return as_shard(rows, layout) if isinstance(layout, Sharded) else rows


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor that processes share, for a head that cannot. Every process calls it."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor  # type: ignore[attr-defined]


def first_of_replicas(layout: Layout) -> bool:
    """Whether this process is the first of those with the same classes."""
    replicas = layout.replicas if isinstance(layout, Sharded) else None
    return replicas is None or dist.get_rank(replicas) == 0


def momentum(
    optimizer: torch.optim.Optimizer, model: OLTRModel, prefix: str = ""
) -> dict[str, Tensor]:
    """Of SGD, under the names of parameters after the prefix."""
    found = {}
    for name, parameter in model.named_parameters():
        buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            found[prefix + name] = buffer
    return found


@torch.no_grad()
def take_momentum(optimizer: torch.optim.Optimizer, model: OLTRModel, given: TensorFile) -> None:
    """What `momentum` gave, in as many processes or others: each reads its own rows."""
    for name, parameter in model.named_parameters():
        if name in given:
            local = torch.empty_like(here(parameter), memory_format=torch.contiguous_format)
            given.into(name, local, first_here(parameter))
            buffer = as_rows(local, model.head.layout) if is_dtensor(parameter) else local
            optimizer.state[parameter]["momentum_buffer"] = buffer


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with a number that is not finite, in any process. Every process
    calls it."""
    names = [name for name, value in tensors.items() if value.is_floating_point()]
    flags = torch.tensor([not _finite(here(tensors[name])) for name in names], dtype=torch.bool)
    distributed.unite(flags)
    found = flags.nonzero()
    return names[int(found[0])] if len(found) else None


def _finite(value: Tensor) -> bool:
    rows = value.reshape(1) if value.dim() == 0 else value
    return all(bool(torch.isfinite(rows[a:b]).all()) for a, b in steps(value))


def _mesh(config: Config, device: torch.device) -> DeviceMesh | None:
    """Of the processes, where the configuration asks them to share classes.

    Raises:
        ValueError: the number of processes that are to share them does not divide all.
    """
    asked, world = config.distributed.classes, distributed.world()
    if asked is None or world == 1:
        return None
    number = world if asked == "all" else asked
    if world % number:
        raise ValueError(
            f"distributed.classes: {counted(number, 'process')} that share the classes do not "
            f"divide the {world} there are"
        )
    from torch.distributed.device_mesh import init_device_mesh

    shape, names = (world // number, number), ("data", "class")
    return init_device_mesh(device.type, shape, mesh_dim_names=names)


def _share(model: OLTRModel, mesh: DeviceMesh | None, device: torch.device) -> None:
    """Send to the device what there is of a model, and share its classes, where its head can."""
    model._apply(lambda t: t if t.is_meta else t.to(device))
    if mesh is not None and not model.head.UNSHARDED:
        shard_classes(model.head, mesh)


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


def scaler_for(device: torch.device, config: Config) -> torch.amp.GradScaler:
    """Of losses; for processes that share classes one that takes both kinds of parameters."""
    shared = config.distributed.classes is not None and dist.is_initialized()
    kind = GradScaler if shared else torch.amp.GradScaler
    return kind(device.type, enabled=config.amp == "fp16")
