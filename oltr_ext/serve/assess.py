"""Judge trained models on the test images, closed and open, and write the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oltr_ext.config.schema import TestPrior
from oltr_ext.data import Embeddings, TensorImages, network_input
from oltr_ext.engine.build import own_defaults
from oltr_ext.engine.evaluate import Outputs, collect
from oltr_ext.engine.sets import Calibration
from oltr_ext.engine.settle import expects, has_prior, settle
from oltr_ext.engine.splits import Splits, load_splits
from oltr_ext.metrics import evaluate_answers, json_ready, judge_open_sets, set_coverage
from oltr_ext.nn import OLTRHead
from oltr_ext.nn.sets import SET_METHODS
from oltr_ext.report import (
    MethodResult,
    ReportFiles,
    Sample,
    choose_samples,
    write_picture,
    write_report,
)
from oltr_ext.serve.predict import nearest_classes
from oltr_ext.serve.sets import SetAnswer, calibration_of
from oltr_ext.serve.trained import Trained

__all__ = ["Assessment", "assess", "compare", "open_set_table", "report", "set_table", "table"]

REPORT = "report.html"
ALPHA = 0.1
"""Of the prediction sets that are judged."""


@dataclass
class Assessment:
    """A model's outputs on the test images, and every metric of them."""

    name: str
    trained: Trained
    splits: Splits
    seen: Outputs  # known test images, then open ones
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # on what was settled anew

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(N,) by the calibrated score."""
        return self.seen.scores[self.trained.threshold["score"]]

    @property
    def rejected(self) -> NDArray[np.bool_]:
        return np.asarray(self.confidence < self.trained.threshold["value"])

    def true_name(self, index: int) -> str:
        target = int(self.seen.target[index])
        if target >= 0:
            return self.splits.class_names[target]
        names, index = self.splits.open_names, index - len(self.splits.test)
        # an open image among the known ones' has no name
        return "open" if names is None or index < 0 else names[index]


@own_defaults()
def assess(
    trained: Trained,
    *,
    name: str,
    splits: Splits | None = None,
    test_prior: TestPrior | None = None,
) -> Assessment:
    """Run the test set of the model's own configuration (or `splits`) through it.

    Args:
        test_prior: what to expect of test images, in place of what the model was settled on: its
            head and threshold in `trained` are settled anew. Nothing for a model without a prior.

    Raises:
        ValueError, FileNotFoundError: the data cannot be read, or has other classes.
    """
    splits = splits or load_splits(trained.config.data)
    if splits.class_names != trained.class_names:
        raise ValueError(
            f"{trained.path} knows {len(trained.class_names)} classes, which are not the "
            f"{len(splits.class_names)} classes of the data"
        )
    notes: list[str] = []
    if test_prior is not None and has_prior(trained.model.head):
        config = trained.config.model_copy(update={"test_prior": test_prior})
        trained.threshold, validation = settle(
            trained.model, config, splits, trained.device, notes.append, fit=False
        )
        trained.calibration = Calibration.of(validation)
    elif test_prior is not None:
        notes = ["it learned under no class prior, and stays as it is"]
    held = calibration_of(trained, splits)
    sets = {method: SetAnswer(trained, ALPHA, method).thresholds for method in SET_METHODS}
    asked = torch.stack([*sets.values()]).to(trained.device)
    seen = Outputs.join(
        [
            collect(trained.model, part, trained.device, workers=splits.workers, sets=asked)
            for part in (splits.test, *splits.opened)
        ]
    )
    threshold = trained.threshold
    limits = {threshold["score"]: threshold["value"]}
    summary = evaluate_answers(
        seen.pred,
        seen.scores,
        seen.target,
        trained.train_counts,  # whatever the training list holds today
        convention=trained.config.data.shots,
        thresholds=limits,
    )
    summary["expects"] = expects(trained.model.head)
    names = splits.sets_of_open()
    if names is not None:
        of_set = [""] * (len(seen.target) - len(names)) + names
        summary["open_sets"] = json_ready(
            judge_open_sets(seen.pred, seen.scores, seen.target, of_set, thresholds=limits)
        )
    summary["sets"] = {
        "alpha": ALPHA,
        "calibration": len(held.target),
        "methods": {
            method: {
                **set_coverage(
                    seen.true >= lowest.cpu().numpy()[seen.target],
                    seen.sizes[:, n],
                    seen.target,
                    trained.train_counts,
                    trained.config.data.shots,
                ),
                "always": int((lowest == -math.inf).sum()),
            }
            for n, (method, lowest) in enumerate(sets.items())
        },
    }
    summary["sets"] = json_ready(summary["sets"])
    return Assessment(name, trained, splits, seen, summary, notes)


def compare(
    trained: Sequence[Trained], names: Sequence[str], *, test_prior: TestPrior | None = None
) -> list[Assessment]:
    """Each model on the test images of its own configuration, for one table and one report.

    Args:
        test_prior: see `assess`.

    Raises:
        ValueError: not a name for each, each another; `test_prior` for models of which none learned
            under a class prior; models that know other classes, were tested on other images, or
            whose classes are many-, medium- and few-shot by other counts or bounds; and see
            `assess`.
    """
    if not len(set(names)) == len(names) == len(trained):
        raise ValueError(
            f"expected {len(trained)} names for {len(trained)} models, no two the same, got "
            f"{', '.join(names)}"
        )
    if test_prior is not None and not any(has_prior(each.model.head) for each in trained):
        raise ValueError(
            f"test_prior: {', '.join(names)} learned under no class prior that could be expected "
            "again"
        )
    results: list[Assessment] = []
    for each, name in zip(trained, names, strict=True):
        read = [r.splits for r in results if r.trained.config.data == each.config.data]
        result = assess(each, name=name, splits=read[0] if read else None, test_prior=test_prior)
        first = results[0] if results else result
        if result.splits.class_names != first.splits.class_names or not np.array_equal(
            result.seen.target, first.seen.target
        ):
            raise ValueError(f"{each.path} was tested on other data than {first.trained.path}")
        for what, ours, theirs in (
            ("data.shots", each.config.data.shots, first.trained.config.data.shots),
            ("training images a class", each.train_counts, first.trained.train_counts),
        ):
            if ours != theirs:
                raise ValueError(f"{each.path} has other {what} than {first.trained.path}")
        results.append(result)
    return results


@own_defaults()
def report(
    results: Sequence[Assessment],
    path: str | Path,
    *,
    details: Mapping[str, str] | None = None,
    picture: str | Path | None = None,
) -> ReportFiles:
    """One self-contained page over all results, with a JSON of their numbers beside it.

    `picture`, an .svg or .png, shows sample answers and the headline table on their own.
    """
    first, methods = results[0].splits, [_method_result(r) for r in results]
    if picture is not None:
        write_picture(picture, methods)
    return write_report(
        path,
        methods,
        class_names=first.class_names,
        train_counts=np.array(results[0].trained.train_counts),
        details=details,
    )


def _method_result(result: Assessment) -> MethodResult:
    threshold, seen = result.trained.threshold, result.seen
    chosen = choose_samples(seen.pred, seen.target, result.confidence, threshold["value"])
    index = np.unique(np.concatenate([*chosen.values(), np.empty(0, np.int64)]))
    return MethodResult(
        name=result.name,
        summary=result.summary,
        score_name=threshold["score"],
        score=result.confidence,
        pred=seen.pred,
        target=seen.target,
        threshold=threshold["value"],
        threshold_rule=threshold["words"],
        samples=_samples(result, index.astype(np.int64)),
    )


def _samples(result: Assessment, index: NDArray[np.int64]) -> list[Sample]:
    """The chosen test images with what the model made of them."""
    names = result.splits.class_names
    inside = _inside(result, index)
    samples = []
    for n, i in enumerate(index.tolist()):
        closed = names[int(result.seen.pred[i])]
        samples.append(
            Sample(
                image=_pixels(result.splits, i),
                image_id=result.splits.image_id(i),
                true_name=result.true_name(i),
                is_open=bool(result.seen.target[i] < 0),
                predicted=None if result.rejected[i] else closed,
                confidence=float(result.confidence[i]),
                closed_prediction=closed,
                **inside[n],
            )
        )
    return samples


@torch.no_grad()
def _inside(result: Assessment, index: NDArray[np.int64], top: int = 3) -> list[dict[str, Any]]:
    """Per image, what the memory recalled and the gate let through; empty without a memory."""
    trained = result.trained
    head, names = trained.model.head, trained.class_names
    if not isinstance(head, OLTRHead) or len(index) == 0:
        return [{} for _ in index]
    places = [result.splits.locate(i) for i in index.tolist()]
    pixels = torch.stack([images[row][0] for images, row in places])
    features = trained.model.features(network_input(pixels.to(trained.device))).float()
    out, scale = head.outputs(features), head.classifier.scale
    weight, which = head.recall(features).topk(min(top, len(names)))
    near, how_far = nearest_classes(trained, features, out.logits, top)
    assert out.distance is not None and out.selector is not None and isinstance(scale, float)
    return [
        {
            "nearest": [(names[c], d) for c, d in zip(near[n], how_far[n], strict=True)],
            "recalled": [(names[c], w) for c, w in zip(*pair, strict=True)],
            "selector": out.selector[n].cpu().numpy(),
            "reachability": scale / max(float(out.distance[n]), 1e-6),
        }
        for n, pair in enumerate(zip(which.tolist(), weight.tolist(), strict=True))
    ]


def _pixels(splits: Splits, index: int, size: int = 96) -> NDArray[np.uint8] | None:
    """uint8 picture of a test image, as a reader should see it; None where there is none."""
    images, row = splits.locate(index)
    if isinstance(images, Embeddings):
        return None
    if isinstance(images, TensorImages):
        return images.images[row].numpy()
    picture = images.image(row)
    picture.thumbnail((size, size))
    return np.asarray(picture, np.uint8)


def table(results: Sequence[Assessment]) -> str:
    """Closed and open results side by side, in percent, as aligned text."""
    head = (
        *("method", "all", "many", "medium", "few", "AUROC", "(score)", "known kept", "open out"),
        "expects",
    )
    rows = [head]
    for result in results:
        closed, scores = result.summary["closed"], result.summary["scores"]
        chosen = result.trained.threshold["score"]  # on validation data, not on these
        point = scores[chosen]["operating_points"]["calibrated"]
        rows.append(
            (
                result.name,
                *(percent(closed[k]) for k in ("overall", "many", "medium", "few")),
                percent(scores[chosen]["auroc"]),
                chosen,
                percent(point["known_accepted"]),
                percent(point["open_rejected"]),
                result.summary["expects"],
            )
        )
    return _aligned(rows, left={0, 6, 9})


def set_table(results: Sequence[Assessment]) -> str:
    """How often the prediction sets hold the true class of known test images, in percent, and how
    many classes they hold, as aligned text."""
    head = ("method", "sets", "covered", "by class", "many", "medium", "few", "classes", "always")
    rows = [head]
    for result in results:
        for name, found in result.summary["sets"]["methods"].items():
            keys = ("coverage", "macro", "many", "medium", "few")
            size = found["size"]
            rows.append(
                (
                    result.name,
                    name,
                    *(percent(found[key]) for key in keys),
                    "-" if size is None else f"{size:.2f}",
                    str(found["always"]),
                )
            )
    return _aligned(rows, left={0, 1})


def _aligned(rows: Sequence[Sequence[str]], left: set[int]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if n in left else c.rjust(w)
            for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def open_set_table(results: Sequence[Assessment]) -> str:
    """Each open set and the average of each group, by the score that a model answers by, in
    percent; empty where no model has several."""
    rows = []
    for result in results:
        chosen = result.trained.threshold["score"]
        for each in result.summary.get("open_sets", []):
            found = each["scores"][chosen]
            numbers = (found[k] for k in ("auroc", "fpr95", "fpr95_open", "oscr", "open_rejected"))
            name = f"mean of {each['name']}" if each["sets"] else each["name"]
            rows.append((result.name, name, f"{each['images']:,}", *map(percent, numbers)))
    if not rows:
        return ""
    head = ("method", "open set", "images", "AUROC", "FPR95", "FPR95 open", "OSCR", "open out")
    return _aligned([head, *rows], left={0, 1})


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
