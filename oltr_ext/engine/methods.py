"""The methods on offer: whose they are, what each changes, and the keys that change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["DEMO", "METHODS", "Method", "lay_over"]

DEMO = ("plain", "oltr", "oltr-plus")
"""What the demo trains unless told otherwise."""


class Method(NamedTuple):
    paper: str
    changes: str
    keys: Mapping[str, Any]  # laid over a configuration; its own `methods` have the last word


AGAIN = {
    "epochs": 10,
    "lr": {"feature": 0.0, "classifier": 0.1},
    "schedule": {"kind": "cosine"},
}
"""A classifier trained on frozen features; 10 epochs as Kang et al. have it."""


METHODS: dict[str, Method] = {
    "plain": Method("-", "linear classifier, cross-entropy, natural batches", {"stage2": None}),
    "lifted": Method(
        "Song 2016",
        "stage 1: adds the lifted structure loss, class-aware batches",
        {"stage1": {"sampler": "class_aware", "loss": {"kind": "lifted"}}, "stage2": None},
    ),
    "focal": Method(
        "Lin 2017",
        "stage 1: focal loss in place of cross-entropy",
        {"stage1": {"loss": {"kind": "focal"}}, "stage2": None},
    ),
    "range": Method(
        "Zhang 2017",
        "stage 1: adds the range loss, class-aware batches",
        {"stage1": {"sampler": "class_aware", "loss": {"kind": "range"}}, "stage2": None},
    ),
    "openmax": Method(
        "Bendale 2016",
        "score: Weibull tails of distances to class means of logits",
        {"stage2": {"kind": "openmax"}, "open_set": {"score": "openmax"}},
    ),
    "fslwf": Method(
        "Gidaris 2018",
        "classifier: cosine, its weights for few-shot classes generated",
        {"stage2": {"kind": "fslwf", **AGAIN}},
    ),
    "crt": Method(
        "Kang 2020",
        "classifier: trained anew on balanced batches, features frozen",
        {"stage2": {"kind": "crt", **AGAIN}},
    ),
    "tau-norm": Method(
        "Kang 2020",
        "classifier: weights over the tau-th power of their length, tau the best on validation",
        {"stage2": {"kind": "tau_norm"}},
    ),
    "lws": Method(
        "Kang 2020",
        "classifier: a scale a class trained on balanced batches",
        {"stage2": {"kind": "lws", **AGAIN}},
    ),
    "ncm": Method(
        "Kang 2020",
        "classifier: the nearest class mean, by direction",
        {"stage2": {"kind": "ncm"}},
    ),
    # also the loss of logit adjustment, whose tau is class_prior; without the paper's meta sampler
    "balanced-softmax": Method(
        "Ren 2020",
        "stage 1: log class frequencies added to the logits",
        {"stage1": {"class_prior": 1.0}, "stage2": None},
    ),
    "logit-adjustment": Method(
        "Menon 2021",
        "classifier: log class frequencies subtracted from the logits afterwards",
        {"stage2": {"kind": "logit_adjustment", "tau": 1}},
    ),
    "oltr-official": Method(
        "Liu 2019",
        "as oltr, with the released code's centroid gradients, decay and start of fc",
        {"stage2": {"kind": "memory", "compat": "official", "fc_start": "default"}},
    ),
    "oltr": Method(
        "Liu 2019",
        "stage 2: visual memory, meta-embedding, attention, class-aware batches",
        {"stage2": {"kind": "memory"}},
    ),
    # a longer stage 1 at a constant rate; a centroid loss that the memory can follow, for its true
    # gradient is about a thousandth of what the released code applies
    "oltr-plus": Method(
        "ours",
        "stage 2: the memory head on natural batches with a prior, from the class means",
        {
            "stage1": {"schedule": {"kind": "constant"}},
            "stage2": {
                "kind": "memory",
                "sampler": "shuffle",
                "class_prior": 0.7,
                "lr": {"centroid": 10.0},
                "schedule": {"kind": "cosine"},
                "feature_loss_weight": 0.1,
                "classifier_init": "means",
                "selector_init": "zero",
                "attention": False,
                "freeze": [],
            },
        },
    ),
}


def lay_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the keys of `above`, groups merged key by key.

    A group of another `kind` replaces the one below whole: a cosine has no use for the steps of a
    step schedule. A second stage without a kind is one with a memory.
    """
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        if (
            isinstance(under, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind") in (None, under.get("kind", "memory"))
        ):
            value = lay_over(under, value)
        merged[key] = value
    return merged
