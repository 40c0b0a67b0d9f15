"""The Markdown of `discover.py`'s results."""

from __future__ import annotations

from typing import Any

import numpy as np

GROUPED = {"grouped": 100, "purity": 100, "NMI": 100, "ARI": 100, "groups": 1, "believed": 1}
ENROLLED = (
    "true labels of every stranger",
    "true labels of these",
    "oltr discover",
    "oltr discover, odd ones named too",
    "k-means, true number",
    "HDBSCAN, defaults",
    "nothing enrolled",
)
GOAL = "true labels of these"


def mean(rows: list[dict[str, Any]], *keys: str) -> float:
    values = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value[key]
        values.append(value)
    return float(np.mean(values))


def markdown(title: str, made: dict[str, Any]) -> str:
    rows = made.get("rows", [])
    lines = [
        f"# {title}",
        "",
        "Means over the seeds, three but of the 2,000 characters one; percent, but for numbers of "
        "groups. Of the icons 20 classes of 10 images never seen, and 500 images of the 50 known "
        "ones. *rejected*: what the run rejects of all, known ones among them, which is what a "
        "user has; *every stranger*: all images of unknown kinds and nothing else, so that "
        "grouping is judged alone. Every choice was made on open validation classes of the icons. "
        "Purity is of what is grouped; NMI and ARI take each odd one for a "
        "group. oltr discover believes in groups from 0.25 sure on.",
    ]
    for pool in ("rejected", "every stranger"):
        lines += ["", f"## Groups: {pool}", "", _head("set, method", "way", *GROUPED)]
        for name, part in _parts(rows):
            about = (
                f"{name}: {mean(part, pool, 'images'):.0f} images, "
                f"{100 * mean(part, pool, 'unknown'):.0f} % of them unknown, of "
                f"{mean(part, pool, 'unknown kinds'):.0f} unknown kinds and "
                f"{mean(part, pool, 'kinds') - mean(part, pool, 'unknown kinds'):.0f} known"
            )
            for way in part[0][pool]["ways"]:
                cells = [
                    f"{factor * mean(part, pool, 'ways', way, key):.{1 if factor > 1 else 0}f}"
                    for key, factor in GROUPED.items()
                ]
                lines.append(f"| {about} | {way} | {' | '.join(cells)} |")
                about = ""
    lines += [
        "",
        "## Named and enrolled",
        "",
        "Of the images in four fifths each group is called what most of it is, groups of one name "
        "are joined, and each new class joins the known ones with its mean; the nearest mean at "
        "unit length then names the other fifth: all of its strangers, and its known images. Five "
        "turns. The last column is the share of what naming the same images one by one gives.",
    ]
    for pool in ("rejected", "every stranger"):
        columns = ("strangers right", "known right", "of true labels")
        lines += ["", f"### {pool}", "", _head("set, method", "enrolled", *columns)]
        for name, part in _parts(rows):
            best = mean(part, pool, "enrolled", GOAL, 0)  # type: ignore[arg-type]
            for way in ENROLLED:
                right, known = (
                    mean(part, pool, "enrolled", way, n)  # type: ignore[arg-type]
                    for n in (0, 1)
                )
                lines.append(
                    f"| {name} | {way} | {100 * right:.1f} | {100 * known:.1f} "
                    f"| {100 * right / best:.0f} |"
                )
                name = ""
    if "large" in made:
        it = made["large"]
        lines += [
            "",
            "## Many",
            "",
            f"`--large`: {it['images']:,} rejected rows of {it['width']} numbers, made of "
            f"{it['kinds']:,} kinds, from the .npy file to list and page: {it['seconds']:.0f} s "
            f"({it['processor seconds']:.0f} s of processor time, {it['threads']} thread, other "
            f"work on the same two cores), {it['peak MB']:,.0f} MB of resident memory at the peak, "
            f"torch included; {it['groups']:,} groups, purity {100 * it['purity']:.1f}, NMI "
            f"{100 * it['NMI']:.1f}. {it['date']}.",
        ]
    lines += ["", f"`python benchmarks/tables/discover.py`, {made.get('date', '')}.", ""]
    return "\n".join(lines)


def _parts(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    names = dict.fromkeys((row["set"], row["method"]) for row in rows)
    return [
        (f"{s}, `{m}`", [row for row in rows if (row["set"], row["method"]) == (s, m)])
        for s, m in names
    ]


def _head(*columns: str) -> str:
    return f"| {' | '.join(columns)} |\n| --- | --- |{' ---: |' * (len(columns) - 2)}"
