"""Classes of a head over several processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oltr_ext.nn.heads import Head
from oltr_ext.nn.layout import ClassRows, Sharded, Start, as_shard, is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BATCHES = ("own", "same")
PIECE = 1 << 24
"""Numbers that are drawn at a time."""


def shard_classes(module: nn.Module, mesh: DeviceMesh, *, batches: str = "own") -> nn.Module:
    """Give each process of a mesh a share of the classes of a head, in place.

    What has a row a class (keys, memory, classifier, counts, class prior) becomes a DTensor
    ``Shard(0)``, cut as `torch.chunk` cuts: the last processes may have fewer rows or none. All
    else stays whole, and is process 0's. Loss, `predict`, scores, `outputs`, `init_from` and their
    gradients are then those of one process with all classes and all rows, within rounding. Every
    process of the mesh calls each of them, with rows or without.

    Gradients: `loss` gives each process the mean over the rows of those that share the classes, and
    each calls ``backward``. Those of the head are then right as they are, averaged over processes
    with the same classes. A backbone's are to be averaged over all processes, as
    DistributedDataParallel does; wrap it alone, not the head.

    Made with ``device="meta"``, a head has no numbers yet. They are drawn here, in every process
    for its own classes alone, and to the bits that the whole head on the CPU would have drawn: seed
    torch alike everywhere.

    Args:
        module: a head, or a model that holds one; or layers with classes, with ``batches="same"``.
        mesh: of all processes: 1-D, all of which share the classes; or 2-D with a dimension
            ``"class"``, along the other of which they have the same classes and other rows.
        batches: ``"own"``: every process has rows of its own, as many as it likes, none included.
            ``"same"``: processes that share the classes are given the same rows, in the same order.

    Returns:
        The module.

    Raises:
        ValueError: the mesh or the module does not fit, or `batches` is unknown; an error names
            the head whose classes cannot be shared, and why.
    """
    if batches not in BATCHES:
        raise ValueError(f"shard_classes: expected batches own or same, got {batches!r}")
    classes, replicas = _dimensions(mesh)
    layers = [m for m in module.modules() if isinstance(m, ClassRows)]
    _check(module, layers, batches)
    layouts: dict[int, Sharded] = {}

    def layout_of(total: int) -> Sharded:
        if total not in layouts:
            layouts[total] = Sharded(total, classes, replicas, batches == "own")
        return layouts[total]

    for layer in module.modules():  # in the order in which they were made, and drawn
        if isinstance(layer, Head):
            layer.layout = layout_of(layer.num_classes)
        if isinstance(layer, ClassRows):
            for path, start in layer.CLASS_TENSORS.items():
                owner_path, _, name = path.rpartition(".")
                owner = layer.get_submodule(owner_path)
                if (value := getattr(owner, name)) is not None:
                    layer.layout = layout_of(len(value))
                    _put(owner, name, value, start, layer.layout)
        if any(t.is_meta for t in _own_tensors(layer)):
            _draw(layer, mesh.device_type)
    for layer in module.modules():
        for tensor in _own_tensors(layer):
            _agree(tensor, replicas, mesh.device_type)
    for part in layers:
        part.sharded()
    return module


def _dimensions(mesh: DeviceMesh) -> tuple[DeviceMesh, dist.ProcessGroup | None]:
    """The mesh of those that share the classes, and who has the same."""
    names = mesh.mesh_dim_names or ()
    if mesh.size() != dist.get_world_size() or not (
        mesh.ndim == 1 or (mesh.ndim == 2 and "class" in names)
    ):
        raise ValueError(
            f"shard_classes: expected a mesh of all {dist.get_world_size()} processes, 1-D or 2-D "
            f'with a dimension "class", got one of {tuple(mesh.shape)} called {names}'
        )
    if mesh.ndim == 1:
        return mesh, None
    (other,) = (name for name in names if name != "class")
    group = mesh.get_group(other)
    return mesh["class"], group if dist.get_world_size(group) > 1 else None


def _check(module: nn.Module, layers: list[ClassRows], batches: str) -> None:
    named = [layer for layer in layers if layer.CLASS_TENSORS or layer.UNSHARDED]
    if not named:
        raise ValueError(
            f"shard_classes: expected a module that names what has a row a class (CLASS_TENSORS), "
            f"got {type(module).__name__}"
        )
    heads = [layer for layer in layers if isinstance(layer, Head)]
    for layer in layers:
        name = type(layer).__name__
        if layer.UNSHARDED:
            raise ValueError(f"shard_classes: {name} cannot share its classes: {layer.UNSHARDED}")
        if layer.layout.shard is not None:
            raise ValueError(f"shard_classes: the classes of this {name} are shared already")
    for head in heads:
        if head.enrolled is not None or head.removed is not None:
            raise ValueError(
                f"shard_classes: expected a {type(head).__name__} as it was trained, got one that "
                "classes have joined or left"
            )
    if not heads and batches == "own":
        raise ValueError(
            f"shard_classes: expected a head, which gathers rows, got {type(module).__name__}: "
            'give its layers the same rows in all processes, and batches="same" here'
        )


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor


def _put(
    owner: nn.Module, name: str, value: Tensor, start: float | Start | None, layout: Sharded
) -> None:
    """This process's rows in the place of the whole tensor, of which nothing is kept."""
    device = layout.mesh.device_type
    if value.is_meta:
        if start is None:
            raise ValueError(f"shard_classes: expected values of {name}, got a tensor on meta")
        local = _drawn(owner, value, start, layout).to(device)
    elif value.device.type != device:
        raise ValueError(
            f"shard_classes: expected {name} on {device}, as the mesh is, got {value.device}"
        )
    else:
        local = layout.cut(value).clone()
    made = as_shard(local, layout)
    if isinstance(value, nn.Parameter):
        made = nn.Parameter(made, requires_grad=value.requires_grad)
    setattr(owner, name, made)


def _drawn(owner: nn.Module, value: Tensor, start: float | Start, layout: Sharded) -> Tensor:
    """All rows pass by, this process's are kept."""
    shard = layout.shard
    local = torch.empty(shard.size, *value.shape[1:], dtype=value.dtype, device="cpu")
    if not callable(start):
        return local.fill_(start)
    width = owner.get_parameter("weight").shape[1]
    rows = max(1, PIECE // math.prod(value.shape[1:]))
    for first in range(0, shard.total, rows):
        last = min(shard.total, first + rows)
        piece = torch.empty(last - first, *value.shape[1:], dtype=value.dtype, device="cpu")
        start(piece, width)
        low, high = max(first, shard.start), min(last, shard.stop)
        if low < high:
            local[low - shard.start : high - shard.start] = piece[low - first : high - first]
    return local


def _draw(module: nn.Module, device: str) -> None:
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f'shard_classes: expected a head made with device="meta", got {type(module).__name__} '
            "with other tensors on meta, whose values are lost"
        )
    module.to_empty(device="cpu")
    module.reset_parameters()
    module.to(device)


@torch.no_grad()
def _agree(tensor: Tensor, replicas: dist.ProcessGroup | None, device: str) -> None:
    """Of what processes have alike, one's: seeds may have been others."""
    local, first = tensor, 0
    if is_dtensor(tensor):
        if replicas is None:
            return
        local, first = tensor._local_tensor, dist.get_global_rank(replicas, 0)  # type: ignore[attr-defined]
    sent = local.detach().to(device).contiguous()
    dist.broadcast(sent, first, group=replicas if is_dtensor(tensor) else None)
    local.detach().copy_(sent)
