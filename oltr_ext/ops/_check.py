"""Argument checks shared by both backends: the op first, what was expected, what came."""

from __future__ import annotations

import math
import numbers
import operator

import torch
from torch import Tensor

from oltr_ext.ops._compile import constant
from oltr_ext.ops.shard import Shard

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def matrix(op: str, name: str, t: Tensor) -> tuple[int, int]:
    """Checks a floating-point matrix and returns its (rows, columns)."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected {name} to be a Tensor, got {type(t).__name__}")
    if type(t).__name__ == "DTensor":
        raise TypeError(
            f"{op}: expected {name} to be a plain tensor, got a DTensor: give its to_local(), and "
            "shard=... where it is a shard of the classes"
        )
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{op}: expected {name} to be float32, float64, bfloat16 or float16, got {t.dtype}"
        )
    if t.dim() != 2:
        raise ValueError(f"{op}: expected {name} to have 2 dimensions, got {tuple(t.shape)}")
    return t.shape[0], t.shape[1]


def bank(
    op: str, name: str, t: Tensor, width: int, like: Tensor, shard: Shard | None = None
) -> int:
    """Checks a bank of class vectors against the features; returns the number of classes."""
    classes, columns = matrix(op, name, t)
    if shard is not None and classes != shard.size:
        raise ValueError(
            f"{op}: expected {name} to hold the {shard.size} classes of its shard, got {classes}"
        )
    if shard is None and classes < 1:
        raise ValueError(f"{op}: expected {name} to hold at least one class, got 0")
    if columns < 1:
        raise ValueError(f"{op}: expected a feature width of at least 1, got 0")
    same(op, name, t, (classes, width), like)
    return classes


def same(op: str, name: str, t: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Checks shape, device and dtype of a tensor against the leading argument `like`."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected {name} to be a Tensor, got {type(t).__name__}")
    if t.shape != shape:
        raise ValueError(f"{op}: expected {name} of shape {shape}, got {tuple(t.shape)}")
    on_device(op, name, t, like)
    if t.dtype != like.dtype and not autocast_on(like.device.type):
        raise TypeError(f"{op}: expected {name} of dtype {like.dtype}, got {t.dtype}")


def on_device(op: str, name: str, t: Tensor, like: Tensor) -> None:
    if t.device != like.device:
        raise ValueError(f"{op}: expected {name} on {like.device}, got {t.device}")


def labels(op: str, target: Tensor, rows: int, like: Tensor) -> None:
    """Checks dtype, shape and device of labels; their range is checked where they are read."""
    if not isinstance(target, Tensor):
        raise TypeError(f"{op}: expected target to be a Tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"{op}: expected target of dtype torch.int64, got {target.dtype}")
    if target.shape != (rows,):
        raise ValueError(f"{op}: expected target of shape ({rows},), got {tuple(target.shape)}")
    on_device(op, "target", target, like)


def number(op: str, name: str, value: float, low: float, high: float = math.inf) -> float:
    """Checks a finite number in [low, high]; no tensor, for it would get no gradient."""
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: expected {name} to be a number, got {type(value).__name__}")
    value = float(value)
    # by comparisons, NaN failing them: a compiled graph may hold the number as a symbol
    if not low <= value <= high or value == math.inf:
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise ValueError(
            f"{op}: expected {name} to be finite, at least {low:g}{upper}, got {value}"
        )
    return value


def whole(op: str, name: str, value: int) -> int:
    """Checks a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(
            f"{op}: expected {name} to be a whole number, got {value!r} ({type(value).__name__})"
        ) from None


def autocast_on(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


@constant  # torch.compile of torch 2.11 cannot trace it
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
