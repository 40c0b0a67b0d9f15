"""What a benchmark runs: a mode, a shape and a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch


class Case(NamedTuple):
    """A shape and how it is run."""

    mode: str
    B: int
    C: int
    D: int
    dtype: str = "float32"
    """``"bfloat16"``, ``"float32"``, or ``"medium"``, ``"high"``: float32 under that precision."""

    def small(self) -> Case:
        """The same case, tiny, for a smoke test."""
        return self._replace(B=max(2, self.B // 64), C=max(3, self.C // 1000), D=16)

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def cases(
    shapes: Iterable[tuple[int, int, int]],
    modes: Iterable[str],
    dtypes: Iterable[str] = ("float32",),
    quick: bool = False,
) -> list[Any]:
    """Parameters for `pytest.mark.parametrize("case", ...)`."""
    marks = [pytest.mark.quick] if quick else []
    made = [Case(m, *s, d) for s in shapes for d in dtypes for m in modes]
    return [pytest.param(c, marks=marks, id=f"{c.B}x{c.C}x{c.D}-{c.mode}-{c.dtype}") for c in made]


@contextmanager
def matmul_precision(dtype: str) -> Iterator[None]:
    """float32 products in bfloat16 parts where torch may, for ``"medium"`` and ``"high"``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(dtype if dtype in ("medium", "high") else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
