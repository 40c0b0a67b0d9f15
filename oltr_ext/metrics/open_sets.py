"""Several open sets, each judged against the same known images, and averaged as OpenOOD does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .arrays import as_labels, as_scores, to_numpy
from .openset import open_set_metrics, oscr


def judge_open_sets(
    pred: Any,
    scores: Mapping[str, Any],
    target: Any,
    sets: Sequence[str] | Any,
    *,
    thresholds: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """How well each score tells each open set from the known, and the average over each group.

    An average is of the sets' numbers, whatever their sizes (Zhang et al., OpenOOD v1.5), where
    the numbers of all open images together weigh every image alike.

    Args:
        pred, scores, target: as of `evaluate_answers`.
        sets: (N,) name of the set of each open image, ``""`` for none. ``near/letters`` is of the
            group ``near``; names without ``/`` of none.
        thresholds: score name -> threshold, for ``open_rejected``.

    Returns:
        A dict a set, in the order of their images, and then one a group: "name", "sets" (names that
        an average is of; empty for a set), "images", and "scores": per score name what
        `open_set_metrics` gives, "oscr", and "open_rejected" where there is a threshold.

    Raises:
        ValueError: NaN, lengths that differ, a set without an open image, or one of a group's name.
    """
    where = "judge_open_sets"
    p = as_labels(pred, f"{where}: pred", low=0)
    t = as_labels(target, f"{where}: target", size=len(p))
    names = to_numpy(sets)
    if names.shape != t.shape or ((names != "") & (t >= 0)).any():
        raise ValueError(
            f"{where}: expected a set for each of {len(t)} images, that of a known one empty, got "
            f"{names.shape}"
        )
    values = {name: as_scores(score, f"{where}: {name}") for name, score in scores.items()}
    found, groups = [], dict[str, list[dict[str, Any]]]()
    for name in dict.fromkeys(str(n) for n in names if n != ""):
        rows = (t >= 0) | (names == name)
        judged = {}
        for score, value in values.items():
            judged[score] = {
                **open_set_metrics(value[rows], t[rows]),
                "oscr": oscr(value[rows], p[rows], t[rows]).area,
            }
            if thresholds and score in thresholds:
                rejected = value[names == name] < thresholds[score]
                judged[score]["open_rejected"] = float(rejected.mean())
        found.append(
            {"name": name, "sets": [], "images": int((names == name).sum()), "scores": judged}
        )
        if "/" in name:
            groups.setdefault(name.split("/")[0], []).append(found[-1])
    for group, members in groups.items():
        if any(each["name"] == group for each in found):
            raise ValueError(f"{where}: {group!r} is a set, and the group of others")
        first = members[0]["scores"]
        found.append(
            {
                "name": group,
                "sets": [each["name"] for each in members],
                "images": sum(each["images"] for each in members),
                "scores": {
                    score: {
                        key: float(np.mean([each["scores"][score][key] for each in members]))
                        for key in numbers
                    }
                    for score, numbers in first.items()
                },
            }
        )
    return found
