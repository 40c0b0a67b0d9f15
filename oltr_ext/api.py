"""What most people need of training, in one function: `oltr_ext.train`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oltr_ext.config.loading import ConfigError, config_names, load_config, make_config
from oltr_ext.config.schema import Config
from oltr_ext.data.embeddings import MANIFEST
from oltr_ext.engine.choose import configured
from oltr_ext.engine.train import train as train_run

__all__ = ["train"]


def train(
    data: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    method: str | None = "auto",
    settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """Train, or go on with an interrupted run; `oltr train` as a function.

    Args:
        data: a configuration, as a packaged name such as ``icons``, a file, or a mapping as YAML
            gives it; or a folder of embeddings that `oltr embed` or `write_embeddings` wrote.
        out: folder of the run.
        method: see `oltr methods`; None: as the configuration says; ``auto``: the same, and
            ``oltr-plus`` where it has no ``method``, no stage 2, and no loss, batches or prior of
            its own in stage 1.
        settings: keys of the configuration to set, such as ``{"epochs": 90}``.
        resume: False starts afresh and removes what an earlier run left in `out`.
        say: gets a line of text now and then.

    Returns:
        `out`, for `oltr_ext.load` and for the commands that take a run.

    Raises:
        ConfigError: no such configuration, key or method, or values that do not hold.
        ValueError, BusyError, TrainingError: see `oltr_ext.engine.train.train`.
    """
    overrides = [
        f"{key}={json.dumps(value, default=str)}" for key, value in (settings or {}).items()
    ]
    folder = None if isinstance(data, Mapping) or str(data) in config_names() else Path(data)
    if folder is not None and folder.is_dir():
        if not (folder / MANIFEST).is_file():
            made = folder / "data.yaml"
            raise ConfigError(
                f"train: expected a configuration or a folder of embeddings, and {data} has no "
                f"{MANIFEST}{f'; did you mean {made}?' if made.is_file() else ''}"
            )
        overrides.insert(0, f"data.root={json.dumps(str(data))}")
        data = "embeddings"

    def load(by: str | None) -> Config:
        if isinstance(data, Mapping):
            return make_config(data, overrides, method=by)
        return load_config(data, overrides, method=by)

    config, say = configured(load, out, method=method, resume=resume, overrides=overrides, say=say)
    train_run(config, out, resume=resume, say=say)
    return Path(out)
