"""The methods on offer: whose they are, and what each changes in a configuration."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml

__all__ = ["DEFAULT", "DEMO", "METHODS", "Method", "apply_method", "says_how", "spread"]

DEFAULT = "oltr-plus"
"""Where neither the configuration nor the command says how to train."""

DEMO = ("plain", "oltr", "oltr-plus")
"""What the demo trains unless told otherwise."""

COMMON = (
    "batch_size",
    "accumulate",
    "samples_per_class",
    "momentum",
    "nesterov",
    "weight_decay",
    "clip",
)
"""Keys of stage 1 that stage 2 has as they are."""

FITTED = ("tau_norm", "ncm", "logit_adjustment", "openmax")
"""Kinds of stage 2 without a step."""

HOW = ("stage1.loss.", "stage1.sampler.", "stage1.class_prior.")
"""Keys of stage 1 that make another method than plain training."""


@dataclass(frozen=True)
class Method:
    """See the head of ``methods.yaml``."""

    paper: str
    changes: str
    share: float = 0.0
    stage1: dict[str, Any] = field(default_factory=dict)
    stage2: dict[str, Any] | None = None
    open_set: dict[str, Any] = field(default_factory=dict)


_TEXT = resources.files("oltr_ext.config").joinpath("methods.yaml").read_text(encoding="utf-8")
METHODS = {name: Method(**values) for name, values in yaml.safe_load(_TEXT).items()}


def says_how(values: Mapping[str, Any], overrides: Iterable[str] = ()) -> bool:
    """Whether a configuration, or a ``key.path=value`` for it, is about more than plain training.

    It is where there is a stage 2, be it null, or a word of the loss, batches or prior of stage 1.
    """
    first = values.get("stage1")
    keys = {*values, *(f"stage1.{key}" for key in (first if isinstance(first, Mapping) else ()))}
    keys |= {item.partition("=")[0].strip() for item in overrides}
    return bool(keys & {"stage2", "stage2.kind"}) or any(f"{k}.".startswith(HOW) for k in keys)


def apply_method(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration, as YAML gives it, that trains by another method for the same epochs.

    Args:
        values: data, model and a plain stage 1, as `Config` holds them; a stage 2 gives its epochs
            to be shared anew. Of epochs left to auto each stage gets its share.

    Raises:
        ValueError: no such method; fewer epochs than stages.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(METHODS)}"
        raise ValueError(f"no method {name!r}{hint}")
    method, changed = METHODS[name], copy.deepcopy(dict(values))
    first, old = changed["stage1"], changed.pop("stage2", None) or {}
    written = (first.get("epochs", "auto"), old.get("epochs", 0))
    before, after = _shared(written, method.share, name)
    changed["stage1"] = {**first, **method.stage1, "epochs": before}
    if method.stage2 is not None:
        changed["stage2"] = _second(first, method.stage2, after)
    if method.open_set:
        changed["open_set"] = {**changed.get("open_set", {}), **method.open_set}
    return changed


def spread(values: Mapping[str, Any], epochs: int | str, name: str) -> dict[str, Any]:
    """A configuration whose stages train for `epochs` together, in the proportion that they have.

    Args:
        values: as of `Config`, or not yet checked.
        epochs: a number, or ``auto``.
        name: of the configuration, for errors.

    Raises:
        ValueError: fewer epochs than stages.
    """
    changed = copy.deepcopy(dict(values))
    first, second = changed.get("stage1"), changed.get("stage2")
    if not isinstance(first, dict):  # the error is that of the check
        return changed
    if not isinstance(second, dict) or second.get("kind") in FITTED:
        first["epochs"] = epochs
        return changed
    before, after = first.get("epochs", "auto"), second.get("epochs", "auto")
    share = after if isinstance(after, float) else 0.5
    if isinstance(before, int) and isinstance(after, int):
        share = after / (before + after)
    first["epochs"], second["epochs"] = _shared((epochs, 0), share, name)
    return changed


def _shared(written: tuple[Any, Any], share: float, name: str) -> tuple[Any, Any]:
    """Epochs of both stages, as a configuration may say them, for those that it has."""
    if not all(isinstance(epochs, int) for epochs in written):
        return (round(1 - share, 4), share) if share else ("auto", 0)
    epochs = sum(written)
    if share and epochs < 2:
        raise ValueError(f"{name} needs an epoch for each of its two stages, got {epochs} in all")
    second = min(max(1, round(share * epochs)), epochs - 1) if share else 0
    return epochs - second, second


def _second(
    first: Mapping[str, Any], settings: Mapping[str, Any], epochs: int | float
) -> dict[str, Any]:
    stage = copy.deepcopy(dict(settings))
    if not epochs:
        return stage
    common = (*COMMON, "fc") if stage["kind"] == "memory" else COMMON
    times, lr = stage.pop("lr_times"), first["lr"]
    rates = {
        key: factor * lr["feature" if key == "feature" else "classifier"]
        for key, factor in times.items()
    }
    if stage["schedule"]["kind"] == "step" and isinstance(epochs, int):
        stage["schedule"]["every"] = max(1, epochs // 3)
    return {
        **stage,
        **{key: first[key] for key in common if key in first},
        "epochs": epochs,
        "lr": rates,
    }
