"""How long a run trains where that is left open: by the number of steps, not of epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from oltr_ext.config.schema import Config, Stage

__all__ = ["asked_epochs", "auto_epochs", "one_stage_alone", "settle_epochs", "starts_at_random"]

STEPS = {True: 1000, False: 300}
"""A run has at least so many: of a network that starts at random, and of one that need only be
tuned, or of a head on embeddings."""

LEAST, MOST = 30, 500
"""Epochs, whatever the steps are."""

EVERY = 10  # of a schedule without steps: what it is beside a number of epochs

STAGES = ("stage1", "stage2")


def starts_at_random(config: Config) -> bool:
    return config.model.weights is None and config.data.kind != "embeddings"


def auto_epochs(images: int, batch_size: int, *, random: bool) -> int:
    """Epochs of a whole run over `images` training images.

    Args:
        random: see `starts_at_random`.
    """
    steps = max(1, images // batch_size)  # a batch that is not whole is left out
    return min(max(LEAST, math.ceil(STEPS[random] / steps)), MOST)


def asked_epochs(config: Config) -> dict[str, str | float]:
    """What a configuration says where it leaves the epochs of a stage open."""
    stages = {name: getattr(config, name) for name in STAGES}
    return {n: s.epochs for n, s in stages.items() if s and not isinstance(s.epochs, int)}


def one_stage_alone(overrides: Iterable[str], config: Config) -> str | None:
    """A line where ``key.path=value`` strings set the epochs of one of two stages."""
    keys = {item.partition("=")[0].strip() for item in overrides}
    named = [name for name in STAGES if f"{name}.epochs" in keys]
    if len(named) != 1 or "epochs" in keys or config.stage2 is None or not config.stage2.epochs:
        return None
    (other,) = set(STAGES) - set(named)
    left = getattr(config, other).epochs
    kept = left if isinstance(left, int) else "auto" if left == "auto" else f"{left:g} of auto"
    return (
        f"{named[0]}.epochs is set for that stage alone, and {other}.epochs is {kept}; --set "
        "epochs=N sets both"
    )


def settle_epochs(config: Config, images: int, kept: Mapping[str, Any] | None = None) -> Config:
    """The same with numbers of epochs.

    Args:
        images: of training.
        kept: header of the run's checkpoint; what was counted for it stays.
    """
    changes, random = {}, starts_at_random(config)
    for name, asked in asked_epochs(config).items():
        stage: Stage = getattr(config, name)
        if kept is not None and kept.get("asked_epochs", {}).get(name) == asked:
            found = kept["config"][name] or {}
            epochs, third = int(found["epochs"]), int(found["schedule"]["every"])
        else:
            epochs = auto_epochs(images, stage.batch_size, random=random)
            if asked != "auto":  # as `apply_method` divides a number
                share = float(asked) if name == "stage2" else 1 - float(asked)
                second = min(max(1, round(share * epochs)), epochs - 1)
                epochs = second if name == "stage2" else epochs - second
            third = max(1, epochs // 3) if stage.schedule.kind == "step" else EVERY
        every = third if stage.schedule.every == "auto" else stage.schedule.every
        schedule = stage.schedule.model_copy(update={"every": every})
        changes[name] = stage.model_copy(update={"epochs": epochs, "schedule": schedule})
    return config.model_copy(update=changes)
