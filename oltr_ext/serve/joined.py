"""Test images and the classes that joined a model, or left it, after training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oltr_ext._words import counted
from oltr_ext.engine.evaluate import Outputs
from oltr_ext.engine.splits import Splits
from oltr_ext.metrics import json_ready
from oltr_ext.serve.trained import Trained

__all__ = ["enrolled_line", "of_the_enrolled", "set_aside"]


def set_aside(trained: Sequence[Trained], splits: Splits) -> NDArray[np.bool_]:
    """(N,) the test images that say nothing of the data's classes and of strangers once classes
    joined or went, in any of the models; see `assess`."""
    test, joined, gone = splits.test.labels, set[str](), set[int]()
    for each in trained:
        joined |= set(each.enrolment.joined)
        gone |= {id for id in each.roster.removed if id < len(splits.class_names)}
    aside = np.isin(test, sorted(gone))
    names = splits.open_names or [""] * sum(map(len, splits.opened))
    return np.concatenate([aside, np.isin(names, sorted(joined))])


def of_the_enrolled(
    trained: Trained, splits: Splits, seen: Outputs, aside: NDArray[np.bool_]
) -> dict[str, Any]:
    """How the classes that joined do: on the test images that bear their names, and on others."""
    known = len(splits.class_names)
    confidence = seen.scores[trained.threshold["score"]]
    accepted = (confidence >= trained.threshold["value"]) & (confidence < np.inf)
    taken = accepted & (seen.pred >= known) & ~aside
    names = [""] * len(splits.test) + (splits.open_names or [])
    id_of = {name: trained.roster.id_of(name) for name in trained.enrolment.joined}
    own = np.array([id_of.get(name, -1) for name in names], np.int64)
    own = np.concatenate([own, np.full(len(seen.pred) - len(own), -1)])  # of nameless images
    right = (seen.pred == own)[own >= 0]
    return json_ready(
        {
            "classes": len(id_of),
            "removed": len([id for id in trained.roster.removed if id < known]),
            "images": len(right),
            "right": (right & accepted[own >= 0]).mean() if len(right) else None,
            "closed": right.mean() if len(right) else None,
            "known": int(((seen.target >= 0) & ~aside).sum()),
            "known_taken": int((taken & (seen.target >= 0)).sum()),
            "open": int(((seen.target < 0) & ~aside).sum()),
            "open_taken": int((taken & (seen.target < 0)).sum()),
        }
    )


def enrolled_line(found: Mapping[str, Any]) -> str:
    """The same in a sentence."""
    line = (
        f"{counted(found['classes'], 'enrolled class')}: {found['known_taken']} of "
        f"{found['known']} known "
        f"images and {found['open_taken']} of {found['open']} strangers are taken for one"
    )
    if found["images"]:
        one, many = "image bears its name, and counts", "images bear their names, and count"
        line += (
            f"; {counted(found['images'], f'open {one}', f'open {many}')} for nothing else: "
            f"{100 * found['right']:.1f} % are recognised"
        )
    if found["removed"]:
        line += f"; images of {counted(found['removed'], 'removed class')} do not count"
    return line
