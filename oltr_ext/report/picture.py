"""The picture of a README: sample predictions above the headline table, on one white card."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from oltr_ext._files import write_whole

from .content import CLOSED, LOWER_IS_BETTER, best_of, headline
from .numbers import format_number
from .samples import GOOD, KINDS, outcome, pixels
from .style import BLUE, GRID, INK, MUTED, NO_METADATA, drawing, short
from .types import MethodResult, Sample

GOOD_INK, BAD_INK = "#00704f", "#b23a00"
MIX = (
    "known_correct", "open_rejected", "known_wrong", "known_correct", "open_accepted",
    "open_rejected", "known_correct", "known_rejected",
)  # fmt: skip
LABELS = {
    "overall": "overall", "many": "many", "medium": "medium", "few": "few",
    "auroc": "AUROC", "fpr95": "FPR95", "oscr": "OSCR", "oltr2020": "F (2020)",
}  # fmt: skip
WIDTH, MARGIN, MAX_BYTES = 9.0, 0.3, 200_000


def write_picture(
    path: str | os.PathLike[str],
    results: Sequence[MethodResult],
    *,
    title: str = "Open long-tailed recognition",
    max_samples: int = 8,
) -> Path:
    """Draw sample predictions and the headline table of the same results as the report.

    Args:
        path: ends in .svg (text as outlines, no fonts needed) or .png.
        results: the methods, baseline first; the samples are those of the last that has any.
        title: first line. max_samples: at most this many, outcomes mixed.

    Returns:
        The path, of a file of at most 200 KB.

    Raises:
        ValueError: no results, another suffix, or a file that came out larger.
    """
    target = Path(path)
    if target.suffix not in (".svg", ".png"):
        raise ValueError(f"write_picture: expected a path ending in .svg or .png, got {target}")
    if not results:
        raise ValueError("write_picture: expected at least one MethodResult, got none")
    samples = _mixed(next((r.samples for r in reversed(results) if r.samples), ()), max_samples)
    with drawing():
        figure = _draw(results, samples, title)
        if target.suffix == ".svg":
            with rc_context({"svg.fonttype": "path"}):
                FigureCanvasSVG(figure).print_svg(drawn := io.BytesIO(), metadata=NO_METADATA)
        else:
            FigureCanvasAgg(figure)
            for dpi in (150, 110, 80):  # a table of many methods fits at a lower resolution
                figure.savefig(drawn := io.BytesIO(), dpi=dpi, pil_kwargs={"optimize": True})
                if len(drawn.getvalue()) <= MAX_BYTES:
                    break
    size = len(drawn.getvalue())
    if size > MAX_BYTES:
        raise ValueError(
            f"write_picture: the picture takes {size} bytes, more than {MAX_BYTES}; "
            f"show fewer samples than {len(samples)} or write the other format"
        )
    write_whole(target, drawn.getvalue())
    return target


def _mixed(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """Up to limit samples of all outcomes by the pattern of MIX, then grouped by outcome."""
    waiting = {kind: [s for s in samples if outcome(s) == kind] for kind in KINDS}
    taken: dict[str, list[Sample]] = {kind: [] for kind in KINDS}
    for kind in islice(cycle(MIX), len(MIX) * len(samples)):
        if waiting[kind] and sum(map(len, taken.values())) < limit:
            taken[kind].append(waiting[kind].pop(0))
    return [sample for kind in KINDS for sample in taken[kind]]


def _draw(results: Sequence[MethodResult], samples: Sequence[Sample], title: str) -> Figure:
    """One axes in inches from the top left corner: title, strip of samples, table."""
    tile = (WIDTH - 2 * MARGIN + 0.15) / max(len(samples), 6)
    strip = tile + 0.5 if samples else 0.0
    height = 0.65 + strip + 0.5 + 0.34 * len(results) + 0.2
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    axes.text(MARGIN, 0.42, title, fontsize=14, fontweight="bold")
    if samples:
        method = next(r.name for r in reversed(results) if r.samples)
        axes.text(
            WIDTH - MARGIN, 0.42, f"examples of every outcome, by {method}", ha="right",
            fontsize=9, color=MUTED,
        )  # fmt: skip
    for i, sample in enumerate(samples):
        _tile(axes, sample, MARGIN + i * tile, 0.65, tile - 0.15)
    _table(axes, results, 0.65 + strip + 0.15)
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))  # imshow moves the limits
    return figure


def _tile(axes: Axes, sample: Sample, x: float, y: float, size: float) -> None:
    if sample.image is None:
        picture = Image.new("RGB", (128, 128), GRID)
    else:
        picture = Image.fromarray(pixels(sample.image)).convert("RGB")
    scale = 128 / max(picture.size)
    picture = picture.resize(
        (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
        Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS,
    )
    tile = Image.new("RGB", (128, 128))
    tile.paste(picture, ((128 - picture.width) // 2, (128 - picture.height) // 2))
    axes.imshow(np.asarray(tile), extent=(x, x + size, y + size, y), interpolation="none")
    if sample.image is None:
        name = short(sample.image_id, max(8, round(size * 15)))
        axes.text(x + size / 2, y + size / 2, name, fontsize=7, color=MUTED, ha="center")
    good = outcome(sample) in GOOD
    colour = GOOD_INK if good else BAD_INK
    axes.add_patch(Rectangle((x, y), size, size, fill=False, edgecolor=colour, linewidth=2))
    said = "unknown" if sample.predicted is None else sample.predicted
    limit = max(8, round(size * 13))
    axes.text(
        x, y + size + 0.2, short(f"{'✓' if good else '✗'} {said}", limit), fontsize=9,
        color=colour, fontweight="bold",
    )  # fmt: skip
    truth = f"{'open' if sample.is_open else 'is'}: {sample.true_name}"
    axes.text(x, y + size + 0.37, short(truth, limit + 3), fontsize=7.5, color=MUTED)


def _table(axes: Axes, results: Sequence[MethodResult], y: float) -> None:
    rows = [headline(r) for r in results]
    left, step = 2.4, (WIDTH - MARGIN - 2.4) / len(LABELS)
    edges = [left + step * (i + 1) for i in range(len(LABELS))]
    axes.text(edges[0] - step + 0.2, y, "closed-set accuracy, %", fontsize=8.5, color=MUTED)
    axes.text(edges[len(CLOSED)] - step + 0.2, y, "open set", fontsize=8.5, color=MUTED)
    for x, (key, label) in zip(edges, LABELS.items(), strict=True):
        arrow = "↓" if key in LOWER_IS_BETTER else "↑"
        axes.text(x, y + 0.22, f"{label} {arrow}", fontsize=9, color=MUTED, ha="right")
    axes.plot([MARGIN, WIDTH - MARGIN], [y + 0.31] * 2, color=GRID, lw=1)
    for i, (result, row) in enumerate(zip(results, rows, strict=True)):
        base = y + 0.56 + 0.34 * i
        axes.text(MARGIN, base, short(result.name, 26), fontsize=10.5, color=INK)
        for x, key in zip(edges, LABELS, strict=True):
            text = format_number(row[key], "ratio" if key.startswith("oltr") else "percent")
            best = i in best_of([r[key] for r in rows], key)
            axes.text(
                x, base, text, fontsize=10.5, ha="right", color=BLUE if best else INK,
                fontweight="bold" if best else "normal",
            )  # fmt: skip
