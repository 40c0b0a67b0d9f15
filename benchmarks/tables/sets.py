"""Prediction sets of trained runs beside MAPIE's on the same probabilities: `python
benchmarks/tables/sets.py features icons letters characters`, and `--runs` where they are. What is
not trained yet is trained. MAPIE is in `benchmarks/requirements.txt`; where it is missing, so are
its rows."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import EVERY, RESULTS, Row, Table, configured
from embedded import OVERRIDES
from letters import table as letters_table
from numpy.typing import NDArray
from runs import SLOW, splits_of, trained
from sklearn.base import BaseEstimator, ClassifierMixin

from oltr_ext.engine.evaluate import stream
from oltr_ext.engine.sets import Calibration, thresholds_of
from oltr_ext.metrics import set_coverage
from oltr_ext.nn.sets import SET_METHODS, set_sizes, true_log_probability
from oltr_ext.serve.trained import Trained, load_trained

ALPHAS = (0.05, 0.1, 0.2)
SPLITS = 20
FIGURES = ("coverage", "few", "macro", "size")
METHODS = tuple(row for row in EVERY if row.name in ("plain", "oltr-plus"))
Found = dict[str, float]
Part = tuple[torch.Tensor, torch.Tensor]  # logits (N, C) and labels (N,)


def tables() -> dict[str, Callable[[], tuple[Table, int]]]:
    """Each data set, and the number of seeds."""
    features = Table(
        "features", "ImageNet features of the icons", "embeddings", (), METHODS, OVERRIDES
    )
    characters = Table("characters", "2,000 characters", "glyphs-2000", (), METHODS, SLOW)
    return {
        "features": lambda: (features, 5),
        "icons": lambda: (Table("icons", "The embedded icons", "icons", (), METHODS), 2),
        "letters": lambda: (letters_table("letters", "192 letters", (), METHODS), 2),
        "characters": lambda: (characters, 1),
    }


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose rows are its probabilities already."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes

    def fit(self, X: Any, y: Any = None) -> Given:
        self.classes_ = np.arange(self.classes)
        return self

    def predict_proba(self, X: Any) -> NDArray[Any]:
        return np.asarray(X)

    def predict(self, X: Any) -> NDArray[Any]:
        return np.asarray(X).argmax(1)


def mapie_sets(score: str, alpha: float, here: Part, there: Part) -> NDArray[np.bool_] | None:
    """(N, C), or None where MAPIE raises an error, as RAPS does for a class of one row."""
    from mapie.classification import SplitConformalClassifier

    p, q = (logits.double().softmax(1).numpy() for logits, _ in (here, there))
    model = SplitConformalClassifier(
        Given(p.shape[1]).fit(p),
        confidence_level=1 - alpha,
        conformity_score=score,
        prefit=True,
        random_state=0,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.conformalize(p, here[1].numpy())
            return np.asarray(model.predict_set(q)[1][:, :, 0])
    except ValueError as error:
        print(f"mapie {score} at {alpha}: {str(error)[:100]}", file=sys.stderr)
        return None


def peers() -> tuple[str, ...]:
    try:
        import mapie
    except ImportError:
        return ()
    return tuple(f"mapie {mapie.__version__} {score}" for score in ("lac", "aps", "raps"))


def figures(model: Trained, here: Part, there: Part) -> dict[str, dict[str, Found]]:
    """By alpha and method, of sets calibrated on some rows and judged on others."""
    logits, target = there
    true = true_log_probability(logits, target)
    held = Calibration(true_log_probability(*here), here[1])

    def judged(covered: Any, sizes: Any) -> Found:
        shots = model.config.data.shots
        found = set_coverage(covered, sizes, target.numpy(), model.train_counts, shots)
        return {key: round(found[key], 5) for key in FIGURES}

    result: dict[str, dict[str, Found]] = {}
    for alpha in ALPHAS:
        row: dict[str, Found] = {}
        for method in SET_METHODS:
            lowest = thresholds_of(
                method, alpha, held, model.model.head, model.config, model.train_counts
            )
            row[method] = judged(
                (true >= lowest[target]).numpy(), set_sizes(logits, lowest[None])[:, 0].numpy()
            )
        for name in peers():
            inside = mapie_sets(name.split()[-1], alpha, here, there)
            if inside is not None:
                row[name] = judged(inside[np.arange(len(target)), target.numpy()], inside.sum(1))
        result[str(alpha)] = row
    return result


def measure(run: Path, splits: int) -> dict[str, Any]:
    """A run's sets, calibrated on validation and judged on test images; and the mean over random
    splits of both together, whose rows are exchangeable as those of two sources are not."""
    model = load_trained(run, device="cpu")
    data = splits_of(model.config.data)
    parts: list[Part] = []
    with torch.no_grad():
        for images in (data.val, data.test):
            pairs = [
                (model.model.head.outputs(features).logits, target)
                for features, target in stream(model.model, images, model.device)
            ]
            logits, target = map(torch.cat, zip(*pairs, strict=True))
            parts.append((logits[target >= 0], target[target >= 0]))
    both = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    number, draw, mixed = len(parts[0][1]), torch.Generator().manual_seed(0), []
    for _ in range(splits):
        order = torch.randperm(len(both[1]), generator=draw)
        here, there = order[:number], order[number:]
        mixed.append(
            figures(model, (both[0][here], both[1][here]), (both[0][there], both[1][there]))
        )
    rows = np.bincount(parts[0][1], minlength=len(model.train_counts))
    return {
        "classes": len(model.train_counts),
        "calibration": number,
        "least of a class": int(rows.min()),
        "test": len(parts[1][1]),
        "held out": figures(model, *parts),
        "resplit": mean(mixed),
    }


def mean(found: list[dict[str, dict[str, Found]]]) -> dict[str, dict[str, Found]]:
    """Over runs or splits, of those that have the row."""
    result: dict[str, dict[str, Found]] = {}
    for alpha in found[0]:
        names = dict.fromkeys(name for each in found for name in each[alpha])
        result[alpha] = {
            name: {
                key: float(
                    np.mean([each[alpha][name][key] for each in found if name in each[alpha]])
                )
                for key in next(each[alpha][name] for each in found if name in each[alpha])
            }
            for name in names
        }
    return result


def markdown(results: dict[str, Any]) -> str:
    lines = [
        "# Prediction sets: how often they hold the true class, and how many classes they hold",
        "",
    ]
    lines += [
        "Of known test images, in percent: covered overall, of few-shot classes (mean over them), "
        "by class (mean over all), and the mean number of classes in a set, by what share may be "
        "missed. `held out`: calibrated on validation images, judged on test images. `resplit`: "
        f"the mean of {SPLITS} random splits of both together, of as many calibration rows, where "
        "nothing but the number of rows stands between coverage and 1 - alpha. MAPIE has the same "
        "probabilities in float64, and its LAC is `marginal`; its RAPS, which sets a fifth of the "
        "calibration rows aside, raises an error where that is less than a row a class, and is "
        "missing there. Held out, most cover less than asked: test images are by other hands or "
        "in other typefaces than validation's, on letters without their tail, and settings were "
        "chosen by validation images of the icons.",
        "",
    ]
    for about in results.values():
        runs = about["runs"]
        for method in dict.fromkeys(run["method"] for run in runs):
            mine = [run for run in runs if run["method"] == method]
            n, m = mine[0]["calibration"], mine[0]["test"]
            off = {a: 100 * np.sqrt(a * (1 - a) * (1 / (n + 2) + 1 / m)) for a in ALPHAS}
            deviation = ", ".join(f"{off[a]:.1f} at {a}" for a in ALPHAS)
            lines += [
                f"## {about['title']}, `{method}`",
                "",
                f"{mine[0]['classes']} classes, {n} calibration images (of a class at least "
                f"{mine[0]['least of a class']}), {m} test images, {len(mine)} seeds. By these "
                f"numbers alone, coverage of one run has a deviation of {deviation} points.",
                "",
            ]
            for kind in ("held out", "resplit"):
                found = mean([run[kind] for run in mine])
                head = " | ".join(
                    f"{a:g}: covered | few | by class | classes" for a in map(float, found)
                )
                lines += [f"| {kind} | {head} |", f"| --- |{' ---: |' * 4 * len(found)}"]
                names = dict.fromkeys(name for each in found.values() for name in each)
                for name in names:
                    cells = [
                        number(each.get(name), key) for each in found.values() for key in FIGURES
                    ]
                    lines.append(f"| `{name}` | {' | '.join(cells)} |")
                lines.append("")
    return "\n".join(lines)


def number(found: Found | None, key: str) -> str:
    if found is None:
        return "-"
    return f"{found[key]:.2f}" if key == "size" else f"{100 * found[key]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Prediction sets beside MAPIE's")
    parser.add_argument("sets", nargs="+", choices=tables())
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--methods", nargs="+", default=[row.name for row in METHODS])
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "sets.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.sets:
        table, seeds = tables()[name]()
        runs = []
        for row in (row for row in table.rows if row.name in args.methods):
            for seed in range(seeds):
                run, _ = trained(configured(table, Row(row.name, row.method), seed), args.runs)
                runs.append({"method": row.name, "seed": seed, **measure(run, SPLITS)})
                print(name, row.name, seed, file=sys.stderr, flush=True)
        results[name] = {"title": table.title, "runs": runs}
        file.write_text(json.dumps(results, indent=1) + "\n")
        file.with_suffix(".md").write_text(markdown(results))


if __name__ == "__main__":
    main()
