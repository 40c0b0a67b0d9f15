"""What the engine hands to the report: plain dataclasses of arrays, names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Sample:
    """One test image, what the model said and why."""

    image: ArrayLike | None
    """uint8 (H, W), (H, W, 1 or 3) or (1 or 3, H, W); None where only features are known."""
    true_name: str
    is_open: bool
    predicted: str | None
    """Class name, or None when the model calls the image unknown."""
    confidence: float
    closed_prediction: str | None = None
    """What the model would have said without rejecting."""
    nearest: Sequence[tuple[str, float]] = ()
    """Known classes whose centroids are nearest, with their distances, best first."""
    recalled: Sequence[tuple[str, float]] = ()
    """Classes the memory attention weighs most, with softmax weights, best first."""
    selector: ArrayLike | None = None
    """(D,) concept selector e = tanh(...), signed."""
    reachability: float | None = None
    image_id: str = ""
    """Name or path; shown in the place of an image that is not there."""


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method's results on the test set."""

    name: str
    summary: Mapping[str, Any]
    """The dict of `oltr_ext.metrics.evaluate`."""
    score_name: str
    """The score this method rejects by: a key of summary["scores"]."""
    score: ArrayLike
    """(N,) that score of each test image; higher means known."""
    pred: ArrayLike
    """(N,) predicted class before any rejection."""
    target: ArrayLike
    """(N,) true class, -1 = open."""
    threshold: float | None = None
    """Calibrated threshold; by default the one in the summary's "calibrated" operating point."""
    threshold_rule: str = ""
    """How it was chosen, e.g. "keeps 95 % of the validation images of known classes"."""
    samples: Sequence[Sample] = ()
    joined: Sequence[str] = ()
    """Names of further classes that `pred` may hold, after those that have test images."""


class ReportFiles(NamedTuple):
    """Where `write_report` wrote."""

    html: Path
    json: Path
