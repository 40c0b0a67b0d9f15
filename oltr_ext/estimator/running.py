"""What a call runs in: threads of torch, a progress bar, and a way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

import joblib
import torch
from tqdm import tqdm

from oltr_ext._defaults import own_defaults
from oltr_ext.estimator.checks import check_jobs

__all__ = ["bar", "threads", "whole_or_not"]

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def threads(jobs: Any) -> Iterator[None]:
    """That many in torch, all but some where negative, as scikit-learn's n_jobs; None: as it is.
    And `own_defaults`. Raises ValueError for 0."""
    check_jobs(jobs)  # it may have been set since `fit`
    with own_defaults():
        if jobs is None:
            yield
            return
        before, processors = torch.get_num_threads(), joblib.cpu_count()
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


def whole_or_not(method: Method) -> Method:
    """A method of an estimator, under `own_defaults`, that leaves it as it was where it is cut off:
    what hangs on it is replaced there, never written into."""

    @wraps(method)
    def whole(self: Any, *args: Any, **named: Any) -> Any:
        before = dict(vars(self))
        try:
            with own_defaults():
                return method(self, *args, **named)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(Method, whole)
