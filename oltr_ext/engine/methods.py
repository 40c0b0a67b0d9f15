"""The methods on offer: a name, the packaged configuration on the icons, and a line about it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    config: str
    about: str


METHODS: dict[str, Method] = {
    "plain": Method("icons_plain", "backbone and linear classifier, natural distribution"),
    "oltr": Method(
        "icons_oltr",
        "the paper's two stages: visual memory, meta-embedding, class-aware batches",
    ),
    "oltr_prior": Method(
        "icons_oltr_prior",
        "the memory head on natural batches with a class prior, started at the class means",
    ),
}
