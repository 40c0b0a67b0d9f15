"""Choosing the threshold below which an image is called unknown, on validation data."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import FloatArray, as_scores, to_numpy
from .fmeasure import accepted_counts, check_f_rule, f_from_scores

CALIBRATION_RULES = ("known_recall", "f_measure", "balanced")


def keep_fraction(
    score_known: FloatArray, fraction: float, weight: FloatArray | None = None
) -> float:
    """Highest threshold that accepts at least this fraction of the known scores, or of their
    weight."""
    order = np.argsort(score_known)
    worth = np.ones(len(order)) if weight is None else weight[order]
    accepted = worth[::-1].cumsum()[::-1]
    # Sums of weights round: what is short of the share by that alone is enough.
    enough = accepted >= fraction * accepted[0] * (1 - 1e-12)
    return float(score_known[order[np.flatnonzero(enough)[-1]]])


def calibrate_threshold(
    score_known: Any,
    *,
    rule: str = "known_recall",
    value: float = 0.95,
    score_open: Any | None = None,
    correct: Any | None = None,
    f_rule: str = "oltr2020",
) -> float:
    """The threshold that a stated rule asks for; accept when score >= threshold.

    Args:
        score_known: (n,) scores of validation images of known classes, higher means known.
        rule: "known_recall": the highest threshold that keeps at least `value` of the knowns.
            "f_measure": the highest F under `f_rule`; prefer "oltr2020", for under "oltr2019"
            F hardly stops rising as ever more knowns are rejected.
            "balanced": the highest mean of (knowns kept, open images rejected).
            Of several best thresholds the lowest is taken, which rejects least.
        value: fraction in (0, 1], for "known_recall".
        score_open: (k,) scores of validation images of open classes (not those of the test
            set), for "f_measure" and "balanced".
        correct: (n,) bool, whether the closed-set prediction of each known was right, for
            "f_measure".
        f_rule: "oltr2019" or "oltr2020", for "f_measure".

    Returns:
        One of the given scores, exactly.

    Raises:
        ValueError: an unknown rule, a missing argument, no scores, or NaN among them.
    """
    where = "calibrate_threshold"
    known = as_scores(score_known, f"{where}: score_known")
    if rule not in CALIBRATION_RULES:
        raise ValueError(f"{where}: expected a rule of {CALIBRATION_RULES}, got {rule!r}")
    if len(known) == 0:
        raise ValueError(f"{where}: expected scores of known images, got none")
    if rule == "known_recall":
        if not 0 < value <= 1:
            raise ValueError(f"{where}: expected value in (0, 1], got {value}")
        return keep_fraction(known, value)

    if score_open is None:
        raise ValueError(f"{where}: rule {rule!r} expects score_open, got None")
    opened = as_scores(score_open, f"{where}: score_open")
    if len(opened) == 0:
        raise ValueError(f"{where}: rule {rule!r} expects scores of open images, got none")
    levels = np.unique(np.concatenate([known, opened]))
    if rule == "balanced":
        kept, let_in = (accepted_counts(scores, levels) for scores in (known, opened))
        gain = kept * len(opened) - let_in * len(known)  # whole numbers, so that equals are equal
        return float(levels[np.argmax(gain)])

    check_f_rule(f_rule, where)
    if correct is None:
        raise ValueError(f"{where}: rule 'f_measure' expects correct, got None")
    right = to_numpy(correct)
    if right.dtype != np.bool_ or right.shape != known.shape:
        raise ValueError(
            f"{where}: expected correct as {len(known)} booleans, "
            f"got shape {right.shape} of {right.dtype}"
        )
    f = f_from_scores(known, right, opened, levels, f_rule)
    return float(levels[np.argmax(f)])
