"""Twenty classes that join a trained head, against training again with everything and against the
nearest class mean: `python benchmarks/tables/enroll.py`, which trains what is not there yet.

`--sets`, `--seeds` and `--counts` choose; `--no-training` makes the table of the runs that are
there. A row of the table is the mean over the seeds that have it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from compare import RESULTS
from enroll_data import NEW, glyphs_unseen, icons_unseen
from enroll_runs import SETS, base, joined
from numpy.typing import NDArray
from runs import folder_of, splits_of, trained
from torch import Tensor

from oltr_ext import __version__, use_backend
from oltr_ext.config.schema import Config
from oltr_ext.data.icons import load_icons
from oltr_ext.data.pack import load_pack
from oltr_ext.engine.checkpoint import MODEL
from oltr_ext.engine.evaluate import Outputs, answers, stream
from oltr_ext.metrics import open_set_metrics
from oltr_ext.models import OLTRModel
from oltr_ext.serve.trained import Trained, load_trained

METHOD = "oltr-plus"
HEADINGS = {
    "new": "new",
    "old": "old",
    "auroc": "AUROC",
    "old out": "old rejected",
    "new out": "new rejected",
    "unknown out": "unknown rejected",
    "left out": "left out, rejected",
}
ROWS = ("before", "enrolled", "trained again", "nearest class mean")
Numbers = dict[str, float]


def features(model: OLTRModel, images: Any) -> tuple[Tensor, Tensor]:
    x, y = zip(*stream(model, images, torch.device("cpu")), strict=True)
    return torch.cat(x), torch.cat(y)


class Case:
    """A set's features by its base model: old test images, new ones to enrol and to judge by, and
    images of classes that stay unknown."""

    def __init__(self, name: str, base_model: Trained, config: Config) -> None:
        splits = splits_of(config.data)
        self.old = features(base_model.model, splits.test)
        self.train = features(base_model.model, splits.plain)
        self.classes = splits.num_classes
        unseen = glyphs_unseen() if name == "glyphs" else icons_unseen()
        if name == "glyphs":
            assert splits.open_test is not None
            self.unknown = features(base_model.model, splits.open_test)[0]
            pixels = torch.from_numpy(load_pack("glyphs-2000").images)[:, None]
            rows = np.concatenate([*unseen.enrol, *unseen.judge])
            with torch.no_grad():
                x = base_model.model.features(pixels[rows].float() / 255).float()
        else:
            assert splits.open_val is not None and splits.open_test is not None
            self.unknown = features(base_model.model, splits.open_val)[0]
            x = features(base_model.model, splits.open_test)[0]
            rows = load_icons().rows("open_test")
        self.unseen, self._x, self._place = unseen, x, {int(r): n for n, r in enumerate(rows)}

    def of(self, rows: NDArray[np.int64]) -> Tensor:
        return self._x[[self._place[int(row)] for row in rows]]

    def judged(self) -> tuple[Tensor, Tensor]:
        """Images to judge by: old, then new."""
        new = self.of(np.concatenate(self.unseen.judge))
        label = torch.arange(NEW).repeat_interleave(torch.tensor([*map(len, self.unseen.judge)]))
        old, target = self.old
        return torch.cat([old, new]), torch.cat([target, self.classes + label])


@torch.no_grad()
def enrolled(model: Trained, case: Case, count: int) -> Numbers:
    """Of the head with the new classes, which is then what it was."""
    head = model.model.head
    if count:
        names = [name for name in case.unseen.names for _ in range(count)]
        head.enroll(case.of(case.unseen.taken(count)), names)
    x, y = case.judged()
    there = torch.where(y < head.num_classes, y, -1)  # before, the new classes are not
    known = Outputs.join(
        [answers(head, a, b) for a, b in zip(head.pieces(x), head.pieces(there), strict=True)]
    )
    known.target = y.numpy()
    strangers = answers(head, case.unknown, torch.full((len(case.unknown),), -1))
    if count:
        head.remove(range(case.classes, case.classes + NEW))
    found = numbers(known, strangers, case.classes, model.threshold, count > 0)
    return {**found, "left out": left_out(model, case, count)} if count > 1 else found


def left_out(model: Trained, case: Case, count: int) -> float:
    """Percent of the images to enrol that are rejected where the others of the class made it."""
    head, scores = model.model.head, []
    for out in range(count):
        rows = [np.delete(rows[:count], out) for rows in case.unseen.enrol]
        head.enroll(
            case.of(np.concatenate(rows)),
            [name for name in case.unseen.names for _ in range(count - 1)],
        )
        x = case.of(np.array([rows[out] for rows in case.unseen.enrol]))
        there = answers(head, x, torch.zeros(len(x), dtype=torch.int64))
        scores.append(there.scores[model.threshold["score"]])
        head.remove(range(case.classes, case.classes + NEW))
    return round(100 * float((np.concatenate(scores) < model.threshold["value"]).mean()), 2)


def again(model: Trained, config: Config, case: Case, unknown: Any) -> Numbers:
    """Of the model that was trained with everything, whose features are others."""
    x, y = features(model.model, splits_of(config.data).test)
    known, head = answers(model.model.head, x, y), model.model.head
    z = features(model.model, unknown)[0]
    strangers = answers(head, z, torch.full((len(z),), -1))
    return numbers(known, strangers, case.classes, model.threshold, True)


def nearest_mean(case: Case, count: int) -> Numbers:
    """By the largest cosine with the mean of a class's features, on the base model's."""
    x, y = case.train
    sums = torch.zeros(case.classes, x.shape[1]).index_add_(0, y, x)
    new = torch.stack([case.of(rows[:count]).mean(dim=0) for rows in case.unseen.enrol])
    rows = F.normalize(torch.cat([sums, new]), dim=1)

    def of(x: Tensor, y: Tensor) -> Outputs:
        best = (F.normalize(x, dim=1) @ rows.t()).max(dim=1)
        return Outputs(best.indices.numpy(), y.numpy(), {"cosine": best.values.double().numpy()})

    strangers = of(case.unknown, torch.full((len(case.unknown),), -1))
    threshold = {"score": "cosine", "value": None}
    return numbers(of(*case.judged()), strangers, case.classes, threshold, True)


def numbers(
    known: Outputs, strangers: Outputs, classes: int, threshold: dict[str, Any], joined: bool
) -> Numbers:
    """Percent. Scores are by the one that was chosen in training, rejections at its threshold."""
    right, old = known.pred == known.target, known.target < classes
    name, value = threshold["score"], threshold["value"]
    kept = np.ones(len(old), bool) if joined else old
    both = np.concatenate([known.scores[name][kept], strangers.scores[name]])
    target = np.concatenate([known.target[kept], strangers.target])
    found = {"old": right[old].mean(), "auroc": open_set_metrics(both, target)["auroc"]}
    if joined:
        found["new"] = right[~old].mean()
    if value is not None:
        below = known.scores[name] < value
        found["old out"], found["new out"] = below[old].mean(), below[~old].mean()
        found["unknown out"] = (strangers.scores[name] < value).mean()
    return {k: round(100 * float(v), 2) for k, v in found.items()}


def measured(name: str, seed: int, counts: list[int], folder: Path, train: bool) -> dict[str, Any]:
    """Every row of a set and seed that can be had."""
    own, config = folder / "enroll", base(name, METHOD, seed, folder / "enroll")
    run = folder_of(config, folder)
    if not train and not (run / MODEL).exists():
        return {}
    if train:
        run, _ = trained(config, folder)
    model = load_trained(run / MODEL)
    case = Case(name, model, config)
    splits = splits_of(config.data)
    unknown = splits.open_test if name == "glyphs" else splits.open_val
    rows: dict[str, Any] = {"before": {"0": enrolled(model, case, 0)}}
    for count in counts:
        settings = joined(name, METHOD, seed, own, count)
        other = folder_of(settings, folder)
        if train or (other / "seconds.json").exists():
            other, _ = trained(settings, folder)
            told = again(load_trained(other / MODEL), settings, case, unknown)
            rows.setdefault("trained again", {})[str(count)] = told
        rows.setdefault("enrolled", {})[str(count)] = enrolled(model, case, count)
        rows.setdefault("nearest class mean", {})[str(count)] = nearest_mean(case, count)
    return rows


def mean(found: list[Numbers]) -> str:
    def cell(key: str) -> str:
        values = [row[key] for row in found if key in row]
        return f"{np.mean(values):.1f}" if values else "-"

    return " | ".join(cell(key) for key in HEADINGS)


def markdown(results: dict[str, Any]) -> str:
    lines = ["# Twenty classes that join a trained head", "", NOTES, ""]
    for name, seeds in results["sets"].items():
        lines += [f"## {SETS[name].name}", ""]
        lines += [f"| images of each |  | seeds | {' | '.join(HEADINGS.values())} |"]
        lines += ["| ---: | --- | ---: |" + " ---: |" * len(HEADINGS)]
        counts = sorted({int(c) for rows in seeds.values() for r in rows.values() for c in r})
        for count in map(str, counts):
            made = {row: [s for s in seeds if count in seeds[s].get(row, ())] for row in ROWS}
            for shown in sorted({tuple(made[row]) for row in ROWS if made[row]}, reverse=True):
                for row in (row for row in ROWS if {*shown} <= {*made[row]}):
                    found = [seeds[seed][row][count] for seed in shown]
                    lines += [f"| {count} | {row} | {', '.join(shown)} | {mean(found)} |"]
        lines += [""]
    missing = [s.name for n, s in SETS.items() if n not in results["sets"]]
    if missing:
        lines += [f"Not run: {', '.join(missing)}.", ""]
    return "\n".join(lines)


NOTES = """\
`python benchmarks/tables/enroll.py`; `oltr-plus`, in percent. The base model has not seen the
twenty classes. *enrolled*: `head.enroll`, and everything else as it was. *trained again*: the
same images in the training set, same settings and seed; its threshold is its own. *nearest class
mean*: by cosine, on the base model's features. The images that are judged are neither enrolled
nor trained on. Scores are by the one that was chosen in the base model's training, and so is the
threshold, which keeps 95 % of its validation images. On the icons the new classes are those of
its open test, ten images each, of which five are judged: there are none for ten. What stays
unknown are the classes of its open validation, by which the score was chosen. The rule of
enrolment was found on the seeds 0 and 1 of both of these sets. Where training again was not run for
all seeds, rows over those that have it follow. *left out*: of the images to enrol, each scored
where the others of its class had made it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 5, 10])
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--no-training", action="store_true")
    args = parser.parse_args()
    sets: dict[str, Any] = {}
    with use_backend("native"):
        for name in args.sets:
            counts = [c for c in args.counts if c in SETS[name].counts]
            for seed in args.seeds:
                rows = measured(name, seed, counts, args.runs, not args.no_training)
                if rows:
                    sets.setdefault(name, {})[str(seed)] = rows
                    print(name, seed, json.dumps(rows), flush=True)
    results = {
        "versions": f"oltr_ext {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "date": datetime.date.today().isoformat(),
        "sets": sets,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "enroll.json").write_text(json.dumps(results) + "\n")
    (RESULTS / "enroll.md").write_text(markdown(results))
    print(RESULTS / "enroll.md")


if __name__ == "__main__":
    main()
