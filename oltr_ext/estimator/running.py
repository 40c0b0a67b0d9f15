"""What a call runs in: threads of torch, and a progress bar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

__all__ = ["bar", "threads"]


@contextmanager
def threads(jobs: Any) -> Iterator[None]:
    """That many in torch, all but some where negative, as scikit-learn's n_jobs; None: as it is."""
    if jobs is None:
        yield
        return
    before, processors = torch.get_num_threads(), os.cpu_count() or 1
    torch.set_num_threads(int(jobs) if jobs > 0 else max(1, processors + 1 + int(jobs)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def bar(name: str, steps: int, *, shown: bool) -> Iterator[Callable[[float], None]]:
    """Takes the loss of each step."""
    with tqdm(desc=f"OLTRClassifier.{name}", total=steps, unit="step", disable=not shown) as each:

        def tick(loss: float) -> None:
            each.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            each.update()

        yield tick
