"""Colours and the way a matplotlib figure becomes an inline SVG that follows the page's theme.

Figures are drawn in the fixed light colours below; in the SVG each becomes a CSS variable, so
the same drawing reads well on a light and on a dark page. The data colours are those of Okabe
and Ito, told apart under the common colour-vision deficiencies; every plot also differs by
marker, dash or hatch, never by colour alone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b1f24", "#5b6470", "#d5dae1"
GREY, BLUE, PURPLE, GREEN, ORANGE, SKY = (
    "#6e7681", "#0072b2", "#cc79a7", "#009e73", "#e69f00", "#56b4e9"
)  # fmt: skip
KNOWN, OPEN = GREEN, ORANGE
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", GREY: "grey", BLUE: "blue", PURPLE: "purple",
    GREEN: "green", ORANGE: "orange", SKY: "sky",
}  # fmt: skip
MARKERS, DASHES = ("o", "D", "s", "^", "v", "P"), ("--", "-", "-.", ":", (0, (3, 1, 1, 1)), "-")
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))

_RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "oltr_ext",  # the same bytes for the same results
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "hatch.linewidth": 0.6,
    "text.parse_math": False,  # a class named "$x" is a name, not a formula
}


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib settings of the report, whatever the caller's own are."""
    with matplotlib.style.context(["default", _RC]):
        yield


def method_style(index: int, total: int) -> dict[str, object]:
    """Colour, marker and dash of a method: the baseline grey and dashed, the next one blue.

    Beyond six methods the colours come again, each with another marker and dash.
    """
    palette = (GREY, BLUE, PURPLE, GREEN, ORANGE, SKY)
    lap, i = divmod(index if total > 1 else 1, len(palette))
    other = (i + lap) % len(palette)
    return {"color": palette[i], "marker": MARKERS[other], "linestyle": DASHES[other]}


def short(text: str, limit: int = 18) -> str:
    """text, cut with an ellipsis when longer than limit."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """The figure as an <svg> element with a text alternative and ids that start with name."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _adapt(tag[0], name), svg)
    view = re.search(r'viewBox="([^"]*)"', svg)
    assert view is not None  # matplotlib always writes one
    head = (
        f'<svg class="plot" viewBox="{view[1]}" role="img" aria-labelledby="{name}-desc">'
        f'<desc id="{name}-desc">{escape(description)}</desc>'
    )
    return Markup(head + svg[svg.index(">") + 1 :].strip())


def _adapt(tag: str, name: str) -> str:
    """One tag of matplotlib's SVG, its ids made unique and its colours and fonts the page's.

    Only tags: a class called 'id="x"' is text, in which nothing may change.
    """
    tag = re.sub(r' xmlns(:xlink)?="[^"]*"', "", tag)  # HTML's parser knows both
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    tag = re.sub(r"font: (\d[\d.]*px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font: (bold|\d+) ([\d.]+px) [^;\"]*", r"font-weight: \1; font-size: \2", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag
