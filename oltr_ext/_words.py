"""Words that depend on numbers."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 image``, ``2,000 images``, ``0 open classes``.

    Args:
        one: what there is one of, and what is said of it, if anything: ``image is``.
        many: the same of others; default: `one` with an s, or es after one.
    """
    if number == 1:
        return f"1 {one}"
    return f"{number:,} {many or one + ('es' if one.endswith('s') else 's')}"
