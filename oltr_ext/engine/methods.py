"""The methods on offer: whose they are, what each changes, and its configuration on the icons."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["DEMO", "METHODS", "Method", "config_of"]

DEMO = ("plain", "oltr", "oltr-plus")
"""What the demo trains unless told otherwise."""


class Method(NamedTuple):
    paper: str
    changes: str


METHODS: dict[str, Method] = {
    "plain": Method("-", "linear classifier, cross-entropy, natural batches"),
    "lifted": Method("Song 2016", "stage 1: adds the lifted structure loss, class-aware batches"),
    "focal": Method("Lin 2017", "stage 1: focal loss in place of cross-entropy"),
    "range": Method("Zhang 2017", "stage 1: adds the range loss, class-aware batches"),
    "openmax": Method("Bendale 2016", "score: Weibull tails of distances to class means of logits"),
    "fslwf": Method(
        "Gidaris 2018", "classifier: cosine, its weights for few-shot classes generated"
    ),
    "crt": Method("Kang 2020", "classifier: trained anew on balanced batches, features frozen"),
    "tau-norm": Method("Kang 2020", "classifier: weights over the tau-th power of their length"),
    "lws": Method("Kang 2020", "classifier: a scale a class trained on balanced batches"),
    "ncm": Method("Kang 2020", "classifier: the nearest class mean, by direction"),
    "balanced-softmax": Method("Ren 2020", "stage 1: log class frequencies added to the logits"),
    "logit-adjustment": Method(
        "Menon 2021", "classifier: log class frequencies subtracted from the logits afterwards"
    ),
    "oltr-official": Method(
        "Liu 2019", "as oltr, with the released code's centroid gradients, decay and start of fc"
    ),
    "oltr": Method(
        "Liu 2019", "stage 2: visual memory, meta-embedding, attention, class-aware batches"
    ),
    "oltr-plus": Method(
        "ours", "stage 2: the memory head on natural batches with a prior, from the class means"
    ),
}


def config_of(name: str) -> str:
    """Name of a method's packaged configuration on the icons.

    Raises:
        ValueError: no such method.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; there are {', '.join(METHODS)}")
    return f"icons_{name}"
