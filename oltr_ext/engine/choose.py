"""By which method a run trains where nobody says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from oltr_ext.config.epochs import one_stage_alone
from oltr_ext.config.loading import ConfigError
from oltr_ext.config.methods import DEFAULT
from oltr_ext.config.schema import Config
from oltr_ext.engine import checkpoint

__all__ = ["configured"]

Say = Callable[[str], None]


def configured(
    load: Callable[[str | None], Config],
    out: str | Path,
    *,
    method: str | None = "auto",
    resume: bool = True,
    overrides: Iterable[str] = (),
    say: Say,
) -> tuple[Config, Say]:
    """The configuration of a run in `out`, and `say` for its training: where the method was left
    open, or the epochs of one of two stages were, that is said before the first line. Every process
    calls it.

    Args:
        load: gives it for a method, as `oltr_ext.config.loading.load_config` does.
        resume: a run of stage 1 alone that is there goes on as one: it was begun by the
            configuration alone, or by a version whose default that was.
        overrides: what was set of it, as `make_config` takes them.
    """
    config, say = _by_method(load, Path(out), method, resume, say)
    line = one_stage_alone(overrides, config)
    return config, say if line is None else _after(line, say)


def _by_method(
    load: Callable[[str | None], Config], out: Path, method: str | None, resume: bool, say: Say
) -> tuple[Config, Say]:
    config, alone = load(method), None
    with suppress(ConfigError):  # --set may name keys of a stage 2 that only the method has
        alone = load(None)
    if method != "auto" or config == alone:
        return config, say
    if resume and alone is not None and _holds_one_stage(out):
        line = f"{out} holds a run of stage 1 alone, which goes on as such; --method says otherwise"
        return alone, _after(line, say)
    line = f"method: {DEFAULT}, for neither configuration nor --method says another (oltr methods)"
    return config, _after(line, say)


def _after(line: str, say: Say) -> Say:
    """`say`, with a line of its own before the first: an error before that stands alone."""
    left = [line]

    def tell(next_line: str) -> None:
        while left:
            say(left.pop())
        say(next_line)

    return tell


def _holds_one_stage(out: Path) -> bool:
    """By the header: a bank that several processes share fits into none. Every process calls it."""
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        with suppress(checkpoint.CheckpointError):  # training tells of it
            return checkpoint.opened(out / name)[1]["config"]["stage2"] is None
    return False
