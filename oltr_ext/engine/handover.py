"""What stage 2 takes over from stage 1, for every kind of second stage."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from oltr_ext.config.schema import SecondStage, TestPrior
from oltr_ext.engine.build import class_frequencies
from oltr_ext.engine.class_shards import as_rows, first_of_replicas, whole
from oltr_ext.engine.evaluate import stream
from oltr_ext.engine.settle import class_worth
from oltr_ext.engine.splits import Images, Splits
from oltr_ext.models import OLTRModel
from oltr_ext.nn import (
    FSLwFHead,
    LinearHead,
    OLTRHead,
    OpenMaxHead,
    best_tau,
    class_directions,
    logit_adjusted_bias,
    tau_normalise,
)

__all__ = ["hand_over"]

NEVER = float(torch.finfo(torch.float16).min)
"""Logit of a class that is no answer, finite in every precision."""
TAUS = [step / 20 for step in range(21)]
"""Candidates for tau-normalisation: 0 to 1."""


@torch.no_grad()
def hand_over(
    old: OLTRModel,
    model: OLTRModel,
    settings: SecondStage,
    splits: Splits,
    device: torch.device,
    test_prior: TestPrior = "balanced",
) -> None:
    """Start `model`, fresh from `build_model`, at what `old` learned in stage 1.

    Backbone and fc (when its shape stays) move over. The head starts as its kind says, from
    stage 1's linear classifier and from the features that stage 2 will see: eval mode, test
    transform, whole training set. What it is chosen by on validation images counts their classes as
    `test_prior` expects them.
    """
    model.backbone.load_state_dict(old.backbone.state_dict())
    model.base = old.base
    if model.fc is not None and old.fc is not None and model.fc.weight.shape == old.fc.weight.shape:
        model.fc.load_state_dict(old.fc.state_dict())
    assert isinstance(old.head, LinearHead)
    head, layout = model.head, model.head.layout
    # rows of the classes that this process has: all of them, where the new head cannot share them
    weight, bias = (
        old.head.layout.raw(part) if layout.shard is not None else whole(part)
        for part in (old.head.linear.weight, old.head.linear.bias)
    )

    def batches(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Each process gets all of them; sums over those with the same classes take one's."""
        for batch in stream(model, images, device, workers=splits.workers):
            if first_of_replicas(layout):
                yield batch

    def start_at(weight: Tensor, bias: Tensor | None = None) -> None:
        assert isinstance(head, LinearHead)
        head.start_at(as_rows(weight, layout), None if bias is None else as_rows(bias, layout))

    def joined(images: Images) -> tuple[Tensor, Tensor]:
        rows = stream(model, images, device, workers=splits.workers)
        features, target = zip(*rows, strict=True)
        return torch.cat(features), torch.cat(target)

    if settings.kind == "memory":
        assert isinstance(head, OLTRHead)
        with layout.same_rows():
            head.init_from_batches(
                old.head.linear,
                batches(splits.plain),
                classifier="means" if settings.classifier_init == "means" else "random",
                selector=settings.selector_init,
            )
    elif settings.kind == "fslwf":
        assert isinstance(head, FSLwFHead)
        head.init_from(weight, batches(splits.plain))
    elif settings.kind == "lws":
        start_at(weight)
    elif settings.kind == "tau_norm":
        tau = settings.tau
        if tau is None:
            worth = class_worth(test_prior, splits)
            tau = best_tau(weight, *joined(splits.val), TAUS, worth, layout)
        start_at(tau_normalise(weight, tau))
    elif settings.kind == "ncm":
        with layout.same_rows():
            means = class_directions(batches(splits.plain), splits.num_classes, layout)
        no_mean = ~means.any(dim=1)  # a class without images
        start_at(means, torch.where(no_mean, NEVER, 0.0).to(means))
    elif settings.kind == "logit_adjustment":
        prior = layout.cut(class_frequencies(splits.train_counts)).to(device)
        tau = 1.0 if settings.tau is None else settings.tau
        start_at(weight, logit_adjusted_bias(bias, prior, tau))
    elif settings.kind == "openmax":
        assert isinstance(head, OpenMaxHead)
        head.start_at(weight, bias)
        head.fit(*joined(splits.plain), tail=settings.tail)
    # crt keeps its random start
