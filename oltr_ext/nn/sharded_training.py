"""What torch's optimizers and clipping ask of parameters of which some are shared by processes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oltr_ext.nn.layout import is_dtensor

Group = dict[str, Any]


def param_groups(
    parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Group],
) -> list[Group]:
    """Groups for an optimizer, each of DTensors alone or of plain tensors alone.

    ``foreach`` (torch's default on CUDA) and ``fused`` work on the tensors of a group at once, and
    fail on one that has both: *got mixed torch.Tensor and DTensor*. Of torch's fused optimizers SGD
    takes no DTensors at all; Adam and AdamW do.

    Args:
        parameters: as an optimizer takes them: parameters, named or not, or groups, whose options
            both parts get.

    Raises:
        TypeError: a tensor, parameters beside groups, or a group without ``params``.
    """
    given = [] if isinstance(parameters, Tensor) else list(parameters)
    groups = [g for g in given if isinstance(g, dict)]
    whole = len(groups) in (0, len(given)) and all("params" in g for g in groups)
    if isinstance(parameters, Tensor) or not whole:
        raise TypeError("param_groups: expected parameters, or groups that each have params")
    found = []
    for group in groups or [{"params": given}]:
        params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
        parts: dict[bool, list[Any]] = {False: [], True: []}
        for parameter in params:
            own = parameter[1] if isinstance(parameter, tuple) else parameter
            parts[is_dtensor(own)].append(parameter)
        found += [{**group, "params": part} for part in parts.values() if part]
    return found


@torch.no_grad()
def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """As `torch.nn.utils.clip_grad_norm_` for the 2-norm, which fails on parameters of which some
    are DTensors: gradients together are no longer than ``max_norm``, here and in other processes.

    Call it in every process, with the parameters in one order. Gradients of plain tensors count
    once: they are the same in all that share the classes, once they are averaged. Those of DTensors
    may be of several meshes, as of `fully_shard` over all processes and of a head over some.

    Returns:
        The norm before, the same in all processes. Where a gradient is not finite, neither is it,
        and no error is raised.
    """
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    grads: list[Any] = [p.grad for p in given if p.grad is not None]
    if not grads:
        return torch.zeros(())
    plain = [g for g in grads if not is_dtensor(g)]
    apart: dict[Any, list[Tensor]] = {}
    for grad in grads:
        if is_dtensor(grad):  # cut along some dimensions of its mesh, alike along the others
            cut = tuple(d for d, p in enumerate(grad.placements) if not p.is_replicate())
            apart.setdefault((grad.device_mesh, cut), []).append(grad._local_tensor)
    square = _square(plain, grads[0].device)
    for (mesh, cut), local in apart.items():
        part = _square(local, square.device)
        for dimension in cut:
            dist.all_reduce(part, group=mesh.get_group(dimension))
        square += part
    norm = square.sqrt()
    share = (max_norm / (norm + 1e-6)).clamp(max=1)  # as torch has it
    for grad in (*plain, *chain(*apart.values())):
        grad.mul_(share.to(grad.dtype))
    return norm.to(grads[0].dtype)


def _square(grads: list[Tensor], device: torch.device) -> Tensor:
    """Of their norm, in float64."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    if grads:
        total += nn.utils.get_total_norm(grads).to(total).square()
    return total


class GradScaler(torch.amp.GradScaler):
    """As torch's, which fails on an optimizer of which some parameters are DTensors. Processes
    agree on a step: where a gradient overflows in one of them, all pass over it."""

    def _unscale_grads_(
        self,
        optimizer: torch.optim.Optimizer,
        inv_scale: Tensor,
        found_inf: Tensor,
        allow_fp16: bool,
    ) -> dict[torch.device, Tensor]:
        by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    grad = getattr(parameter.grad, "_local_tensor", parameter.grad)
                    if grad.dtype == torch.float16 and not allow_fp16:
                        raise ValueError("Attempting to unscale FP16 gradients.")
                    by_kind.setdefault((grad.device, grad.dtype), []).append(grad)
        found: dict[torch.device, Tensor] = {}
        for (device, _), grads in by_kind.items():
            flag = found.setdefault(device, found_inf.to(device, copy=True))
            torch._amp_foreach_non_finite_check_and_unscale_(grads, flag, inv_scale.to(device))
        if dist.is_initialized():
            for flag in found.values():
                dist.all_reduce(flag, dist.ReduceOp.MAX)
        return found
