"""What must hold before a run starts or goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oltr_ext.engine import distributed
from oltr_ext.engine.build import Splits, model_shape
from oltr_ext.engine.config import Config, make_config

__all__ = ["OtherRunError", "check_batches", "check_same_run"]

FREE = {"device", "threads", "checkpoint_every", "data.workers", "data.max_bad_images"}
"""Keys that may change without changing the result, but for that of a run that would stop."""


class OtherRunError(ValueError):
    """The folder holds a run of another configuration or other data."""

    def __str__(self) -> str:
        return f"{self.args[0]}; choose another folder, or start afresh with --fresh"


def check_batches(config: Config, splits: Splits) -> None:
    """Raises ValueError where a stage has no whole batch, or one that cannot be shared."""
    images, processes = len(splits.train), distributed.world()
    for number, stage in enumerate((config.stage1, config.stage2), 1):
        if stage is None or stage.epochs == 0:
            continue
        if images < stage.batch_size:
            raise ValueError(
                f"stage{number}.batch_size: {stage.batch_size} is more than the {images} training "
                "images"
            )
        if stage.batch_size % (processes * stage.accumulate):
            raise ValueError(
                f"stage{number}.batch_size: {stage.batch_size} does not divide by {processes} "
                f"process{'es' if processes > 1 else ''} x accumulate = {stage.accumulate}"
            )


def check_same_run(out: Path, header: Mapping[str, Any], config: Config, splits: Splits) -> None:
    """Raises OtherRunError where the checkpoint with this header is not of this run."""
    # through today's defaults: a run from before a key was there may go on
    old, new = (
        _flatten(c.model_dump(mode="json"))
        for c in (make_config(header["config"], source=str(out)), config)
    )
    for key in sorted((old.keys() | new.keys()) - FREE):
        if old.get(key) != new.get(key):
            raise OtherRunError(
                f"{out} holds a run with {key} = {old.get(key)}, and this one asks for "
                f"{new.get(key)}"
            )
    if header["shape"] != model_shape(splits):
        raise OtherRunError(f"{out} holds a run on other training data")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat.update(inner)
    return flat
