"""Marks for torch.compile. torch.compiler's own decorators import the compiler, which takes as long
as the rest of torch; these leave it until something is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`: called when traced, its answer is then fixed."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def untraced(function: Function) -> Function:
    """As `torch.compiler.disable`: runs as it is, between two graphs."""
    return cast(Function, torch._disable_dynamo(function))
