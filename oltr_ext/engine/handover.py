"""What stage 2 takes over from stage 1, for every kind of second stage."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from oltr_ext.config.schema import SecondStage, TestPrior
from oltr_ext.engine.build import class_frequencies
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
    linear, head = old.head.linear, model.head

    def batches(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        return stream(model, images, device, workers=splits.workers)

    def whole(images: Images) -> tuple[Tensor, Tensor]:
        features, target = zip(*batches(images), strict=True)
        return torch.cat(features), torch.cat(target)

    if settings.kind == "memory":
        assert isinstance(head, OLTRHead)
        head.init_from_batches(
            linear,
            batches(splits.plain),
            classifier="means" if settings.classifier_init == "means" else "random",  # or as built
            selector=settings.selector_init,
        )
        return
    if settings.kind == "fslwf":
        assert isinstance(head, FSLwFHead)
        head.init_from(linear.weight, batches(splits.plain))
        return
    assert isinstance(head, LinearHead)
    if settings.kind == "lws":
        head.start_at(linear.weight)
    elif settings.kind == "tau_norm":
        tau = settings.tau
        if tau is None:
            worth = class_worth(test_prior, splits)
            tau = best_tau(linear.weight, *whole(splits.val), TAUS, worth)
        head.start_at(tau_normalise(linear.weight, tau))
    elif settings.kind == "ncm":
        means = class_directions(batches(splits.plain), splits.num_classes)
        no_mean = ~means.any(dim=1)  # a class without images
        head.start_at(means, torch.where(no_mean, NEVER, 0.0).to(means))
    elif settings.kind == "logit_adjustment":
        prior = class_frequencies(splits.train_counts).to(device)
        tau = 1.0 if settings.tau is None else settings.tau
        head.start_at(linear.weight, logit_adjusted_bias(linear.bias, prior, tau))
    elif settings.kind == "openmax":
        assert isinstance(head, OpenMaxHead)
        head.start_at(linear.weight, linear.bias)
        head.fit(*whole(splits.plain), tail=settings.tail)
    # crt keeps its random start
