"""When training cannot go on."""

from __future__ import annotations

from pathlib import Path

from oltr_ext.engine import checkpoint

__all__ = ["TrainingError", "stopped"]


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is good, and the message says what happened."""


def stopped(what: str, state: checkpoint.State, out: Path) -> TrainingError:
    """An error that says what happened, and where one can go on from."""
    kept = f"the last good checkpoint is kept in {out}. "
    return TrainingError(
        f"{what} after step {state.step} of stage {state.stage}; "
        f"{kept if (out / checkpoint.LAST).exists() else ''}Start afresh with a lower "
        f"stage{state.stage}.lr, or with stage{state.stage}.clip"
    )
