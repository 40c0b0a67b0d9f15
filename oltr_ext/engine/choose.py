"""By which method a run trains where nobody says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from oltr_ext.config.loading import ConfigError
from oltr_ext.config.methods import DEFAULT
from oltr_ext.config.schema import Config
from oltr_ext.engine import checkpoint

__all__ = ["configured"]


def configured(
    load: Callable[[str | None], Config],
    out: str | Path,
    *,
    method: str | None = "auto",
    resume: bool = True,
    say: Callable[[str], None],
) -> Config:
    """The configuration of a run in `out`; a line where the method was left open.

    Args:
        load: gives it for a method, as `oltr_ext.config.loading.load_config` does.
        resume: a run of stage 1 alone that is there goes on as one: it was begun by the
            configuration alone, or by a version whose default that was.
    """
    config, alone = load(method), None
    with suppress(ConfigError):  # --set may name keys of a stage 2 that only the method has
        alone = load(None)
    if method != "auto" or config == alone:
        return config
    if resume and alone is not None and _holds_one_stage(Path(out)):
        say(f"{out} holds a run of stage 1 alone, which goes on as such; --method says otherwise")
        return alone
    say(f"method: {DEFAULT}, for neither configuration nor --method says another (oltr methods)")
    return config


def _holds_one_stage(out: Path) -> bool:
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        with suppress(checkpoint.CheckpointError):  # training tells of it
            return checkpoint.load(out / name)[1]["config"]["stage2"] is None
    return False
