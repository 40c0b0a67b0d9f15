"""Gives a native op its autograd, fake and autocast rules; used once per op, at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from oltr_ext.ops._backend import LOADED
from oltr_ext.ops._check import autocast_on
from oltr_ext.ops._compile import constant

# Ops that are products keep the autocast dtype, as torch.nn.functional.linear does. Ops that
# measure a distance or sum a loss run in float32, as torch.cdist and cross_entropy do.
KEEPS_AUTOCAST_DTYPE = frozenset({"memory_attention", "cosine_logits"})
# Where the first argument lies beyond float16, its rows' direction says all.
BY_DIRECTION = frozenset({"cosine_logits"})

# Registrations live as long as their Library object.
_LIBRARY = torch.library.Library("oltr_ext", "FRAGMENT") if LOADED else None


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@constant
def precision(device: str) -> str:
    """How products of float32 inputs may be computed on a device, as the user has told torch.

    torch.compile fixes it when it traces.

    Args:
        device: a type of device, ``"cuda"`` or another.

    Returns:
        ``"highest"``, ``"high"`` or ``"medium"``; see `torch.set_float32_matmul_precision`.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # there is no one answer once a backend has its own `fp32_precision`
        backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
        return {"tf32": "high", "bf16": "medium"}.get(backend.matmul.fp32_precision, "highest")


def held(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows (B, D) in a dtype; those that float16 does not hold are as long as it does.

    Where an embedding lies at a centroid, it is longer, and only its direction matters.
    """
    if dtype != torch.float16 or rows.dtype == dtype or rows.shape[1] == 0:
        return rows.to(dtype)
    most = rows.detach().abs().amax(dim=1, keepdim=True)
    return (rows * (torch.finfo(dtype).max / most).clamp_max(1)).to(dtype)


def _cast_all(op: str, device: str, args: Sequence[Any]) -> list[Any]:
    first = held if op in BY_DIRECTION else Tensor.to
    return [_cast(op, device, a, first if n == 0 else Tensor.to) for n, a in enumerate(args)]


def _cast(op: str, device: str, value: Any, to: Callable[..., Any]) -> Any:
    eligible = (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.device.type == device
        and value.dtype != torch.float64
    )
    if not eligible:
        return value
    keeps = op in KEEPS_AUTOCAST_DTYPE
    return to(value, torch.get_autocast_dtype(device) if keeps else torch.float32)


def call_reference(op: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a reference formula under the autocast rule of the native op."""
    device = args[0].device.type
    if not autocast_on(device):
        return function(*args, **kwargs)
    cast = _cast_all(op, device, args)
    with torch.autocast(device, enabled=False):
        return function(*cast, **kwargs)


def _register_autocast(op: str) -> None:
    assert _LIBRARY is not None
    overload = getattr(torch.ops.oltr_ext, op).default
    for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        dispatch_key = getattr(torch._C.DispatchKey, key)

        def kernel(*args: Any, _device: str = device, _key: Any = dispatch_key) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_key)):
                return overload(*_cast_all(op, _device, args))

        _LIBRARY.impl(op, kernel, key)


def _no_double_backward(op: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: double backward is not supported by the native kernels; "
            "run this part under oltr_ext.use_backend('reference')"
        )

    return backward


def register(
    op: str,
    function: type[torch.autograd.Function],
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
) -> None:
    """Registers everything an op and its ``<op>_backward`` need beside their kernels.

    Args:
        op: name of the op.
        function: holds the gradient formula: ``setup_context`` and ``backward``.
        fake: shapes and dtypes of the op's outputs.
        fake_backward: the same for ``<op>_backward``.
    """
    if not LOADED:
        return
    name = f"oltr_ext::{op}"
    torch.library.register_fake(name, fake)
    torch.library.register_fake(f"{name}_backward", fake_backward)
    torch.library.register_autograd(name, function.backward, setup_context=function.setup_context)
    torch.library.register_autograd(f"{name}_backward", _no_double_backward(f"{op}_backward"))
    _register_autocast(op)


__all__ = ["accumulator", "call_reference", "held", "precision", "register"]
