"""What was assessed, as aligned text: for the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence

from oltr_ext.serve.assess import Assessment

__all__ = ["observation_table", "open_set_table", "percent", "set_table", "table"]


def table(results: Sequence[Assessment]) -> str:
    """Closed and open results side by side, in percent, as aligned text."""
    head = (
        *("method", "all", "many", "medium", "few", "AUROC", "(score)", "known kept", "open out"),
        "expects",
    )
    joined = any("enrolled" in result.summary for result in results)
    rows = [(*head, "enrolled")] if joined else [head]
    for result in results:
        closed, scores = result.summary["closed"], result.summary["scores"]
        chosen = result.trained.threshold["score"]  # on validation data, not on these
        point = scores[chosen]["operating_points"]["calibrated"]
        rows.append(
            (
                result.name,
                *(percent(closed[k]) for k in ("overall", "many", "medium", "few")),
                percent(scores[chosen]["auroc"]),
                chosen,
                percent(point["known_accepted"]),
                percent(point["open_rejected"]),
                result.summary["expects"],
                *([percent(result.summary.get("enrolled", {}).get("right"))] if joined else []),
            )
        )
    return _aligned(rows, left={0, 6, 9})


def set_table(results: Sequence[Assessment]) -> str:
    """How often the prediction sets hold the true class of known test images, in percent, and how
    many classes they hold, as aligned text."""
    head = ("method", "sets", "covered", "by class", "many", "medium", "few", "classes", "always")
    rows = [head]
    for result in results:
        for name, found in result.summary["sets"]["methods"].items():
            keys = ("coverage", "macro", "many", "medium", "few")
            size = found["size"]
            rows.append(
                (
                    result.name,
                    name,
                    *(percent(found[key]) for key in keys),
                    "-" if size is None else f"{size:.2f}",
                    str(found["always"]),
                )
            )
    return _aligned(rows, left={0, 1})


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if n in left else c.rjust(w)
            for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def open_set_table(results: Sequence[Assessment]) -> str:
    """Each open set and the average of each group, by the score that a model answers by, in
    percent; empty where no model has several."""
    rows = []
    for result in results:
        chosen = result.trained.threshold["score"]
        for each in result.summary.get("open_sets", []):
            found = each["scores"][chosen]
            numbers = (found[k] for k in ("auroc", "fpr95", "fpr95_open", "oscr", "open_rejected"))
            name = f"mean of {each['name']}" if each["sets"] else each["name"]
            rows.append((result.name, name, f"{each['images']:,}", *map(percent, numbers)))
    if not rows:
        return ""
    head = ("method", "open set", "images", "AUROC", "FPR95", "FPR95 open", "OSCR", "open out")
    return _aligned([head, *rows], left={0, 1})


def observation_table(results: Sequence[Assessment]) -> str:
    """Observations judged as one beside their images, in percent; empty where none were."""
    rows = []
    for result in results:
        if (found := result.summary.get("observations")) is None:
            continue
        chosen = result.trained.threshold["score"]
        of_each = (("images", found["images"], result.summary),
                   (f"mean of {found['by']}", found["observations"], found))  # fmt: skip
        for name, count, summary in of_each:
            closed, scores = summary["closed"], summary["scores"][chosen]
            point = scores["operating_points"]["calibrated"]
            numbers = (
                *(closed[k] for k in ("overall", "balanced", "macro_f1")),
                *(scores[k] for k in ("auroc", "tnr95")),
                *(point[k] for k in ("known_accepted", "open_rejected")),
            )
            rows.append((result.name, name, f"{count:,}", *map(percent, numbers)))
    if not rows:
        return ""
    head = ("method", "observations", "number", "all", "balanced", "macro F1", "AUROC", "TNR95",
            "known kept", "open out")  # fmt: skip
    return _aligned([head, *rows], left={0, 1})


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
