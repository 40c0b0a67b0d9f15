"""A trained run to other projects of the field: pytorch-ood's detectors, OpenOOD's score files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oltr_ext._files import write_whole
from oltr_ext.data import network_input
from oltr_ext.serve.assess import Assessment
from oltr_ext.serve.model import Model
from oltr_ext.serve.trained import Trained

__all__ = ["ood_detector", "write_openood"]


def ood_detector(model: Model | Trained, score: str | None = None) -> Any:
    """A run as a `pytorch_ood.api.FeaturesDetector`: higher is more likely unknown.

    ``predict(x)`` takes images (B, C, H, W), uint8 pixels or floats as the network is fed them, and
    ``predict_features(x)`` what the head sees (B, D), such as `oltr embed` makes of a run on
    images; both give (B,) float64, the run's score with its sign turned. ``fit`` does nothing.

    Args:
        model: of `oltr_ext.load`.
        score: one that the head has; None is the one it answers by.

    Raises:
        RuntimeError: pytorch-ood is not there. ValueError: the head has no such score.
    """
    try:
        from pytorch_ood.api import FeaturesDetector
    except ImportError:
        raise RuntimeError("pytorch-ood is not there: pip install pytorch-ood") from None
    trained = model.trained if isinstance(model, Model) else model
    network = trained.model.eval()
    name = score or trained.threshold["score"]

    class RunDetector(FeaturesDetector):
        """A run of oltr_ext."""

        def __init__(self) -> None:
            self.model = network

        @torch.no_grad()
        def predict(self, x: Tensor) -> Tensor:
            pixels = network_input(x.to(self.device))
            scores: Tensor = self.predict_features(network.features(pixels).float())
            return scores

        @torch.no_grad()
        def predict_features(self, x: Tensor) -> Tensor:
            head = network.head
            parts = [head.score_of(head.outputs(piece), name) for piece in head.pieces(x)]
            return -torch.cat(parts)

    width = network.feature_dim
    detector = RunDetector()
    detector.predict_features(torch.zeros(1, width, device=trained.device))  # has it the score?
    return detector


def write_openood(result: Assessment, out: str | Path) -> list[Path]:
    """The score files that OpenOOD's evaluators save: ``out/scores/test.npz`` of the known test
    images, and one for each open set, under its own name or ``open_test``.

    Each has ``pred`` (N,) int64, the likeliest class; ``conf`` (N,) float64, higher for known, by
    the run's score; ``label`` (N,) int64, -1 for open images.

    Returns:
        Their paths.

    Raises:
        FileExistsError: another file of such a name; it stays as it is.
        ValueError: two sets whose files would have one name.
    """
    seen, conf = result.seen, result.confidence
    sets = result.splits.sets_of_open()
    first = len(result.splits.test)
    names = []  # of its open set, None for a known image
    for row, label in zip(result.rows, seen.target, strict=True):
        one = "open_test" if sets is None or row < first else sets[row - first]
        names.append(None if label >= 0 else one)
    whose, folder = np.array(names, np.object_), Path(out) / "scores"
    files = dict[Path, bytes]()
    for name in dict.fromkeys(names):
        own, buffer = whose == name, io.BytesIO()
        np.savez(buffer, pred=seen.pred[own], conf=conf[own], label=seen.target[own])
        path = folder / f"{'test' if name is None else name.replace('/', '_')}.npz"
        if path in files:
            raise ValueError(
                f"write_openood: {path.name} would be of two sets, the open set {name!r} one of "
                "them: give it another name in the data"
            )
        files[path] = buffer.getvalue()
    for path, content in files.items():
        if path.exists() and path.read_bytes() != content:
            raise FileExistsError(f"{path} is there and holds other scores: choose another folder")
    for path, content in files.items():
        write_whole(path, content)
    return list(files)
