"""Numbers of the report: into JSON, out of it by pointer, and onto the page."""

from __future__ import annotations

import math
from typing import Any

MINUS, EN_DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def number(value: float | None) -> float | None:
    """float, or None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else float(value)


def format_number(value: float | None, style: str) -> str:
    """How the page writes a number: "percent" 83.2, "ratio" 0.832, "signed" percent +3.2, "plain".

    None, a number that is not defined, is an en dash.
    """
    if value is None:
        return EN_DASH
    if style == "percent":
        return f"{100 * value:.1f}"
    if style == "ratio":
        return f"{value:.3f}"
    if style == "signed":
        return f"{100 * value:+.1f}".replace("-", MINUS)
    if style == "signed_ratio":
        return f"{value:+.3f}".replace("-", MINUS)
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4g}".replace("-", MINUS)


def look_up(data: Any, pointer: str) -> Any:
    """The value at a JSON pointer such as /methods/0/headline/auroc (keys without / or ~)."""
    for part in pointer.split("/")[1:]:
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data
