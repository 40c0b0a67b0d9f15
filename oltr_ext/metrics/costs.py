"""What answers cost, by a table of costs, and the threshold that makes them cost least."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oltr_ext._tables import mark_of, opened

from .arrays import FloatArray, as_labels, as_scores

UNKNOWN = "unknown"


def read_costs(path: str | Path, class_names: Sequence[str]) -> FloatArray:
    """A table of costs: a row for each true class and for ``unknown``, a column for each answer.

    Args:
        path: CSV, or columns apart by a semicolon, a tab or a bar. The first line names the
            answers, the first cell of each other line the true class, in any order; what stands in
            the first cell of the first line does not matter.
        class_names: of the C known classes.

    Returns:
        (C + 1, C + 1) cost of an answer (column) to a true class (row), unknown last.

    Raises:
        FileNotFoundError: no such file. ValueError: not UTF-8; a class that is missing, there
            twice or not known, or a cost that is no finite number.
    """
    names = [*class_names, UNKNOWN]
    if UNKNOWN in class_names:
        raise ValueError(f"{path}: a class is named {UNKNOWN!r}, which no table can tell apart")
    with opened(Path(path)) as file:
        table = csv.reader(file, delimiter=mark_of(file))
        lines = [[cell.strip() for cell in line] for line in table if any(line)]
    head, rows = (lines[0][1:], lines[1:]) if lines else ([], [])
    for what, found in (("column", head), ("row", [row[0] for row in rows])):
        wrong = [name for name in found if name not in names or found.count(name) > 1]
        missing = [name for name in names if name not in found]
        if wrong or missing:
            some = ", ".join(map(repr, (wrong or missing)[:3]))
            raise ValueError(
                f"{path}: expected a {what} for each of {len(class_names)} classes and {UNKNOWN}, "
                f"{'got' if wrong else 'missing'} {some}"
            )
    costs = np.empty((len(names), len(names)))
    for row in rows:
        try:
            values = np.array([float(cell) for cell in row[1:]])
        except ValueError:
            values = np.empty(0)
        if values.shape != (len(names),) or not np.isfinite(values).all():
            raise ValueError(f"{path}: row {row[0]!r}: expected {len(names)} numbers")
        costs[names.index(row[0]), [names.index(name) for name in head]] = values
    return costs


def expected_cost(costs: FloatArray, answer: Any, target: Any) -> float:
    """Mean cost of answers (N,) to images of true classes (N,), -1 = unknown in both; nan of none.

    Args:
        costs: (C + 1, C + 1), see `read_costs`.

    Raises:
        ValueError: lengths that differ, or a label outside [-1, C).
    """
    rows, columns = costs.shape  # whose last is unknown, and no class
    t = as_labels(target, "expected_cost: target", below=rows - 1)
    a = as_labels(answer, "expected_cost: answer", size=len(t), below=columns - 1)
    return float(costs[t, a].mean()) if len(t) else float("nan")  # -1 is the last


def cheapest_threshold(
    costs: FloatArray, score: Any, pred: Any, target: Any
) -> tuple[float, float]:
    """The threshold below which to answer unknown that makes answers cost least; of several, the
    lowest, which rejects least.

    Args:
        costs: (C + 1, C + 1), see `read_costs`.
        score: (N,) higher means known. pred: (N,) class before rejection.
        target: (N,) class, -1 = open. As many of these as there will be are to be among them.

    Returns:
        (threshold, mean cost there): one of the scores, or the next number above them all.

    Raises:
        ValueError: NaN, lengths that differ, a label outside [-1, C), or no image.
    """
    where = "cheapest_threshold"
    s = as_scores(score, f"{where}: score")
    p = as_labels(pred, f"{where}: pred", size=len(s), low=0, below=costs.shape[1] - 1)
    t = as_labels(target, f"{where}: target", size=len(s), below=len(costs) - 1)
    if len(s) == 0:
        raise ValueError(f"{where}: expected images, got none")
    order = np.argsort(s, kind="stable")
    gain = (costs[t, -1] - costs[t, p])[order]  # of rejecting each
    levels, first = np.unique(s[order], return_index=True)
    ends = [*first] if levels[-1] == np.inf else [*first, len(s)]  # nothing is above infinity
    rejected = np.concatenate([[0.0], np.cumsum(gain)])[ends]
    total = (costs[t, p].sum() + rejected) / len(s)
    # sums differ by rounding where costs do not
    best = int(np.flatnonzero(total <= total.min() + 1e-12 * np.abs(costs).max())[0])
    level = levels[best] if best < len(levels) else np.nextafter(levels[-1], np.inf)
    return float(level), float(total[best])
