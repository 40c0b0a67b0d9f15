"""What must hold before a run starts or goes on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from oltr_ext.engine import distributed
from oltr_ext.engine.build import model_shape
from oltr_ext.engine.config import make_config
from oltr_ext.engine.schema import Config
from oltr_ext.engine.splits import Splits

__all__ = ["AFTER_STAGE_1", "OtherRunError", "check_batches", "check_same_run"]

FREE = {"device", "threads", "checkpoint_every", "data.workers", "data.max_bad_images"}
"""Keys that may change without changing the result, but for that of a run that would stop."""

AFTER_STAGE_1 = {"stage2", "open_set", "log_every"}
"""Groups and keys that do not change what stage 1 learns."""


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


def check_same_run(
    out: Path,
    header: Mapping[str, Any],
    config: Config,
    splits: Splits,
    free: Collection[str] = (),
) -> None:
    """Raises OtherRunError where the checkpoint with this header is not of this run.

    Keys in `FREE`, and those that are or lie under one of `free`, may differ.
    """
    # through today's defaults: a run from before a key was there may go on
    old, new = (
        _flatten(c.model_dump(mode="json"))
        for c in (make_config(header["config"], source=str(out)), config)
    )
    for key in sorted((old.keys() | new.keys()) - FREE):
        if key.split(".")[0] not in free and old.get(key) != new.get(key):
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
