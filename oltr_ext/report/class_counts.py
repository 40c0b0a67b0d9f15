"""How many images each class has in each split, the largest first."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from oltr_ext._files import written

from .style import BLUE, GREEN, MUTED, ORANGE, PURPLE, drawing

STYLE = {"train": (BLUE, "-", 2.0), "val": (PURPLE, "--", 1.2), "test": (GREEN, ":", 1.2)}


def write_class_counts(
    path: str | os.PathLike[str],
    known: Mapping[str, Sequence[int]],
    opened: Mapping[str, Sequence[int]],
    *,
    title: str,
) -> Path:
    """Draw the tail of a set: images a class, known classes in order of training images, then those
    held out as unknown.

    Args:
        path: ends in .png.
        known: train, val and test -> (C,) images of each class.
        opened: name of a split -> images of each of its classes.
        title: first line.

    Raises:
        ValueError: another suffix, or no known class.
    """
    target, train = Path(path), np.asarray(known.get("train", ()))
    if target.suffix != ".png" or not len(train):
        raise ValueError(
            f"write_class_counts: expected a path ending in .png and classes, got {target} and "
            f"{len(train)}"
        )
    order = np.argsort(-train, kind="stable")
    with drawing():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        place = np.arange(1, len(train) + 1)
        for name, (colour, dash, width) in STYLE.items():
            counts = np.asarray(known.get(name, ()), float)
            if len(counts) and counts.sum():
                counts = np.where(counts > 0, counts, np.nan)[order]
                axes.step(
                    place, counts, dash, where="mid", color=colour, linewidth=width,
                    label=f"{name}, {int(np.nansum(counts)):,}",
                    marker="o" if len(train) <= 60 else None, markersize=3,
                )  # fmt: skip
        begin = len(train) + 1
        for (name, found), marker in zip(opened.items(), cycle("sD^v"), strict=False):
            if len(found):
                axes.plot(
                    np.arange(begin, begin + len(found)), sorted(found, reverse=True), marker,
                    color=ORANGE, markersize=3.5, label=f"{name}, {sum(found):,}",
                )  # fmt: skip
                begin += len(found)
        if begin > len(train) + 1:
            axes.axvline(len(train) + 0.5, color=MUTED, linewidth=0.8)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set(title=title, xlabel="class, by training images", ylabel="images")
        axes.set_xlim(0.5, begin - 0.5)
        axes.legend(ncols=2)
        FigureCanvasAgg(figure)
        with written(target) as file:
            figure.savefig(file, format="png", dpi=130)
    return target
