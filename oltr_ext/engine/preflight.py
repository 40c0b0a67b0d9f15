"""What must hold before a run starts or goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.config.epochs import auto_epochs, starts_at_random
from oltr_ext.config.loading import run_config
from oltr_ext.config.schema import Config, FitStage
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.engine.build import model_shape, prior_power
from oltr_ext.engine.fingerprint import what_changed
from oltr_ext.engine.pieces import from_lead
from oltr_ext.engine.settle import expectation, found_share, settled_by, share_of
from oltr_ext.engine.splits import Splits
from oltr_ext.metrics import fitting_bounds, shot_groups

__all__ = [
    "AFTER_STAGE_1",
    "OtherRunError",
    "check_apart",
    "check_folder",
    "check_origin",
    "check_same_run",
    "check_stage_1",
    "chosen_by_prior",
    "outline",
    "shot_note",
]

FREE = {"device", "threads", "checkpoint_every", "data.workers", "data.max_bad_images"}
FREE |= {"distributed.classes", "distributed.timeout"}
"""Keys that may change without changing the result, but for that of a run that would stop."""

AFTERWARDS = {"test_prior", "open_set"}
"""Groups and keys that act once a model is trained, on what it answers."""

HEAD = b"stage,epoch,step,"
"""What the log of a run begins with."""

AFTER_STAGE_1 = {"stage2", "log_every", *AFTERWARDS}
"""Groups and keys that do not change what stage 1 learns."""


class OtherRunError(ValueError):
    """The folder holds a run of another configuration or other data."""

    def __str__(self) -> str:
        return f"{self.args[0]}; choose another folder, or start afresh with --fresh"


def outline(
    config: Config, splits: Splits, device: torch.device, asked: Mapping[str, Any] | None = None
) -> str:
    """What will be trained on what, in one line; a line each on the images and for what to look at
    first.

    Args:
        asked: see `oltr_ext.config.epochs.asked_epochs`; `config` has numbers for them.
    """
    counts = splits.train_counts
    stages = [s for s in (config.stage1, config.stage2) if s is not None]
    plan = ", ".join(
        f"stage {number}: {counted(int(stage.epochs), 'epoch')} in batches of {stage.batch_size}"
        for number, stage in enumerate(stages, 1)
        if stage.epochs
    )
    said = (
        f"{counted(len(counts), 'class')}, {counted(int(counts.sum()), 'training image')} "
        f"({counts.max():,} to {counts.min():,} a class); {plan}; on {device}"
    )
    for line in (splits.note, splits.held_out, shot_note(counts, config.data.shots)):
        said += f"\n{line}" if line else ""
    empty = np.flatnonzero(counts == 0)
    if len(empty):
        some = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        said += (
            f"\n{len(empty):,} of {len(counts):,} classes have no training image: {some} (labels "
            "count from 0)"
        )
    said += _prior_line(config, splits) + _steps_line(config, splits, asked or {})
    if _emulated(config.amp, device):
        said += f"\namp: {config.amp} is emulated on this processor; amp: off is many times faster"
    return said


def shot_note(train_counts: ArrayLike, shots: str | tuple[int, int]) -> str | None:
    """A line where `data.shots` puts every class into one group, with bounds that would not."""
    groups, counts = shot_groups(train_counts, shots), np.asarray(train_counts)
    whole = [name for name, members in groups.items() if members.all()]
    if not whole:
        return None
    held = shots if isinstance(shots, str) else list(shots)
    said = (
        f"data.shots: {held} makes every class {whole[0]}-shot, for they have {counts.max():,} to "
        f"{counted(counts.min(), 'training image')}"
    )
    bounds = fitting_bounds(counts)
    if bounds is None:
        return said
    sizes = ", ".join(f"{n.sum():,} {name}" for name, n in shot_groups(counts, bounds).items())
    return f"{said}; data.shots: {list(bounds)} would make {sizes}"


def _prior_line(config: Config, splits: Splits) -> str:
    """What is expected of test images, and what validation images would say."""
    asked, last = config.test_prior, config.stage2 or config.stage1
    if not prior_power(last):
        fitted = isinstance(last, FitStage) and last.kind == "tau_norm"
        if asked == "balanced" or fitted:  # tau is chosen by it
            return ""
        return f"\ntest_prior: {asked} changes nothing: this method learns under no class prior"
    found, share = found_share(splits), share_of(asked, splits)
    images = int((splits.val.labels >= 0).sum())
    held = counted(images, "validation image has", "validation images have")
    line = (
        f"\ntest_prior: {asked}: expects {expectation(share)} of test images; the "
        f"{held} {found:.2f} of the training's tail (0: all classes alike, 1: as in training)"
    )
    if asked == "val" and found > 1:
        line += ", of which no more than 1 is taken unasked"
    if asked == "balanced" and found >= 0.1:
        line += "; where test images have it too, test_prior: val expects it"
    return line


FEW_STEPS = 400
"""Thirty epochs of the icons have 480, and twice as many still gain one to two points
(benchmarks/results/tables/icons_epochs.md)."""


def _steps_line(config: Config, splits: Splits, asked: Mapping[str, Any]) -> str:
    """How many steps `auto` comes to; else what a network that starts at random and takes few
    should be told."""
    stages = [s for s in (config.stage1, config.stage2) if s is not None]
    images, random = len(splits.train), starts_at_random(config)
    steps = sum(images // s.batch_size * int(s.epochs) for s in stages)
    epochs = sum(int(s.epochs) for s in stages)
    if asked:
        kind = "starts at random" if random else "is trained already"
        key = "epochs" if "stage1" in asked else "stage2.epochs"
        return (
            f"\n{key}: auto: {counted(epochs, 'epoch')} in all, {counted(steps, 'step')}, by the "
            f"number of images and for a network that {kind}; a number of epochs takes its place"
        )
    if not random or not 0 < steps < FEW_STEPS:
        return ""
    better = auto_epochs(images, stages[0].batch_size, random=True)
    return (
        f"\n{counted(steps, 'step is', 'steps are')} few for a network that starts at random: "
        f"epochs: auto would be {counted(better, 'epoch')} in all instead of {epochs}"
    )


def _emulated(amp: str, device: torch.device) -> bool:
    """Whether torch makes do without the processor's own arithmetic, many times slower."""
    if amp == "off" or device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return not getattr(torch.ops.mkldnn, f"_is_mkldnn_{amp}_supported")()


def check_same_run(
    out: Path,
    header: Mapping[str, Any],
    config: Config,
    splits: Splits,
    free: Collection[str] = (),
    *,
    done: bool = True,
    say: Callable[[str], None],
) -> None:
    """Raises OtherRunError where the checkpoint with this header is not of this run.

    Keys in `FREE`, and those that are or lie under one of `free`, may differ. A checkpoint from
    before fingerprints were kept passes with the same training images a class and class names.

    Args:
        done: whether the run is trained to its end. Until then its epochs are compared under one
            `test_prior`, with `select`: best, and nothing else was chosen by it.
        say: gets a line where there is no fingerprint to compare, and one where `test_prior`
            differs and something was chosen by it.
    """
    # through today's defaults: a run from before a key was there may go on
    before = run_config(header["config"], source=str(out))
    old, new = (_flatten(c.model_dump(mode="json")) for c in (before, config))
    # a preset before the keys that it stands for
    # base weights are told by their SHA-256, wherever they are
    may = FREE | ({"model.weights"} if header.get("base") else set())
    for key in sorted((old.keys() | new.keys()) - may, key=lambda k: (".preset" not in k, k)):
        if key.split(".")[0] not in free and old.get(key) != new.get(key):
            raise OtherRunError(
                f"{out} holds a run with {key} = {old.get(key)}, and this one asks for "
                f"{new.get(key)}"
            )
    if before.test_prior != config.test_prior and not done and config.select == "best":
        raise OtherRunError(
            f"{out} holds a run that is choosing its epoch under test_prior: {before.test_prior}, "
            f"and this one asks for {config.test_prior}, which may follow once it is finished"
        )
    if before.test_prior != config.test_prior and done and (chosen := chosen_by_prior(before)):
        say(
            f"{out} keeps {chosen} that did best under test_prior: {before.test_prior}; --fresh "
            f"chooses anew under {config.test_prior}"
        )
    if "data" not in header:
        say(f"{out} has no fingerprint of its data: only their numbers and names are compared")
    elif changed := what_changed(header["data"], splits.fingerprint):
        raise OtherRunError(f"{out} holds a run on other data: {changed}")
    if header["shape"] != model_shape(splits):
        raise OtherRunError(f"{out} holds a run on other training data")
    names = zip(header["class_names"], splits.class_names, strict=True)
    for label, (there, here) in enumerate(names):
        if there != here:
            raise OtherRunError(f"{out} holds a run whose class {label} is {there!r}, not {here!r}")


def check_apart(out: Path, stage1: str | Path | None) -> Path | None:
    """Raises ValueError where the model that stage 2 is to start from is one that training writes
    over; else its path."""
    if stage1 is None:
        return None
    path, names = Path(stage1), (*checkpoint.OF_TRAINING, checkpoint.MODEL)
    where = path.resolve()
    if where == out.resolve() or (where.parent == out.resolve() and where.name in names):
        raise ValueError(f"{path} would be written over by what starts from it; choose another out")
    return path


def check_folder(
    out: Path, config: Config, splits: Splits, *, fresh: bool, say: Callable[[str], None]
) -> None:
    """Before a run begins where there is none to go on from: see that it writes over nothing but
    what a run has left, and without `fresh` over no model but its own. Every process calls it.

    Raises:
        ValueError: a checkpoint, model or log of another make, a file in the place of TensorBoard's
            folder, or a model with enrolled classes.
        OtherRunError: a finished run of another configuration or other data.
    """
    if others := from_lead(_of_others(out)):
        raise ValueError(f"{others}: choose another folder")
    model = out / checkpoint.MODEL
    try:
        found = checkpoint.opened(model)
    except checkpoint.CheckpointError:  # there is none, or none that could be read
        return
    if not fresh:
        check_same_run(out, found[1], config, splits, AFTERWARDS, say=say)
    enrolment.check_nothing_lost(model, found)


def _of_others(out: Path) -> str:
    """What there is in a folder that no run has left, where a run would write; empty if nothing."""
    log, board = out / checkpoint.LOG, out / checkpoint.BOARD
    begins = log.read_bytes()[: len(HEAD)] if log.is_file() else b""
    if begins not in (b"", HEAD):
        return f"{log} is no log of a run"
    if board.exists() and not board.is_dir():
        return f"{board} is no folder"
    try:
        for name in (*checkpoint.OF_TRAINING, checkpoint.MODEL):
            checkpoint.check_make(out / name)
    except checkpoint.OtherMakeError as error:
        return str(error)
    return ""


def chosen_by_prior(config: Config) -> str:
    """What a run chooses while it trains by the accuracy that `test_prior` expects; empty where it
    acts afterwards alone."""
    stage = config.stage2
    fitted = isinstance(stage, FitStage) and stage.kind == "tau_norm" and stage.tau is None
    words = [w for w, by in (("the epoch", config.select == "best"), ("the tau", fitted)) if by]
    return " and ".join(words)


def is_settled(path: Path, header: Mapping[str, Any], config: Config) -> bool:
    """Whether a model is that of the checkpoint with this header, and settled as configured, by
    what there is today. Every process calls it."""
    try:
        found = checkpoint.opened(path)[1]
    except checkpoint.CheckpointError:
        return False
    there = run_config(found["config"], source=str(path))
    same = all(getattr(there, key) == getattr(config, key) for key in AFTERWARDS)
    same = same and found.get("settled") == settled_by()
    return bool(same and found["state"] == header["state"] and found["shape"] == header["shape"])


def check_stage_1(
    path: Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    config: Config,
    splits: Splits,
    *,
    say: Callable[[str], None],
) -> None:
    """Raises ValueError where a checkpoint is not the end of this run's stage 1."""
    if header["config"]["stage2"] is not None:
        raise ValueError(f"{path} holds the model of a stage 2; its stage 1 is overwritten")
    try:
        check_same_run(path, header, config, splits, AFTER_STAGE_1, say=say)
    except OtherRunError as error:
        raise ValueError(
            f"{error.args[0]}; the same command with --set stage2=null in place of --stage1 trains "
            "one for it"
        ) from None
    stage = config.stage1
    left = len(splits.train) // stage.batch_size * int(stage.epochs) - header["state"]["step"]
    if left and checkpoint.under("momentum.", tensors):  # a model has none, and may be the best
        raise ValueError(
            f"{path} was written {counted(left, 'step')} before the end of its stage 1"
        )
    if joined := enrolment.read(tensors, header).joined:
        say(
            f"{path} has {enrolment.spelt(joined)} enrolled, which stay with it: features will be "
            "others here; enrol the images again in what is trained"
        )


def check_origin(
    out: Path,
    origin: str | None,
    stage1: tuple[Path, Mapping[str, Tensor], Mapping[str, Any]],
    config: Config,
    splits: Splits,
    *,
    say: Callable[[str], None],
) -> str:
    """Raises OtherRunError where a run did not start from this stage 1, but from `origin`.

    What an earlier version wrote down may not tell; the run then goes on, for it needs nothing of
    stage 1 any more, if this is the stage 1 of a run so configured, on the same data.

    Args:
        stage1: path, tensors and header of its model.
        say: gets a line where that is all that could be checked.

    Returns:
        What to write down from now on.

    Raises:
        ValueError: see `check_stage_1`.
    """
    path, tensors, header = stage1
    weights = checkpoint.under("model.", tensors)
    now = checkpoint.fingerprint(weights)
    if origin is None:
        raise OtherRunError(
            f"{out} holds a run that did not start from {path}, but trained its own stage 1"
        )
    if origin == now or origin in checkpoint.old_fingerprints(weights):
        return now
    if origin.startswith("learned "):
        raise OtherRunError(
            f"{out} holds a run that did not start from {path}: other weights were learned there"
        )
    check_stage_1(path, tensors, header, config, splits, say=say)
    say(
        f"{out} was begun by an earlier version: that it started from {path} is not checked, but "
        "for configuration and data"
    )
    return now


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat.update(inner)
    return flat
