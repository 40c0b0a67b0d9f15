"""One self-contained HTML page, and a JSON file that holds every number on it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from oltr_ext._files import write_whole

from .content import build
from .numbers import format_number, look_up
from .plots import draw_all
from .samples import GOOD, KINDS, png_uri
from .types import MethodResult, ReportFiles

COLUMNS = {
    "overall": ("Overall", "percent"),
    "many": ("Many", "percent"),
    "medium": ("Medium", "percent"),
    "few": ("Few", "percent"),
    "auroc": ("AUROC", "percent"),
    "fpr95": ("FPR95", "percent"),
    "oscr": ("OSCR", "percent"),
    "oltr2020": ("F 2020", "ratio"),
    "oltr2019": ("F 2019", "ratio"),
}
"""Headline columns: heading and number format."""


def write_report(
    path: str | os.PathLike[str],
    results: Sequence[MethodResult],
    *,
    class_names: Sequence[str],
    train_counts: Any,
    title: str = "Open long-tailed recognition",
    details: Mapping[str, str] | None = None,
) -> ReportFiles:
    """Write the report of one or several methods on one test set.

    Args:
        path: of the HTML file; the JSON gets the same name with suffix .json.
        results: the methods, baseline first; changes are reported against the first.
        class_names: of the C known classes. train_counts: (C,) their training images.
        title: heading of the page.
        details: lines for the foot of the page, such as data set, seed, duration, versions.

    Returns:
        The two paths. Both files are replaced whole, never left half-written.

    Raises:
        ValueError: no results, lengths that do not fit, a threshold other than the summary's.
    """
    html = Path(path)
    side = html.with_suffix(".json")
    if side == html:
        raise ValueError(f"write_report: expected a path that does not end in .json, got {html}")
    data = build(results, class_names, train_counts, title, details or {})
    images = [[None if s.image is None else png_uri(s.image) for s in r.samples] for r in results]
    page = _environment(data).render(
        data=data,
        plots=draw_all(data),
        images=images,
        gallery=[_by_kind(method["samples"]) for method in data["methods"]],
        columns=COLUMNS,
        kinds=KINDS,
        good=GOOD,
        json_name=side.name,
    )
    said = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(html, page.encode(), several=True)
    write_whole(side, said.encode(), several=True)
    return ReportFiles(html, side)


def templates() -> Environment:
    """Of the package's pages; what they are given is shown as text, never as markup."""

    def source(name: str) -> str:
        return files(__package__).joinpath(name).read_text(encoding="utf-8")

    return Environment(
        autoescape=True,
        undefined=StrictUndefined,
        lstrip_blocks=True,
        loader=FunctionLoader(source),
    )


def _environment(data: Mapping[str, Any]) -> Any:
    environment = templates()

    def num(pointer: str, style: str = "plain") -> Markup:
        """A number of the JSON by its pointer, so that page and JSON cannot differ."""
        text = format_number(look_up(data, pointer), style)
        return Markup(f'<span data-json="{escape(pointer)}" data-style="{style}">{text}</span>')

    environment.globals.update(num=num, strip=gate_strip)
    environment.filters["pretty"] = lambda name: str(name).replace("_", " ")
    return environment.get_template("page.html")


def _by_kind(samples: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Indices of the samples of each outcome that occurs, in the order of `KINDS`."""
    groups = {kind: [i for i, s in enumerate(samples) if s["kind"] == kind] for kind in KINDS}
    return {kind: indices for kind, indices in groups.items() if indices}


def gate_strip(strongest: Sequence[Mapping[str, Any]]) -> Markup:
    """Small bars, one a value of the selector, up for positive and down for negative."""
    bars = []
    for i, item in enumerate(strongest):
        value = item["value"] or 0.0
        height = max(abs(value) * 15, 0.4)
        top = 16 - height if value > 0 else 16.0
        side = "up" if value > 0 else "down"
        place = f'x="{i * 5}" y="{top:.2f}" width="4" height="{height:.2f}"'
        bars.append(f'<rect class="{side}" {place}/>')
    width = max(5 * len(strongest), 5)
    return Markup(
        f'<svg class="strip" viewBox="0 0 {width} 32" preserveAspectRatio="none" role="img" '
        f'aria-label="the strongest values of the gate, in order of strength">'
        f'<line x1="0" x2="{width}" y1="16" y2="16"/>{"".join(bars)}</svg>'
    )
