"""Several images of one observation, answered and judged as one."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext._tables import mark_of, opened
from oltr_ext._words import counted
from oltr_ext.engine.evaluate import Outputs, answers, stream
from oltr_ext.engine.observed import BY, By, thresholds_of_sizes
from oltr_ext.metrics import evaluate_answers
from oltr_ext.nn import Head
from oltr_ext.serve.assess import Assessment
from oltr_ext.serve.predict import Picture, Prediction, numbered_features
from oltr_ext.serve.predict import answers as predictions
from oltr_ext.serve.trained import Trained

__all__ = [
    "BY",
    "By",
    "judge_observations",
    "observations_of",
    "predict_observations",
    "read_observations",
]


def read_observations(file: str | Path) -> dict[str, str]:
    """Observation by path, of a table with columns path and observation, such as `images.csv` of an
    import, apart by a comma, a semicolon, a tab or a bar; rows without an observation are left out.

    Raises:
        FileNotFoundError: no such file. ValueError: not UTF-8, a column is missing (those that are
            there get named), or a row without a path.
    """
    file = Path(file)
    with opened(file) as lines:
        rows = csv.DictReader(lines, delimiter=mark_of(lines))
        head = rows.fieldnames or []
        if not {"path", "observation"} <= set(head):
            there = ", ".join(head) or "none"
            raise ValueError(f"{file}: expected columns path and observation, got {there}")
        found = {}
        for row in rows:
            if row["path"] is None:
                raise ValueError(
                    f"{file}:{rows.line_num}: expected {len(head)} cells, as the first line has"
                )
            if row["observation"]:
                found[row["path"]] = row["observation"]
        return found


def observations_of(
    images: Sequence[str], source: str | Path, root: str | Path | None = None
) -> list[str | None]:
    """The observation of each image, None for one that stands alone.

    Args:
        source: ``folders``: an image's folder is its observation; or a file as of
            `read_observations`, whose paths are those given, or relative to it or to `root`.
        root: of the images that a model was trained on, by which `images.csv` of an import goes.

    Raises:
        ValueError: a file with observations, and none of them of an image given.
    """
    if str(source) == "folders":
        return [os.path.dirname(image) or os.curdir for image in images]
    found, whole = read_observations(source), dict[str, str]()
    for base in (root, Path(source).parent):
        if base is not None:
            whole |= {os.path.abspath(Path(base) / path): name for path, name in found.items()}
    seen = [found.get(image, whole.get(os.path.abspath(image))) for image in images]
    _check_met(found, seen, f"{source}: ")
    return seen


def _check_met(found: Mapping[str, str], seen: Sequence[str | None], where: str = "") -> None:
    """Raises ValueError where there are observations, and none of what was seen."""
    if found and not any(seen):
        raise ValueError(
            f"{where}expected observations of the images, got paths of none of them, such as "
            f"{next(iter(found))!r}"
        )


@own_defaults()
@torch.no_grad()
def predict_observations(
    trained: Trained,
    images: Sequence[Picture],
    observations: Sequence[str | None],
    *,
    by: By = "embeddings",
    nearest: int = 3,
    on_error: Callable[[Exception], None] | None = None,
) -> list[Prediction]:
    """Label or unknown for each observation, in order of its first image; `path` is its name, or
    that of an image that stands alone.

    The threshold is that of observations of so many images, as far as the run has one, see
    `thresholds_of_sizes`.

    Args:
        observations: of each image; None: it stands alone.
        by: see `BY`. Under ``scores`` the nearest classes go by probability.
        on_error: see `predict_images`.

    Raises:
        ValueError: another number of observations; no such `by`, or streamed banks by scores; see
            `predict_images`.
    """
    _check(by, trained)
    if len(observations) != len(images):
        raise ValueError(f"expected {counted(len(images), 'observation')}, got {len(observations)}")
    parts = list(numbered_features(trained, images, on_error=on_error))
    ids = [name for _, called, _ in parts for name in called]
    if not ids:
        return []
    features = torch.cat([x for _, _, x in parts])
    index, names = _numbered(ids, [observations[n] for numbers, _, _ in parts for n in numbers])
    where, head = torch.from_numpy(index).to(features.device), trained.model.head
    levels = thresholds_of_sizes(trained.threshold, by, np.bincount(index)).tolist()
    if by == "embeddings":
        found = predictions(trained, _means(features, where, len(names)), names, nearest)
        return [_under(each, level) for each, level in zip(found, levels, strict=True)]
    with head.reading():
        prob, scores = _scored(head, features, where, len(names))
        labels, living = head.roster.names, len(head.roster.living)
    score = trained.threshold["score"]
    value, order = prob.topk(min(nearest, living), dim=1)
    closed = prob.argmax(dim=1).tolist()
    return [
        Prediction(
            path=name,
            label=labels[closed[n]] if float(scores[score][n]) >= levels[n] else None,
            confidence=float(scores[score][n]),
            score=score,
            threshold=levels[n],
            closed=labels[closed[n]],
            nearest=[
                (labels[c], v) for c, v in zip(order[n].tolist(), value[n].tolist(), strict=True)
            ],
        )
        for n, name in enumerate(names)
    ]


@own_defaults()
@torch.no_grad()
def judge_observations(
    result: Assessment, observations: Mapping[str, str], *, by: By = "embeddings"
) -> dict[str, Any]:
    """All metrics of the test images' observations, known and open; images of none stand alone.

    Args:
        observations: by the image's path in its list, or its id among embeddings.
        by: see `BY`. ``scores`` holds a probability of each class for each observation.

    Returns:
        What `evaluate_answers` gives, with ``by``, ``observations`` and ``images``.

    Raises:
        ValueError: no such `by`, or streamed banks by scores; an observation of images of several
            classes; observations, and none of a test image.
    """
    trained, splits = result.trained, result.splits
    _check(by, trained)
    head, device = trained.model.head, trained.device
    rows = result.rows
    ids = [splits.image_id(int(row)) for row in rows]
    own_names = [observations.get(path) for path in ids]
    _check_met(observations, own_names)
    index, names = _numbered(ids, own_names)
    kept = np.full(len(splits.test) + sum(map(len, splits.opened)), -1)
    kept[rows] = index
    target = np.full(len(names), -2)
    for number, label in zip(index, result.seen.target, strict=True):
        if target[number] not in (-2, label):
            raise ValueError(f"observation {names[number]} has images of several classes")
        target[number] = label
    features, where, place = [], [], 0
    for part in (splits.test, *splits.opened):
        for x, _ in stream(trained.model, part, device, workers=splits.workers):
            own = kept[place : place + len(x)]
            place += len(x)
            chosen = torch.from_numpy(np.flatnonzero(own >= 0)).to(device)
            features.append(x[chosen])
            where.append(torch.from_numpy(own[own >= 0]).to(device))
    given, whose = torch.cat(features), torch.cat(where)
    truth = torch.from_numpy(target).to(device)
    if by == "embeddings":
        means = _means(given, whose, len(names))
        pairs = zip(head.pieces(means), head.pieces(truth), strict=True)
        seen = Outputs.join([answers(head, x, y) for x, y in pairs])
    else:
        prob, scores = _scored(head, given, whose, len(names))
        seen = Outputs(
            prob.argmax(dim=1).cpu().numpy(),
            target,
            {k: v.cpu().numpy() for k, v in scores.items()},
        )
    levels = thresholds_of_sizes(trained.threshold, by, np.bincount(index))
    return {
        "by": by,
        "observations": len(names),
        "images": len(ids),
        **evaluate_answers(
            seen.pred,
            seen.scores,
            seen.target,
            trained.train_counts,
            convention=trained.config.data.shots,
            thresholds={trained.threshold["score"]: levels},
            joined=len(trained.roster) - len(trained.class_names),
        ),
    }


def _under(found: Prediction, threshold: float) -> Prediction:
    """The same answer by another threshold."""
    if threshold == found.threshold:
        return found
    label = found.closed if threshold <= found.confidence < math.inf else None
    return replace(found, label=label, threshold=threshold)


def _check(by: str, trained: Trained) -> None:
    if by not in BY:
        raise ValueError(f"by: expected {' or '.join(BY)}, got {by!r}")
    if by == "scores":
        trained.check_in_memory("observations by scores")


def _numbered(
    ids: Sequence[str], observations: Sequence[str | None]
) -> tuple[NDArray[np.int64], list[str]]:
    """Number of each image's observation, and the names of these."""
    number: dict[str, int] = {}
    index, names = np.empty(len(ids), np.int64), list[str]()
    for place, (path, seen) in enumerate(zip(ids, observations, strict=True)):
        index[place] = len(names) if seen is None else number.setdefault(seen, len(names))
        if index[place] == len(names):
            names.append(path if seen is None else seen)
    return index, names


def _means(values: Tensor, where: Tensor, count: int) -> Tensor:
    """(count, ...) means of rows, summed in float64 in order."""
    total = torch.zeros(count, *values.shape[1:], dtype=torch.float64, device=values.device)
    total.index_add_(0, where, values.double())
    images = torch.bincount(where, minlength=count).clamp(min=1)
    return (total / images.reshape(-1, *[1] * (values.dim() - 1))).to(values.dtype)


def _scored(
    head: Head, features: Tensor, where: Tensor, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Means of probabilities (count, C) and of each score (count,), over images (N, D)."""
    prob = features.new_zeros(count, head.num_classes)
    scores: dict[str, list[Tensor]] = {}
    images = torch.bincount(where, minlength=count).clamp(min=1)
    for x, index in zip(head.pieces(features), head.pieces(where), strict=True):
        out = head.outputs(x)
        prob.index_add_(0, index, out.logits.softmax(dim=1).to(prob.dtype))
        for name, value in head.scores(out).items():
            scores.setdefault(name, []).append(value)
    means = {name: _means(torch.cat(parts), where, count) for name, parts in scores.items()}
    return prob / images[:, None], means
