"""Classes that join or leave the run while it is served."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext.engine.checkpoint import CheckpointError
from oltr_ext.engine.lock import BusyError
from oltr_ext.serve.enroll import ChangedError, Enrolled, editing, enroll, remove, undo
from oltr_ext.serve.inputs import features_of, rows_features
from oltr_ext.serve.trained import Trained
from oltr_ext.service.bodies import RefusedError
from oltr_ext.service.model import Served, Watched

log = logging.getLogger("oltr_ext.service")

__all__ = ["enrolled", "removed", "undone"]

WAIT = 5.0
"""Seconds to wait for another process that changes the same run."""

T = TypeVar("T")


def enrolled(
    watched: Watched,
    of: Served,
    name: str,
    images: Sequence[tuple[str, Tensor]],
    rows: NDArray[Any] | None,
    *,
    more: bool,
    dry: bool,
) -> dict[str, Any]:
    """What became of a class of these images, or of these rows of features: all or nothing.

    Args:
        of: the model that the images were read for.

    Raises:
        RefusedError: what `enroll` says, or others are changing the run.
    """

    @own_defaults()
    @torch.no_grad()
    def join(trained: Trained) -> list[Enrolled]:
        if trained.image_shape != of.trained.image_shape:
            raise ChangedError
        if rows is not None:
            called = [f"row[{n}]" for n in range(len(rows))]
            given = [(called, rows_features(trained, rows))]
        else:
            called = [each for each, _ in images]
            pieces = torch.stack([pixels for _, pixels in images]).split(64)
            given = [(called, torch.cat([features_of(trained, piece) for piece in pieces]))]
        return enroll(trained, given, [name] * len(called), more=more)

    (found,) = _changed(watched, join, dry=dry)
    return {**dataclasses.asdict(found), "looks_like": found.looks_like, "dry_run": dry}


def removed(watched: Watched, name: str) -> None:
    """Raises RefusedError: no such class, or the last one."""
    _changed(watched, lambda trained: remove(trained, [name]))


def undone(watched: Watched) -> None:
    """Raises RefusedError: nothing was changed."""
    _changed(watched, undo)


def _changed(watched: Watched, change: Callable[[Trained], T], *, dry: bool = False) -> T:
    """Change a copy of its own, write it, and serve what was written."""
    trained = watched.read()
    try:
        if dry:
            return change(trained)
        with editing(trained, wait=WAIT):
            found = change(trained)
    except BusyError as error:
        raise RefusedError(503, f"{error.what} has this run", Retry_After="5") from None
    except ChangedError:
        raise RefusedError(409, "the run was trained anew meanwhile; ask again") from None
    except ValueError as error:
        said = str(error)
        for path in (trained.path.resolve(), trained.path):
            said = said.replace(str(path), "the model")
        raise RefusedError(409, said) from None
    try:
        watched.refresh()
    except (CheckpointError, OSError) as error:  # it is written; whoever watches the file goes on
        log.warning("changed, and not read again yet: %s", error)
    return found
