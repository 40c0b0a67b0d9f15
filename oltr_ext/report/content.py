"""The report as data: every number of the page, computed or copied once, in JSON types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from oltr_ext._words import counted

from .numbers import number
from .samples import describe
from .types import MethodResult

SHOTS = ("many", "medium", "few")
CLOSED = ("overall", *SHOTS)
LOWER_IS_BETTER = ("fpr95",)
TAIL_ROWS = 20
BINS = 40


def build(
    results: Sequence[MethodResult],
    class_names: Sequence[str],
    train_counts: Any,
    title: str,
    details: Mapping[str, str],
) -> dict[str, Any]:
    """All content of the report but pictures.

    Raises:
        ValueError: no results, two of one name, different test sets, or lengths that do not fit.
    """
    counts = np.asarray(train_counts)
    if not results:
        raise ValueError("write_report: expected at least one MethodResult, got none")
    if len({r.name for r in results}) < len(results):
        raise ValueError(f"write_report: method names repeat: {[r.name for r in results]}")
    if counts.shape != (len(class_names),):
        raise ValueError(
            f"write_report: expected train_counts of {counted(len(class_names), 'class')}, "
            f"got shape {counts.shape}"
        )
    target = np.asarray(results[0].target)
    if not all(np.array_equal(target, np.asarray(r.target)) for r in results):
        raise ValueError("write_report: expected all methods on the same test images in one order")
    shots = results[0].summary["shots"]
    methods = [_method(r, class_names, counts) for r in results]
    for method in methods[1:]:
        method["change"] = _change(method["headline"], methods[0]["headline"])
    return {
        "title": title,
        "details": {str(k): str(v) for k, v in details.items()},
        "samples": dict(results[0].summary["samples"]),
        "shots": {"convention": shots["convention"], "classes": shots["classes"]},
        "classes": [
            {"name": str(name), "train_images": int(n), "shot": shot}
            for name, n, shot in zip(class_names, counts, shots["group"], strict=True)
        ],
        "methods": methods,
        "best": {
            key: best_of([m["headline"][key] for m in methods], key)
            for key in methods[0]["headline"]
        },
    }


def _method(result: MethodResult, names: Sequence[str], counts: np.ndarray) -> dict[str, Any]:
    where = f"write_report: method {result.name!r}"
    scores = result.summary["scores"]
    if result.score_name not in scores:
        raise ValueError(f"{where}: expected a score of {list(scores)}, got {result.score_name!r}")
    if len(result.summary["closed"]["per_class"]) != len(names):
        raise ValueError(f"{where}: expected results of {counted(len(names), 'class')}")
    score, pred, target = (np.asarray(a) for a in (result.score, result.pred, result.target))
    if not score.shape == pred.shape == target.shape or score.ndim != 1:
        raise ValueError(
            f"{where}: expected score, pred and target of one length, "
            f"got {score.shape}, {pred.shape} and {target.shape}"
        )
    chosen = scores[result.score_name]
    point = chosen["operating_points"].get("calibrated")
    threshold = result.threshold
    if threshold is None and point is not None:
        threshold = point["threshold"]
    if threshold is not None and point is not None:
        theirs = point["threshold"]
        if not math.isclose(threshold, theirs, rel_tol=1e-5, abs_tol=1e-9):
            raise ValueError(f"{where}: its threshold {threshold} is not the summary's {theirs}")
    return {
        "name": str(result.name),
        "score_name": result.score_name,
        "threshold": number(threshold),
        "threshold_rule": str(result.threshold_rule),
        "headline": headline(result),
        "change": None,
        "summary": dict(result.summary),
        "histogram": _histogram(score, target),
        "tail": _tail(
            pred, target, score, threshold, [*names, *result.joined], counts, result.summary
        ),
        "samples": [describe(s) for s in result.samples],
    }


def headline(result: MethodResult) -> dict[str, float | None]:
    """The numbers of the headline table: those of the method's own score and threshold."""
    closed = result.summary["closed"]
    chosen = result.summary["scores"][result.score_name]
    measured = chosen["operating_points"].get("calibrated", {})
    return {
        **{key: closed[key] for key in CLOSED},
        **{key: chosen[key] for key in ("auroc", "fpr95", "oscr")},
        **{key: measured.get(key) for key in ("oltr2020", "oltr2019")},
    }


def _change(ours: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        key: None if ours[key] is None or base[key] is None else ours[key] - base[key]
        for key in ours
    }


def best_of(values: Sequence[float | None], key: str) -> list[int]:
    """Indices of the best methods; none when there is nothing to compare."""
    present = [v for v in values if v is not None]
    if len(present) < 2:
        return []
    best = min(present) if key in LOWER_IS_BETTER else max(present)
    return [i for i, v in enumerate(values) if v == best]


def _histogram(score: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """Fraction of the known and of the open images in each of BINS equal bins.

    The bins span all but the outermost 0.5 % of scores at each end, which fall into the end
    bins: one image on a centroid has an enormous reachability and would flatten all others.
    """
    finite = score[np.isfinite(score)].astype(np.float64)
    if len(finite) == 0:
        return {"edges": [], "known": [], "open": []}
    low, high = np.quantile(finite, [0.005, 0.995])
    if not low < high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    inside = np.clip(score, low, high)
    parts = {}
    for name, rows in (("known", target >= 0), ("open", target < 0)):
        counted = np.histogram(inside[rows], edges)[0]
        parts[name] = (counted / rows.sum()).tolist() if rows.any() else []
    return {"edges": edges.tolist(), **parts}


def _tail(
    pred: np.ndarray,
    target: np.ndarray,
    score: np.ndarray,
    threshold: float | None,
    names: Sequence[str],
    counts: np.ndarray,
    summary: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Where the test images of the rarest few-shot classes went, rarest first."""
    groups = summary["shots"]["group"]
    group = np.asarray([*groups, *[""] * (len(names) - len(groups))])
    few = np.flatnonzero(group == "few") if len(group) else np.empty(0, dtype=int)
    rows = []
    for c in few[np.argsort(counts[few], kind="stable")][:TAIL_ROWS]:
        mine = target == c
        if not mine.any():
            continue
        rejected = np.zeros(int(mine.sum()), dtype=bool)
        if threshold is not None:
            rejected = score[mine] < threshold
        given = pred[mine][~rejected]
        wrong = given[given != c]
        taken, times = np.unique(wrong, return_counts=True)
        order = np.argsort(-times, kind="stable")[:3]
        total = int(mine.sum())
        rows.append(
            {
                "name": str(names[c]),
                "train_images": int(counts[c]),
                "test_images": total,
                "right": int((given == c).sum()) / total,
                "rejected": int(rejected.sum()) / total,
                "taken_for": {s: int((group[wrong] == s).sum()) / total for s in SHOTS},
                "confusions": [
                    {"name": str(names[taken[i]]), "times": int(times[i])} for i in order
                ],
            }
        )
    return rows
