"""Contact sheets of groups of images on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oltr_ext._files import write_whole

from .render import templates

__all__ = ["write_groups"]


def write_groups(path: Path, page: Mapping[str, Any]) -> None:
    """Write the page; names and paths in it are shown as text, whatever they hold.

    Args:
        page: ``run``, ``csv``: names to show. ``seen``, ``rejected``, ``found``, ``believed``:
            counts. ``limit``: sureness from which a group is believed in. ``cut``, ``notes``,
            ``bad``, ``bad_count``: text and lines. ``groups``: those to show, each of ``number``,
            ``size``, ``sure``, ``nearest`` (names and distances) and ``images``; ``odd``: ``size``
            and ``images``, each of ``path`` and ``uri``, a data URI or None.
    """
    text = templates().get_template("groups.html").render(page=page)
    write_whole(path, text.encode())
