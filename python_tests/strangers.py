"""A run on features of eight well-parted classes, and features of two more that it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import oltr_ext
from oltr_ext.data import write_embeddings

KNOWN, STRANGERS = [*"abcfghij"], [*"de"]
WIDTH = 32
COUNTS = {"train": 40, "val": 10, "test": 10}
SETTINGS = {
    "stage1.epochs": 3,
    "stage2.epochs": 3,
    "stage1.batch_size": 16,
    "stage2.batch_size": 16,
    "open_set.score": "max_logit",
    "device": "cpu",
}
STAGE_1 = {key: value for key, value in SETTINGS.items() if not key.startswith("stage2")}


def rows(name: str, count: int, seed: int = 0) -> NDArray[np.float32]:
    """(count, WIDTH) features of a class."""
    mean = np.abs(np.random.default_rng(ord(name)).normal(size=WIDTH))
    noise = np.random.default_rng([seed, ord(name)]).normal(size=(count, WIDTH)) * 0.3
    return np.maximum(mean + noise, 0).astype(np.float32)


def train_on_rows(folder: Path, method: str | None = "oltr-plus", **settings: Any) -> Path:
    """Trains in seconds; the test rows are ten of each class, and ten of each stranger."""

    settings = {**(STAGE_1 if method == "plain" else SETTINGS), **settings}

    def part(names: list[str], count: int, seed: int) -> tuple[Any, Any]:
        features = np.concatenate([rows(name, count, seed) for name in names])
        return features, np.repeat(np.arange(len(names)), count)

    strangers = {
        "open_val": (part(STRANGERS, 5, 4)[0], None),
        "open_test": (part(STRANGERS, 10, 5)[0], None),
    }
    known = {name: part(KNOWN, n, seed) for seed, (name, n) in enumerate(COUNTS.items(), 1)}
    names = [name for name in STRANGERS for _ in range(10)]
    write_embeddings(folder / "rows", {**known, **strangers}, KNOWN, open_names=names)
    return oltr_ext.train(
        folder / "rows",
        method=method,
        out=folder / "run",
        settings=settings,
        say=lambda _: None,
    )
