"""Values of options, from their text."""

from __future__ import annotations

import argparse

__all__ = ["expectation", "how_many", "port", "positive", "share"]


def how_many(text: str) -> int | None:
    """None is all."""
    return None if text == "all" else positive(text)


def expectation(text: str) -> str | float:
    if text in ("balanced", "val"):
        return text
    value = float(text)
    if not 0 <= value <= 2:
        raise argparse.ArgumentTypeError(f"must be balanced, val or in [0, 2], got {text}")
    return value


def share(text: str) -> float:
    """Of prediction sets; elsewhere `--set` takes a key of the configuration."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"expected the share of images that may miss their class, in (0, 1), got {text}"
        )
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {value}")
    return value
