"""A folder of strangers beside known images, and a desk over it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from oltr_ext.desk import views
from oltr_ext.desk.answers import Answers
from oltr_ext.desk.desk import Desk, Progress
from oltr_ext.desk.folder import Folder
from oltr_ext.serve.trained import Trained, load_trained


def photos(data: Path, folder: Path) -> Path:
    """18 strangers of one kind, 24 known images, and one that cannot be read."""
    for kind in ("open_test", "open_val", "test"):
        for file in sorted(data.glob(f"{kind}_[0-9]_*.png")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / kind)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def a_run(finished: Path, folder: Path) -> Path:
    """A run of one's own, for its classes change."""
    folder.mkdir()
    shutil.copy(finished / "model.safetensors", folder)
    return folder


def opened(run: Path, folder: Path, out: Path | None = None) -> Desk:
    out = out or run / "desk"
    desk = Desk(load_trained(run, device="cpu"), Folder(folder, without=out), out)
    desk.prepare()
    return desk


def crowded(trained: Trained, folder: Path, out: Path, count: int, kinds: int) -> Desk:
    """A desk over features of so many images that are not there, of which all are unknown."""
    trained.model.head.set_threshold(float("inf"), "max_softmax")
    desk = Desk(trained, Folder(folder), out)
    draw = np.random.default_rng(0)
    middle = np.maximum(draw.normal(size=(kinds, trained.model.feature_dim)), 0)
    features = middle[np.arange(count) % kinds] + draw.normal(0, 0.2, (count, middle.shape[1]))
    images = [f"{n:032x}" for n in range(count)]
    pixels = draw.integers(0, 256, (count, 16), np.uint8)
    desk.contents.paths = {image: [f"{n}.png"] for n, image in enumerate(images)}
    desk.answers = Answers(trained, images, features.astype(np.float32), pixels)
    desk._find()
    desk.progress = Progress("ready", count, count)
    desk.stamp += 1
    return desk


def decide(desk: Desk, do: str, **more: Any) -> int:
    return desk.decide({"version": desk.log.version, "do": do, **more})


def first(desk: Desk) -> int:
    """The largest group."""
    return int(views.groups(desk, "open", 0)["groups"][0]["id"])


def members(desk: Desk, group: int) -> list[str]:
    return list(desk.log.state.members[group])
