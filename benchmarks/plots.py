"""Figures and the table of one machine's results, from the JSON of collect.py alone; then the
README's table of the makes (speeds.py).

python benchmarks/plots.py benchmarks/results/MACHINE
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speeds
import table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import NullFormatter

Record = dict[str, Any]
Series = dict[str, list[tuple[float, float]]]

# Okabe and Ito's colours, told apart by the colour-blind and on light and dark ground alike; a
# marker tells them apart once more. A middle grey does for text on either ground.
INK = "#808890"
STYLES = {
    "ours": ("#0072b2", "o"),
    "released": ("#d55e00", "X"),
    "eager": ("#e69f00", "s"),
    "eager addmm": ("#e69f00", "s"),
    "eager cdist": ("#cc79a7", "D"),
    "eager columns": ("#cc79a7", "D"),
    "linear + cross-entropy": ("#808890", "D"),
    "cosine, eager": ("#cc79a7", "v"),
    "keops": ("#56b4e9", "v"),
}
OTHER = ("#009e73", "^")  # compiled
DTYPES = {
    "float32": ("#0072b2", "o"),
    "high": ("#009e73", "^"),
    "medium": ("#e69f00", "s"),
    "bfloat16": ("#cc79a7", "D"),
}
SETTINGS = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.transparent": True,
    "savefig.dpi": 120,
}


def times(record: Record) -> dict[str, float]:
    """Milliseconds by name, ours among them."""
    found = {"ours": record["ours"], **record["peers"]}
    return {name: 1e3 * one["median_s"] for name, one in found.items()}


def megabytes(record: Record) -> dict[str, float]:
    """Peak memory by name; what was not measured is left out. A log axis has no zero."""
    found = record.get("memory", {}).items()
    return {name or "ours": max(size / 1e6, 0.1) for name, size in found if size is not None}


def series(records: list[Record], x: str, values: Callable[[Record], dict[str, float]]) -> Series:
    """Points by name, in order of x."""
    lines: Series = {}
    for record in sorted(records, key=lambda r: r[x]):
        for name, value in values(record).items():
            lines.setdefault(name, []).append((record[x], value))
    return lines


def draw_lines(panels: dict[str, Series], x_label: str, y_label: str, path: Path) -> None:
    """A panel a title, all axes logarithmic."""
    single = len(panels) == 1
    figure = Figure(figsize=(5 if single else 3.4 * len(panels), 3.4), layout="constrained")
    handles: dict[str, Any] = {}
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for name, points in lines.items():
            colour, marker = STYLES.get(name, OTHER)
            (handles[name],) = axes.loglog(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=4.5,
                linewidth=2.2 if name == "ours" else 1.2, zorder=3 if name == "ours" else 2,
            )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.axes[0].set_ylabel(y_label)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 if single else 6
    )
    save(figure, path)


def draw_shares(records: list[Record], path: Path) -> None:
    """How much of the floor each shape reaches: a row a shape and mode, a mark a dtype."""
    labels = [f"{r['op']} {r['B']}x{r['C']}x{r['D']} {r['mode']}" for r in records]
    row = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    figure = Figure(figsize=(6.6, 1 + 0.19 * len(row)), layout="constrained")
    axes = figure.subplots()
    for kind, (colour, marker) in DTYPES.items():
        for bound in ("arithmetic", "memory"):
            points = [
                (100 * r["share_of_floor"], row[label])
                for r, label in zip(records, labels, strict=True)
                if r["dtype"] == kind and r["bound"] == bound
            ]
            if points:
                face = colour if bound == "arithmetic" else "none"
                axes.scatter(
                    *zip(*points, strict=True), s=32, marker=marker, facecolor=face,
                    edgecolor=colour, label=f"{table.dtype({'dtype': kind})} ({bound})",
                )  # fmt: skip
    axes.set_yticks(range(len(row)), list(row), fontsize=7)
    axes.set_ylim(len(row) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("floor / ours, percent")
    axes.set_title("Share of the measured peak (in brackets, what bounds it)")
    figure.legend(loc="outside lower center", ncols=3)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """As PNG, without a date, so that the same results give the same bytes."""
    FigureCanvasAgg(figure)
    figure.savefig(path, metadata={"Software": None})


def draw(folder: Path) -> list[str]:
    """All figures that the results of a folder allow; returns their names."""
    suites = table.load(folder)
    scaling = suites.get("scaling", {}).get("records", [])
    drawn = []

    def lines(name: str, fixed: str, x: str, label: str, values: Any, y_label: str) -> None:
        # The two sweeps cross in one shape: each fixes the value that most of its rows share.
        chosen = table.sweep(scaling, fixed)
        panels = {
            f"{op}, {mode}": series([r for r in chosen if (r["op"], r["mode"]) == key], x, values)
            for key in dict.fromkeys((r["op"], r["mode"]) for r in chosen)
            for op, mode in [key]
        }
        panels = {
            t: found for t, found in panels.items() if any(len(p) > 1 for p in found.values())
        }
        if panels:
            draw_lines(panels, label, y_label, folder / name)
            drawn.append(name)

    with context(["default", SETTINGS]):
        lines("time_classes.png", "B", "C", "classes C", times, "ms")
        lines("time_rows.png", "C", "B", "rows B", times, "ms")
        lines("memory_classes.png", "B", "C", "classes C", megabytes, "MB over results")
        steps = suites.get("training_step", {}).get("records", [])
        if steps:
            panel = {"training step": series(steps, "C", times)}
            draw_lines(panel, "classes C", "ms", folder / "training_step.png")
            drawn.append("training_step.png")
        shares = [
            r
            for suite, found in suites.items()
            if suite not in table.NO_SHARES
            for r in found["records"]
        ]
        if shares:
            draw_shares(shares, folder / "share_of_peak.png")
            drawn.append("share_of_peak.png")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="+", type=Path)
    for folder in parser.parse_args().folder:
        (folder / "README.md").write_text(table.page(folder, draw(folder)))
        print(folder / "README.md")
    speeds.write()


if __name__ == "__main__":
    main()
