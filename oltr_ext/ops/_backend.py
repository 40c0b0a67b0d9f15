"""Loads the native libraries and decides, call by call, between them and the reference.

`OLTR_EXT_BACKEND` sets the start value and `use_backend` changes it for a block of a thread:

- ``auto``: native kernels where there are some for the tensors' device, else the reference, with
  one warning that names the cause;
- ``native``: native kernels or an error that says what is missing and how to repair it;
- ``reference``: the pure-PyTorch formulas.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from oltr_ext.ops._compile import constant

BACKENDS = ("auto", "native", "reference")
INSTRUCTION_SETS = (
    ("neon_bf16", "neon", "generic")
    if platform.machine().lower() in ("aarch64", "arm64")
    else ("amx", "avx512_bf16", "avx512", "avx2", "generic")
)
OPS = (
    "memory_attention",
    "nearest_centroid",
    "meta_embedding",
    "cosine_logits",
    "cosine_cross_entropy",
    "disc_centroids_loss",
    "class_means",
)
_PACKAGE = Path(__file__).resolve().parent.parent
_REFERENCE = "run this part under oltr_ext.use_backend('reference')"
_MOVE = "move the tensors to a CPU or a CUDA device"
_REPAIR = "reinstall with `pip install --no-build-isolation --force-reinstall --no-deps oltr_ext`"


@dataclass
class Status:
    """What was loaded: reasons why not, and for each op the devices it has kernels for."""

    cpu_error: str | None = None
    cuda_error: str | None = None
    op_devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Devices with forward and backward kernels."""
    forward_devices: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Devices with a forward kernel at least."""


def _load(stem: str) -> str | None:
    """Loads one library; the reason when that fails, in one line."""
    found = sorted(_PACKAGE.glob(f"{stem}*.so")) + sorted(_PACKAGE.glob(f"{stem}*.pyd"))
    if not found:
        return f"{stem} was not built into {_PACKAGE}"
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        first = str(error).strip().splitlines()
        reason = first[0] if first else type(error).__name__
        return f"{found[0].name} did not load under torch {torch.__version__}: {reason}"
    return None


def _has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"oltr_ext::{name}", key))


def _start() -> Status:
    status = Status()
    asked = os.environ.get("OLTR_EXT_CPU", "")
    if asked and asked not in INSTRUCTION_SETS:  # the library takes it for the slowest
        warnings.warn(
            f"OLTR_EXT_CPU: expected one of {', '.join(INSTRUCTION_SETS)}, got {asked!r}; the "
            "kernels run on generic instructions",
            RuntimeWarning,
            stacklevel=2,
        )
    status.cpu_error = _load("_oltr_cpu")
    if status.cpu_error is not None:
        status.cuda_error = "the CPU library, which holds the schemas, is not loaded"
    elif torch.version.cuda is None:
        status.cuda_error = f"torch {torch.__version__} is built without CUDA"
    else:
        status.cuda_error = _load("_oltr_cuda")
    for op in OPS:
        loaded = [] if status.cpu_error else [("cpu", "CPU"), ("cuda", "CUDA")]
        forward = [device for device, key in loaded if _has_kernel(op, key)]
        both = [d for d in forward if _has_kernel(f"{op}_backward", d.upper())]
        status.forward_devices[op], status.op_devices[op] = tuple(forward), tuple(both)
    return status


STATUS = _start()
LOADED = STATUS.cpu_error is None
_start_value = os.environ.get("OLTR_EXT_BACKEND", "auto").strip().lower() or "auto"
_warned: set[str] = set()


class _Choice(threading.local):
    """The blocks of `use_backend` that a thread is in, outermost first.

    No `contextvars.ContextVar`: torch.compile reads none before torch 2.14, and writes none.
    """

    def __init__(self) -> None:  # runs once a thread: torch.compile guards no class attribute
        self.blocks: tuple[str, ...] = ()


_choice = _Choice()


def backend() -> str:
    """The backend asked for, in this thread: ``"auto"``, ``"native"`` or ``"reference"``."""
    return _choice.blocks[-1] if _choice.blocks else _start_value


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs a block under another backend: in this thread, as `torch.autocast` does.

    Other threads, those that the block starts among them, keep their own choice, which is
    `OLTR_EXT_BACKEND` at first; so do processes such as a DataLoader's workers, unless they are
    forked within the block. What a block computed goes backward by the same formulas, in
    whichever thread and wherever; but what `torch.utils.checkpoint` computes again there goes by
    the choice of that thread at that time.

    Args:
        name: ``"auto"``, ``"native"`` or ``"reference"``.

    Raises:
        ValueError: for any other name.
        RuntimeError: at the end of a block, where one that began within it goes on, as blocks of
            coroutines or generators of one thread may. The choice is then what it was before.
    """
    if name not in BACKENDS:
        raise ValueError(f"use_backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    depth = len(_choice.blocks)
    _choice.blocks = (*_choice.blocks, name)
    try:
        yield
    finally:
        nested = len(_choice.blocks) == depth + 1
        _choice.blocks = _choice.blocks[:depth]
        if not nested:
            raise RuntimeError(
                f"use_backend({name!r}): expected the blocks of a thread to nest, but another "
                "began in this one and did not end in it; what ran in both ran under the later one"
            )


def coverage(archs: str, capability: tuple[int, int]) -> str:
    """How code built for `archs` (such as ``"8.0;9.0+PTX"``) runs on a GPU of `capability`.

    Returns ``"sm_90"`` where its machine code runs as it is (same major version, minor no newer),
    ``"compute_90 (compiled on first use)"`` where the driver compiles its PTX, or ``""``.
    """
    found = re.findall(r"(\d+)\.(\d+)[a-z]?(\+PTX)?", archs)
    built = [((int(major), int(minor)), bool(ptx)) for major, minor, ptx in found]
    same = [a for a, _ in built if a[0] == capability[0] and a <= capability]
    if same:
        return "sm_{}{}".format(*max(same))
    ptx = [a for a, has_ptx in built if has_ptx and a <= capability]
    return "compute_{}{} (compiled on first use)".format(*max(ptx)) if ptx else ""


def cuda_archs() -> str:
    """What the CUDA library was built for, as ``"8.0;9.0+PTX"``; empty where nobody knows."""
    try:
        return str(importlib.import_module("oltr_ext._C").build_info()["cuda_archs"])
    except ImportError:
        return ""


@constant
@functools.cache
def _gpu_error(index: int) -> str | None:
    """Why the CUDA library cannot run on a GPU."""
    archs = cuda_archs()
    if not archs or not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability(index)
    if coverage(archs, capability):
        return None
    name = "sm_{}{}".format(*capability)
    return f"the CUDA kernels were built for {archs}, not for {name} ({index})"


def _reason(op: str, device: torch.device, backward: bool) -> str:
    error = STATUS.cuda_error if device.type == "cuda" else STATUS.cpu_error
    if error is not None:
        return error
    if backward and device.type in STATUS.forward_devices[op]:
        return f"{op} has no native backward for {device.type} yet"
    return f"{op} has no native kernel for {device.type}"


def _transformed(tensors: tuple[Tensor, ...]) -> bool:
    """Whether torch.func differentiates through these, or forward-mode AD does: a native op would
    have no tangent, and torch takes none for zero."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return any(_tracked(t) for t in tensors)
    return forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def _tracked(t: Tensor) -> bool:
    """Whether torch.func.grad, vjp or jvp watches a tensor, under whatever vmap there is."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_gradtrackingtensor(t):
            return True
        t = functorch.get_unwrapped(t)
    return False


def _unavailable(op: str, tensors: tuple[Tensor, ...]) -> tuple[str, str] | None:
    """Why the native kernels cannot take this call, and what to do about it."""
    if _transformed(tensors):
        return "they have no forward-mode AD, nor gradients by torch.func", _REFERENCE
    device = tensors[0].device
    backward = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    reason = _gpu_error(device.index or 0) if device.type == "cuda" else None
    if reason is None:
        if device.type in (STATUS.op_devices if backward else STATUS.forward_devices)[op]:
            return None
        if device.type == "meta" and LOADED:
            return None
        reason = _reason(op, device, backward)
    return reason, _REPAIR if device.type in ("cpu", "cuda") else _MOVE


def use_native(op: str, *tensors: Tensor) -> bool:
    """Whether this call goes to the native kernels; raises or warns as the backend asks."""
    asked = backend()
    if asked == "reference":
        return False
    if asked not in BACKENDS:
        raise ValueError(f"OLTR_EXT_BACKEND: expected one of {', '.join(BACKENDS)}, got {asked!r}")
    found = _unavailable(op, tensors)
    if found is None:
        return True
    reason, repair = found
    if asked == "native":
        raise RuntimeError(
            f"{op}: the native backend was asked for but cannot run: {reason}; "
            f"{repair}, or choose OLTR_EXT_BACKEND=auto"
        )
    if reason not in _warned and not torch.compiler.is_compiling():
        _warned.add(reason)
        warnings.warn(
            f"oltr_ext runs {op} in pure PyTorch: {reason}; {repair}, or set "
            "OLTR_EXT_BACKEND=reference to ask for this",
            RuntimeWarning,
            stacklevel=3,
        )
    return False
