"""Judge trained models on the test images, closed and open, and write the report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oltr_ext._defaults import own_defaults
from oltr_ext._words import counted
from oltr_ext.config.schema import TestPrior
from oltr_ext.data import Embeddings, TensorImages, network_input
from oltr_ext.engine import checkpoint
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
from oltr_ext.serve.joined import enrolled_line, of_the_enrolled, set_aside
from oltr_ext.serve.predict import nearest_classes
from oltr_ext.serve.sets import SetAnswer, calibration_of
from oltr_ext.serve.trained import Trained, digest_of, take_up, trained_head

__all__ = ["Assessment", "assess", "check_free", "compare", "report"]

REPORT = "report.html"
MARK = '<meta name="generator" content="oltr_ext">'
"""In the head of the page."""
ALPHA = 0.1
"""Of the prediction sets that are judged."""
Ints = NDArray[np.int64]


@dataclass
class Assessment:
    """A model's outputs on the test images, and every metric of them."""

    name: str
    trained: Trained
    splits: Splits
    seen: Outputs  # known test images, then open ones, but for those set aside
    rows: Ints  # (N,) which they are, counting on from `test` into `open_test`
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # on what was settled anew, and who joined

    @property
    def class_names(self) -> list[str]:
        """By label: the data's own names, then those of classes that joined."""
        known = self.splits.class_names
        return [*known, *self.trained.names[len(known) :]]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(N,) by the calibrated score."""
        return self.seen.scores[self.trained.threshold["score"]]

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """(N,) as `Head.answer` decides: what is no finite number is too."""
        known = self.confidence >= self.trained.threshold["value"]
        return ~(known & (self.confidence < np.inf))

    def true_name(self, index: int) -> str:
        target = int(self.seen.target[index])
        if target >= 0:
            return self.splits.class_names[target]
        names, index = self.splits.open_names, int(self.rows[index]) - len(self.splits.test)
        # an open image among the known ones' has no name
        return "open" if names is None or index < 0 else names[index] or "open"

    def image_id(self, index: int) -> str:
        return self.splits.image_id(int(self.rows[index]))


@own_defaults()
def assess(
    trained: Trained,
    *,
    name: str,
    splits: Splits | None = None,
    test_prior: TestPrior | None = None,
    beside: Sequence[Trained] = (),
) -> Assessment:
    """Run the test set of the model's own configuration (or `splits`) through it.

    It is judged on the data's classes, whoever joined: an answer that is an enrolled class is wrong
    for an image of one of these, and accepts a stranger. Open images that bear the name of an
    enrolled class are strangers no more, and images of a class that was removed are not known any
    more; both are set aside, and the former judged apart, under ``enrolled`` of the summary.

    Args:
        beside: models to compare it with, whose new and removed classes are set aside too.
        test_prior: what to expect of test images, in place of what the model was settled on: its
            head and threshold in `trained` are settled anew. Nothing for a model without a prior.

    Raises:
        ValueError, FileNotFoundError: the data cannot be read, or has other classes.
    """
    splits = splits or load_splits(trained.config.data)
    if splits.class_names != trained.class_names:
        raise ValueError(
            f"{trained.path} knows {counted(len(trained.class_names), 'class')}, which are not the "
            f"{counted(len(splits.class_names), 'class')} of the data"
        )
    notes: list[str] = []
    if test_prior is not None and has_prior(trained.model.head):
        _settle(trained, test_prior, splits, notes.append)
    elif test_prior is not None:
        notes = ["it learned under no class prior, and stays as it is"]
    calibration_of(trained, splits)
    sets = {method: SetAnswer(trained, ALPHA, method) for method in SET_METHODS}
    asked = torch.stack([answer.thresholds for answer in sets.values()]).to(trained.device)
    workers = splits.workers
    everything = Outputs.join(
        [
            collect(trained.model, part, trained.device, workers=workers, true=True, sets=asked)
            for part in (splits.test, *splits.opened)
        ]
    )
    aside = set_aside([trained, *beside], splits)
    rows, threshold = np.flatnonzero(~aside), trained.threshold
    seen, limits = everything.only(rows), {threshold["score"]: threshold["value"]}
    summary = evaluate_answers(
        seen.pred,
        seen.scores,
        seen.target,
        trained.train_counts,  # whatever the training list holds today
        convention=trained.config.data.shots,
        thresholds=limits,
        joined=len(trained.roster) - len(trained.class_names),
    )
    summary["expects"] = expects(trained.model.head)
    summary["model"] = _digest(trained)
    names = splits.sets_of_open()
    if names is not None:
        of_set = np.array([""] * (len(everything.target) - len(names)) + names, np.object_)
        summary["open_sets"] = json_ready(
            judge_open_sets(seen.pred, seen.scores, seen.target, [*of_set[rows]], thresholds=limits)
        )
    summary["sets"] = json_ready(_sets(trained, seen, sets))
    if trained.enrolment.changed:
        summary["enrolled"] = of_the_enrolled(trained, splits, everything, aside)
        notes.append(enrolled_line(summary["enrolled"]))
    return Assessment(name, trained, splits, seen, rows, summary, notes)


def _digest(trained: Trained) -> str | None:
    """`digest_of`; None where the checkpoint has gone, or was written by another training."""
    try:
        tensors, header = checkpoint.opened(trained.path, alone=True)
    except checkpoint.CheckpointError:
        return None
    return digest_of(trained, tensors) if header["state"] == trained.state else None


def _sets(trained: Trained, seen: Outputs, sets: Mapping[str, SetAnswer]) -> dict[str, Any]:
    """How often the prediction sets hold, under the thresholds of each method."""
    assert seen.true is not None and seen.sizes is not None
    judged = {
        method: {
            **set_coverage(
                seen.true >= answer.thresholds.cpu().numpy()[seen.target],
                seen.sizes[:, n],
                seen.target,
                trained.train_counts,
                trained.config.data.shots,
            ),
            "always": int((answer.thresholds == -math.inf).sum()),
        }
        for n, (method, answer) in enumerate(sets.items())
    }
    by = next(iter(sets.values())).calibrated_by
    return {"alpha": ALPHA, "calibration": by, "methods": judged}


def _settle(
    trained: Trained, test_prior: TestPrior, splits: Splits, say: Callable[[str], None]
) -> None:
    """Settle the head anew as it was trained, and let classes join it again."""
    if trained.enrolment.changed:
        tensors, header = checkpoint.load(trained.path)
        trained.model.head = trained_head(trained, tensors, header["state"]["stage"])
    config = trained.config.model_copy(update={"test_prior": test_prior})
    threshold, seen = settle(trained.model, config, splits, trained.device, say, fit=False)
    trained.calibration = Calibration.of(seen)
    trained.threshold = take_up(trained.model.head, threshold, trained.enrolment)


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
            f"expected {counted(len(trained), 'name')} for {counted(len(trained), 'model')}, no "
            f"two the same, got {', '.join(names)}"
        )
    if test_prior is not None and not any(has_prior(each.model.head) for each in trained):
        raise ValueError(
            f"test_prior: {', '.join(names)} learned under no class prior that could be expected "
            "again"
        )
    results: list[Assessment] = []
    for each, name in zip(trained, names, strict=True):
        read = [r.splits for r in results if r.trained.config.data == each.config.data]
        result = assess(
            each,
            name=name,
            splits=read[0] if read else None,
            test_prior=test_prior,
            beside=trained,
        )
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

    Raises:
        FileExistsError: see `check_free`.
    """
    check_free(path)
    first, methods = results[0].splits, [_method_result(r) for r in results]
    if picture is not None:
        write_picture(picture, methods)
    joined = {
        f"classes of {r.name}": enrolled_line(r.summary["enrolled"])
        for r in results
        if "enrolled" in r.summary
    }
    return write_report(
        path,
        methods,
        class_names=first.class_names,
        train_counts=np.array(results[0].trained.train_counts),
        details={**(details or {}), **joined},
    )


def check_free(path: str | Path) -> None:
    """Raises FileExistsError where a report in `path` would write over what is no report of ours:
    the page, or the JSON beside it; or where a file is in place of its folder."""
    page = Path(path)
    if page.parent.is_file():
        raise FileExistsError(f"{page.parent} is a file; expected a folder")
    side = page.with_suffix(".json")
    try:
        said = json.loads(side.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = None
    ours = isinstance(said, dict) and {"methods", "samples", "shots"} <= said.keys()
    for file in (side, page):
        if not ours and file.exists() and not (file == page and MARK in _head(page)):
            raise FileExistsError(
                f"{file} is there, and is no report of ours: choose another folder"
            )


def _head(page: Path) -> str:
    with page.open(encoding="utf-8", errors="replace") as file:
        return file.read(1000)


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
        joined=result.class_names[len(result.splits.class_names) :],
    )


def _samples(result: Assessment, index: NDArray[np.int64]) -> list[Sample]:
    """The chosen test images with what the model made of them."""
    names = result.class_names
    inside = _inside(result, index)
    samples = []
    for n, i in enumerate(index.tolist()):
        closed = names[int(result.seen.pred[i])]
        samples.append(
            Sample(
                image=_pixels(result.splits, int(result.rows[i])),
                image_id=result.image_id(i),
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
    head, names = trained.model.head, result.class_names
    if not isinstance(head, OLTRHead) or len(index) == 0:
        return [{} for _ in index]
    places = [result.splits.locate(i) for i in result.rows[index].tolist()]
    pixels = torch.stack([images[row][0] for images, row in places])
    features = trained.model.features(network_input(pixels.to(trained.device))).float()
    out, scale = head.outputs(features), head.classifier.scale
    weight, which = head.most_recalled(features, min(top, len(names)))
    near, how_far = nearest_classes(head, features, out.logits, top)
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
