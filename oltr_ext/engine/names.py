"""A classifier that starts where a text encoder puts the names of its classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from oltr_ext.config.schema import Config, Stage
from oltr_ext.data import read_names
from oltr_ext.models.clip_net import TEMPLATES, text_directions
from oltr_ext.nn import Head, LinearHead, OLTRHead
from oltr_ext.nn.layout import Sharded, as_shard

__all__ = ["start_at_names", "starts_at_names"]


def starts_at_names(stage: Stage) -> bool:
    """Whether the configuration of a stage asks for it."""
    return getattr(stage, "classifier_init", "") == "text"


@torch.no_grad()
def start_at_names(head: Head, config: Config, class_names: Sequence[str]) -> None:
    """Point the rows of a linear or cosine classifier at the texts of its classes. Where processes
    share them, each encodes those of its own.

    On features of open_clip, whose length is sqrt(D), a linear one then starts with the logits
    sqrt(D) cos, the answers of CLIP without training.

    Raises:
        ValueError: no open_clip backbone with weights, features of another width, classes without
            names, or a template without a place for the name.
    """
    library, _, name = config.model.backbone.partition(":")
    weights = config.model.weights
    if library != "open_clip" or weights is None:
        raise ValueError(
            "classifier_init: text needs a backbone open_clip:<name> with weights, got "
            f"{config.model.backbone} and {weights}"
        )
    if list(class_names) == [f"class {n}" for n in range(len(class_names))]:
        raise ValueError("classifier_init: text needs the names of classes: set data.class_names")
    templates: Sequence[str] = TEMPLATES
    if config.model.templates is not None:
        templates = read_names(config.model.templates)
        wrong = [each for each in templates if each.count("{}") != 1]
        if wrong:
            raise ValueError(
                f"{config.model.templates}: expected one {{}} in each line, got {wrong[0]!r}"
            )
    layout = head.layout
    first, last = layout.bounds(len(class_names))
    some = class_names[first:last] or class_names[:1]  # the width is asked of one
    texts = text_directions(name, weights, some, templates)
    if isinstance(head, OLTRHead):
        width = head.feat_dim
    else:
        assert isinstance(head, LinearHead)
        width = head.linear.in_features
    if texts.shape[1] != width:
        raise ValueError(
            f"classifier_init: text: texts have {texts.shape[1]} numbers and features {width}; set "
            "fc to null"
        )
    texts = texts[: last - first]
    if isinstance(layout, Sharded):
        texts = as_shard(texts, layout)
    if isinstance(head, OLTRHead):
        head.classifier.cosnorm_classifier.start_at(texts)
    else:
        head.start_at(texts)
