"""What would fail once a run has trained for a while, found before it starts."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn

from oltr_ext._words import counted
from oltr_ext.config.pictures import settled
from oltr_ext.config.schema import Config, IconsData, ListData, MemoryStage, Stage
from oltr_ext.data.samplers import batch_for
from oltr_ext.engine import class_shards, distributed
from oltr_ext.engine.build import build_optimizer, wants_of
from oltr_ext.engine.settle import check_score
from oltr_ext.engine.splits import Splits
from oltr_ext.models import OLTRModel, build_backbone

__all__ = ["check_backbone", "check_batches", "check_last_stage"]


def check_backbone(config: Config) -> None:
    """Raises ValueError for a backbone that there is not, or that cannot take images of that size.

    It needs no data: the size of images of packs shows when they are read.
    """
    data = config.data
    if isinstance(data, ListData | IconsData):
        channels, size = 1, 32
        if isinstance(data, ListData):
            found = settled(data, wants_of(config))
            channels, size = 3, int(found.image_size)
        with (
            suppress(NotImplementedError),  # of RegNets, whose plan is computed with tensors
            torch.random.fork_rng(devices=[]),
            torch.device("meta"),  # no weights are made
        ):
            build_backbone(
                config.model.backbone,
                in_channels=channels,
                weights=config.model.weights,
                load=False,
                image_size=size,
            )


def check_batches(config: Config, splits: Splits) -> None:
    """Raises ValueError where a stage has no whole batch, or one that cannot be shared."""
    images, processes = len(splits.train), distributed.world()
    stages = list(enumerate((config.stage1, config.stage2), 1))
    large = [n for n, stage in stages if stage and stage.epochs and stage.batch_size > images]
    less = " ".join(f"--set stage{number}.batch_size={batch_for(images)}" for number in large)
    for number, stage in stages:
        if stage is None or stage.epochs == 0:
            continue
        if images < stage.batch_size:
            raise ValueError(
                f"stage{number}.batch_size: {stage.batch_size} is more than the "
                f"{counted(images, 'training image')}: {less}"
            )
        if stage.batch_size % (processes * stage.accumulate):
            raise ValueError(
                f"stage{number}.batch_size: {stage.batch_size} does not divide by {processes} "
                f"process{'es' if processes > 1 else ''} x accumulate = {stage.accumulate}"
                f"{_shares(stage.batch_size, stage.accumulate)}"
            )


def _shares(batch_size: int, accumulate: int) -> str:
    """Numbers of processes that go, to say beside one that does not."""
    if batch_size % accumulate:
        return ""
    share = batch_size // accumulate
    return ": processes can be " + ", ".join(str(n) for n in range(1, share + 1) if not share % n)


def check_last_stage(config: Config, splits: Splits, first: OLTRModel) -> None:
    """Raises ValueError for what would otherwise show only after stage 1 has been trained.

    Args:
        first: the model of stage 1. That of stage 2 is built and thrown away; torch's generator
            stays as it was.
    """
    rule, last = config.open_set.rule, first
    if rule != "known_recall" and splits.open_val is None and (splits.val.labels >= 0).all():
        raise ValueError(f"open_set.rule: {rule} needs open validation images")
    # what processes share goes where it is shared
    shared = first.head.layout.shard is not None
    device = first.head.threshold.device if shared else torch.device("cpu")
    if config.stage2 is not None:
        with torch.random.fork_rng(devices=[]):
            try:
                last = class_shards.built(config, 2, splits, device, weights=False)
                build_optimizer(last, config.stage2)  # of nothing, where all is frozen
            except ValueError as error:
                raise ValueError(f"stage2: {error}") from None
    _check_one_row(config.stage1, 1, first, splits)
    if config.stage2 is not None:
        _check_one_row(config.stage2, 2, last, splits)
    if isinstance(config.stage2, MemoryStage) and last.feature_dim != first.feature_dim:
        raise ValueError(
            f"stage2.fc: the memory starts from stage 1, whose features have {first.feature_dim} "
            f"numbers, and not {last.feature_dim}; set stage1.fc alike"
        )
    check_score(config.open_set, last)


def _check_one_row(stage: Stage, number: int, model: OLTRModel, splits: Splits) -> None:
    """Raises ValueError where batches are of one image and BatchNorm has one value a channel."""
    if stage.epochs == 0 or stage.batch_size > stage.accumulate:
        return
    probe, side = _on_meta(model).train(), splits.size
    try:
        probe.features(torch.zeros(1, splits.channels, side, side, device="meta"))
    except ValueError as error:  # torch asks before it counts
        parts = f", in {stage.accumulate} parts (accumulate)," if stage.accumulate > 1 else ""
        raise ValueError(
            f"stage{number}.batch_size: {stage.batch_size}{parts} is too few for the BatchNorm of "
            f"{type(model.backbone).__name__} on images of {side} x {side}: {error}"
        ) from None


def _on_meta(model: OLTRModel) -> OLTRModel:
    """A copy of a model, of whose tensors none is copied."""
    made: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        own = isinstance(tensor, nn.Parameter)
        made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if own else empty
    return copy.deepcopy(model, made)
