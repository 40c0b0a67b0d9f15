"""A tiny data set of list files, a configuration that trains on it in a second, and its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oltr_ext.engine import checkpoint
from oltr_ext.engine.logs import Logs

COUNTS = (14, 9, 4, 3)


def write_data(folder: Path) -> None:
    """Four classes of noisy stripes, 16x16, and one that is never trained on."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    wave = np.sin(np.arange(16) * np.array([[0.4], [0.8], [1.3], [2.0], [2.8]]))
    stripes = 128 + 90 * wave

    def part(name: str, counts: tuple[int, ...], first: int = 0) -> None:
        lines = []
        for label, count in enumerate(counts, first):
            for n in range(count):
                pixels = stripes[label][None, :, None] + rng.normal(0, 25, (16, 16, 3))
                path = f"{name}_{label}_{n}.png"
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / path)
                lines.append(f"{path} {label}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")

    part("train", COUNTS)
    part("val", (4,) * 4)
    part("test", (6,) * 4)
    part("open_val", (8,), first=4)
    part("open_test", (10,), first=4)


def config(folder: Path) -> dict:
    """Two stages of two epochs of three steps."""
    stage = {
        "epochs": 2,
        "batch_size": 8,
        "lr": {"feature": 0.05, "classifier": 0.05, "centroid": 0.01},
        "schedule": {"kind": "cosine", "warmup": 0.5},
    }
    lists = {part: f"{folder}/{part}.txt" for part in ("train", "val", "test")}
    strangers = {part: f"{folder}/{part}.txt" for part in ("open_val", "open_test")}
    return {
        "device": "cpu",
        "threads": 1,
        "data": {
            "kind": "lists",
            "root": str(folder),
            "image_size": 16,
            "workers": 0,
            "shots": [8, 4],
            **lists,
            **strangers,
        },
        "model": {"backbone": "small_cnn"},
        "stage1": stage,
        "stage2": {**stage, "fc": 256, "fc_start": "identity", "clip": 5.0},
        "checkpoint_every": 1,
        "log_every": 2,
    }


def same_run(a, b):
    """Every tensor, every number of the header, every byte of the log."""
    assert (a / "log.csv").read_bytes() == (b / "log.csv").read_bytes()
    for name in ("model.safetensors", "last.safetensors", "best.safetensors"):
        (left, header), (right, other) = checkpoint.load(a / name), checkpoint.load(b / name)
        assert header["state"] == other["state"] and header["threshold"] == other["threshold"]
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert torch.equal(value, right[key]), (name, key)


def stop_after(monkeypatch, row):
    """Interrupt a run while it writes a row of its log."""
    write, seen = Logs.row, []

    def interrupt(self, values, step):
        write(self, values, step)
        seen.append(step)
        if len(seen) == row:
            raise KeyboardInterrupt

    monkeypatch.setattr(Logs, "row", interrupt)


def arrays(classes=4, width=6, dtype=np.float32):
    """Features and labels of every split, as a user has them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes + 1, width)) * 3

    def part(rows, low=0):
        labels = np.arange(rows) % classes if low == 0 else np.full(rows, classes)
        return (centres[labels] + rng.normal(size=(rows, width))).astype(dtype), labels

    return {
        "train": part(40),
        "val": part(16),
        "test": part(24),
        "open_val": (part(8, 1)[0], None),
        "open_test": part(10, 1),
    }


def same_embeddings(a, b):
    """Two folders of embeddings."""
    names, others = (sorted(p.name for p in x.iterdir() if p.name != ".lock") for x in (a, b))
    assert names == others and len(names) == 11
    for name in names:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
