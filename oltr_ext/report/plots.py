"""The figures of the report, each a function of the report's data (content.build)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter, PercentFormatter

from .style import (
    BLUE,
    GREY,
    GRID,
    INK,
    KNOWN,
    MUTED,
    OPEN,
    ORANGE,
    PURPLE,
    SKY,
    drawing,
    inline_svg,
    method_style,
    short,
)

Data = Mapping[str, Any]
WIDTH = 4.6
MAX_DOTS = 300
MAX_STEPS = 1000
F_RULES = {"oltr2020": "2020 rule (released code)", "oltr2019": "2019 rule (paper)"}


class Plot(NamedTuple):
    """A figure with its heading and the one sentence that says what to look for."""

    title: str
    svg: Markup
    caption: str


Made = tuple[str, Figure, str, str]
"""Heading, figure, text alternative, caption."""


def draw_all(data: Data) -> dict[str, Plot]:
    """Every figure there is data for, by name, in the order of the page."""
    makers: dict[str, Callable[[Data], Made | None]] = {
        "classes": _classes,
        "histograms": _histograms,
        "roc": _roc,
        "oscr": _oscr,
        "f-curves": _f_curves,
        "tail": _tail,
    }
    plots = {}
    with drawing(), warnings.catch_warnings():
        # The browser's fonts draw the text; matplotlib's own only measure it.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        for name, maker in makers.items():
            made = maker(data)
            if made is not None:
                title, figure, alt, caption = made
                plots[name] = Plot(title, inline_svg(figure, name, alt), caption)
    return plots


def _percent(axis: Any) -> None:
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def _styles(data: Data) -> list[tuple[Data, dict[str, Any]]]:
    methods = data["methods"]
    return [(m, method_style(i, len(methods))) for i, m in enumerate(methods)]


def _by_count(data: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes from most to fewest training images: (order, counts, shot group) in that order."""
    counts = np.array([c["train_images"] for c in data["classes"]])
    order = np.argsort(-counts, kind="stable")
    return order, counts[order], np.array([c["shot"] for c in data["classes"]])[order]


def _binned(values: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Middle position and mean of each run of width neighbours, NaN left out."""
    starts = np.arange(0, len(values), width)
    there = ~np.isnan(values)
    total = np.add.reduceat(np.where(there, values, 0), starts)
    number = np.add.reduceat(there.astype(float), starts)
    with np.errstate(invalid="ignore"):
        middle = starts + (np.minimum(starts + width, len(values)) - starts - 1) / 2
        return middle, total / number


def _classes(data: Data) -> Made | None:
    order, counts, shot = _by_count(data)
    if len(order) == 0:
        return None
    total = len(data["methods"])
    figure = Figure(figsize=(WIDTH, 4.1 + 0.2 * ((total - 1) // 3)), layout="constrained")
    top, main = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3])
    width = -(-len(order) // MAX_DOTS)
    x, level = _binned(counts.astype(float), 1 if len(order) <= MAX_STEPS else width)
    top.fill_between(x, np.maximum(level, 0.8), 0.8, step="mid", color=GREY, alpha=0.35, lw=0)
    top.step(x, np.maximum(level, 0.8), where="mid", color=GREY, lw=1)
    top.set_yscale("log")
    top.yaxis.set_major_formatter("{x:g}")
    top.yaxis.set_minor_formatter(NullFormatter())
    top.set_ylabel("training\nimages")
    for i, (method, style) in enumerate(_styles(data)):
        raw = method["summary"]["closed"]["per_class"]
        accuracy = np.array([np.nan if v is None else v for v in raw], dtype=float)[order]
        middle, mean = _binned(accuracy, width)
        # methods side by side, not on top, and within their class
        nudge = (i - (total - 1) / 2) * min(0.22, 0.8 / total) * width
        main.plot(
            middle + nudge, mean, style["marker"], color=style["color"], ms=3.6, alpha=0.75,
            mfc="none" if i == 0 and total > 1 else style["color"], mew=0.9,
            label=method["name"],
        )  # fmt: skip
        for name in ("many", "medium", "few"):
            level, members = method["summary"]["closed"][name], np.flatnonzero(shot == name)
            if level is not None:
                ends = [members.min() - 0.4, members.max() + 0.4]
                main.plot(ends, [level] * 2, color=style["color"], ls=style["linestyle"], lw=2)
    for name in ("many", "medium", "few"):
        members = np.flatnonzero(shot == name)
        if len(members):
            top.set_title(" ")
            top.annotate(
                f"{name}-shot", (members.mean(), 1.04), xycoords=("data", "axes fraction"),
                ha="center", va="bottom", fontsize=8.5, color=MUTED,
            )  # fmt: skip
            if members.max() + 1 < len(order):
                for axes in (top, main):
                    axes.axvline(members.max() + 0.5, color=MUTED, lw=0.7, ls=":")
    main.set_ylim(-0.04, 1.04)
    main.set_xlim(-0.8, len(order) - 0.2)
    _percent(main.yaxis)
    main.set_ylabel("accuracy")
    main.set_xlabel("known classes, from most to fewest training images")
    main.grid(axis="x", visible=False)
    top.grid(axis="x", visible=False)
    figure.legend(loc="outside lower right", ncols=min(total, 3))
    dots = "class" if width == 1 else f"mean of {width} neighbouring classes"
    names = " and ".join(m["name"] for m in data["methods"])
    return (
        "Accuracy along the tail",
        figure,
        f"Per-class closed-set accuracy of {names} against the number of training images.",
        f"Each mark is one {dots}, each line the mean of a shot group: "
        "look for how far accuracy falls towards the right, where training images are few.",
    )


def _grid(methods: int, height: float) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(WIDTH, height * methods + 0.4), layout="constrained")
    return figure, figure.subplots(methods, 1, squeeze=False)[:, 0]


def _vertical(axes: Axes, x: float, text: str, style: Any, *, height: float = 0.98) -> None:
    """A labelled threshold line, its label on the side that has room."""
    axes.axvline(x, color=INK, lw=1.2, ls=style)
    low, high = axes.get_xlim()
    left = x > (low + high) / 2
    axes.annotate(
        text, (x, height), xycoords=("data", "axes fraction"), va="top", fontsize=8,
        ha="right" if left else "left", xytext=(-4 if left else 4, 0), textcoords="offset points",
    )  # fmt: skip


def _pretty(name: str) -> str:
    return name.replace("_", " ")


def _histograms(data: Data) -> Made | None:
    methods = [m for m in data["methods"] if m["histogram"]["known"]]
    if not methods:
        return None
    figure, panels = _grid(len(methods), 1.75)
    for axes, method in zip(panels, methods, strict=True):
        h = method["histogram"]
        edges = np.array(h["edges"])
        swatches = []
        for part, colour, hatch in (("known", KNOWN, None), ("open", OPEN, "////")):
            if h[part]:
                axes.stairs(h[part], edges, fill=True, color=colour, alpha=0.35, lw=0)
                axes.stairs(h[part], edges, color=colour, lw=1.4, hatch=hatch)
                face = to_rgba(colour, 0.35)
                swatches.append(Patch(fc=face, ec=colour, lw=1.4, hatch=hatch, label=part))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max(h["known"] + h["open"]) * 1.22)
        axes.set_title(method["name"])
        axes.set_xlabel(_pretty(method["score_name"]))
        axes.set_ylabel("share of images")
        _percent(axes.yaxis)
        if method["threshold"] is not None and edges[0] <= method["threshold"] <= edges[-1]:
            _vertical(axes, method["threshold"], "known from here", "-")
        axes.legend(handles=swatches, loc="center right", bbox_to_anchor=(1, 0.62))
    return (
        "Known against open images",
        figure,
        "Histograms of the open-set score, known and open test images, one panel a method.",
        "The less the two shapes overlap the better; everything left of the line, the threshold "
        "calibrated on validation data, is called unknown.",
    )


def _curves(data: Data, key: str, x: str, y: str, ylabel: str) -> Figure | None:
    """Each method's curve by its own score, or None when no method has one."""
    many = len(data["methods"]) > 6  # their legend would hide the curves
    height = 3.7 + (0.2 * len(data["methods"]) if many else 0)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    for method, style in _styles(data):
        points = method["summary"]["scores"][method["score_name"]][key]
        if points[x]:
            axes.plot(
                points[x], points[y], color=style["color"], ls=style["linestyle"], lw=1.8,
                label=f"{method['name']} ({_pretty(method['score_name'])})",
            )  # fmt: skip
    if not axes.lines:
        return None
    if key == "roc":
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.8, ls=(0, (1, 2)), label="chance")
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.03)
    axes.set_xlabel("open images accepted (false positive rate)")
    axes.set_ylabel(ylabel)
    _percent(axes.xaxis)
    _percent(axes.yaxis)
    if many:
        figure.legend(loc="outside lower left")
    else:
        axes.legend(loc="lower right")
    return figure


def _roc(data: Data) -> Made | None:
    figure = _curves(data, "roc", "fpr", "tpr", "known images accepted")
    if figure is None:
        return None
    return (
        "ROC: telling known from open",
        figure,
        "Known images accepted against open images accepted, as the threshold falls.",
        "Known is the positive class: the nearer a curve runs to the top left corner, the better "
        "the score separates, whatever the threshold.",
    )


def _oscr(data: Data) -> Made | None:
    figure = _curves(data, "oscr_curve", "fpr", "ccr", "known images accepted and named right")
    if figure is None:
        return None
    return (
        "OSCR: accepted and named right",
        figure,
        "Known images accepted and classified right against open images accepted.",
        "As the ROC, but a known image counts only when its name is right, so each curve ends at "
        "the closed-set accuracy: look for a curve that is high on the left already, where few "
        "open images get in.",
    )


def _f_curves(data: Data) -> Made | None:
    def curves(method: Data) -> Data:
        found: Data = method["summary"]["scores"][method["score_name"]]
        return found

    methods = [m for m in data["methods"] if curves(m)["f_curve"]["threshold"]]
    if not methods:
        return None
    figure, panels = _grid(len(methods), 1.75)
    for axes, method in zip(panels, methods, strict=True):
        f = curves(method)["f_curve"]
        for (rule, label), colour, dash in zip(
            F_RULES.items(), (BLUE, PURPLE), ("-", "--"), strict=True
        ):
            y = [np.nan if v is None else v for v in f[rule]]
            axes.plot(f["threshold"], y, color=colour, ls=dash, lw=1.8, label=label)
        low, high = np.quantile(f["threshold"], [0.02, 0.98])
        pad = (high - low) * 0.05 or 0.5
        axes.set_xlim(low - pad, high + pad)
        axes.set_ylim(0, 1.12)
        points = curves(method)["operating_points"]
        named = {"calibrated": ("calibrated", "-"), "released": ("released rule", ":")}
        for i, key in enumerate(k for k in named if k in points):
            x = points[key]["threshold"]
            if low - pad <= x <= high + pad:
                _vertical(axes, x, named[key][0], named[key][1], height=0.99 - 0.13 * i)
        axes.set_title(method["name"])
        axes.set_xlabel(f"threshold on {_pretty(method['score_name'])}")
        axes.set_ylabel("F-measure")
    legend = panels[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside lower right", ncols=2)
    return (
        "F-measure against the threshold",
        figure,
        "Open-set F-measure under the 2019 and the 2020 rule at every threshold.",
        "The 2019 rule does not count rejected known images, so it rewards rejecting ever more; "
        "the 2020 rule peaks where rejecting starts to cost more known images than it is worth.",
    )


def _tail(data: Data) -> Made | None:
    methods: Sequence[Data] = [m for m in data["methods"] if m["tail"]]
    if not methods:
        return None
    rows = len(methods[0]["tail"])
    across = min(len(methods), 3)
    down = -(-len(methods) // across)
    figure = Figure(figsize=(WIDTH, (1.0 + 0.21 * rows) * down), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes in grid[len(methods) :]:
        axes.remove()
    panels = grid[: len(methods)]
    parts = (
        ("right", BLUE, None), ("few", SKY, "\\\\\\\\"), ("medium", PURPLE, "////"),
        ("many", ORANGE, "xxxx"), ("rejected", GRID, None),
    )  # fmt: skip
    labels = {"right": "right", "rejected": "called unknown"}
    y = np.arange(rows)
    for axes, method in zip(panels, methods, strict=True):
        left = np.zeros(rows)
        for key, colour, hatch in parts:
            share = np.array([r[key] if key in r else r["taken_for"][key] for r in method["tail"]])
            axes.barh(
                y, share, left=left, height=0.78, color=colour, hatch=hatch, edgecolor=INK,
                linewidth=0.4, label=labels.get(key, f"taken for {key}-shot"),
            )  # fmt: skip
            left += share
        axes.set_title(short(method["name"], 13) if across > 2 else method["name"])
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1])
        _percent(axes.xaxis)
        axes.grid(axis="y", visible=False)
    names = [f"{short(r['name'])} · {r['train_images']}" for r in methods[0]["tail"]]
    panels[0].set_yticks(y, names)
    for axes in panels[::across]:
        axes.tick_params(axis="y", length=0, labelsize=8)
    panels[0].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return (
        "Where the tail's images go",
        figure,
        "For the rarest few-shot classes: share of test images named right, taken for few-, "
        "medium- or many-shot classes, or called unknown.",
        "One bar is one few-shot class with its number of training images: look for how much of "
        "the tail is swallowed by classes with more images, or given up as unknown.",
    )
