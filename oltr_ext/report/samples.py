"""Sample images: which ones to show, and how one becomes JSON and a picture."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .numbers import number
from .types import Sample

KINDS = {
    "known_correct": "Known, named right",
    "known_wrong": "Known, named wrong",
    "known_rejected": "Known, called unknown",
    "open_rejected": "Open, called unknown",
    "open_accepted": "Open, taken for a known class",
}
"""Outcomes in the order the report shows them, with their headings."""
GOOD = ("known_correct", "open_rejected")
STRONGEST = 32


def choose_samples(
    pred: ArrayLike,
    target: ArrayLike,
    score: ArrayLike,
    threshold: float,
    *,
    per_kind: int = 3,
    seed: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """Draw a few test images of each outcome, at random so that the gallery is no advertisement.

    Images of different classes come before a second one of the same class.

    Args:
        pred: (N,) class before rejection. target: (N,) class, -1 = open.
        score: (N,) higher means known; rejected when below threshold.
        threshold: of the score. per_kind: at most this many indices an outcome. seed: of the draw.

    Returns:
        int64 indices, sorted, under each key of `KINDS`; empty where nothing had that outcome.
    """
    p, t = np.asarray(pred), np.asarray(target)
    known, accepted = t >= 0, np.asarray(score) >= threshold
    members = {
        "known_correct": known & accepted & (p == t),
        "known_wrong": known & accepted & (p != t),
        "known_rejected": known & ~accepted,
        "open_rejected": ~known & ~accepted,
        "open_accepted": ~known & accepted,
    }
    rng = np.random.default_rng(seed)
    chosen = {}
    for kind, mask in members.items():
        drawn = rng.permutation(np.flatnonzero(mask))
        first = np.sort(np.unique(t[drawn], return_index=True)[1])
        drawn = np.concatenate([drawn[first], np.delete(drawn, first)])
        chosen[kind] = np.sort(drawn[:per_kind]).astype(np.int64)
    return chosen


def outcome(sample: Sample) -> str:
    """The key of `KINDS` that says how this image went."""
    if sample.is_open:
        return "open_rejected" if sample.predicted is None else "open_accepted"
    if sample.predicted is None:
        return "known_rejected"
    return "known_correct" if sample.predicted == sample.true_name else "known_wrong"


def pixels(image: ArrayLike) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 from any of the layouts of `Sample.image`.

    Raises:
        ValueError: another dtype or shape.
    """
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    grey_or_rgb = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not grey_or_rgb or 0 in array.shape:
        raise ValueError(
            f"report: expected a uint8 image of shape (H, W), (H, W, 1 or 3) or (1 or 3, H, W), "
            f"got {array.shape} of {array.dtype}"
        )
    return array


def png_uri(image: ArrayLike, *, longest: int = 192) -> str:
    """data: URI of the image as PNG, scaled down when it is larger than the report shows."""
    picture = Image.fromarray(pixels(image))
    picture.thumbnail((longest, longest))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def describe(sample: Sample) -> dict[str, Any]:
    """Everything the report shows of a sample except its pixels."""
    return {
        "kind": outcome(sample),
        "image_id": sample.image_id,
        "true_name": sample.true_name,
        "is_open": bool(sample.is_open),
        "predicted": sample.predicted,
        "closed_prediction": sample.closed_prediction,
        "confidence": number(sample.confidence),
        "nearest": [{"name": n, "distance": number(d)} for n, d in sample.nearest],
        "recalled": [{"name": n, "weight": number(w)} for n, w in sample.recalled],
        "gate": None if sample.selector is None else _gate(np.asarray(sample.selector)),
        "reachability": number(sample.reachability),
    }


def _gate(selector: NDArray[Any]) -> dict[str, Any]:
    """Mean |e|, and the strongest values in order of strength."""
    e = selector.astype(np.float64).ravel()
    strongest = np.argsort(-np.abs(e), kind="stable")[:STRONGEST]
    return {
        "size": len(e),
        "mean_abs": number(float(np.abs(e).mean())) if len(e) else None,
        "strongest": [{"dim": int(i), "value": number(float(e[i]))} for i in strongest],
    }
