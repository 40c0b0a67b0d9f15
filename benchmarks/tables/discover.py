"""What `oltr discover` finds among open test classes, and what naming it is worth:

    python benchmarks/tables/discover.py             # all sets, or `--sets characters`
    python benchmarks/tables/discover.py --large     # time and memory of 100,000, alone

Takes up the runs of `icons_scores.py`, `icons_embedded.py` and `glyphs_2000.py`, or trains them.
Every choice in `oltr_ext.serve.discover_groups` was made on open validation classes of the icons,
which are others.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from compare import RESULTS, Row, Table, configured
from embedded import OVERRIDES, embed_icons
from numpy.typing import NDArray
from runs import SLOW, splits_of, trained
from sklearn.cluster import HDBSCAN, KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from oltr_ext import use_backend
from oltr_ext.engine.evaluate import stream
from oltr_ext.serve.discover import BELIEVED, discover
from oltr_ext.serve.discover_groups import group_features, known_means
from oltr_ext.serve.trained import Trained, load_trained

TITLE = "What the unknown is: open test classes, grouped"
SETS = {  # configuration, overrides, seeds
    "icons": ("icons", (), (0, 1, 2)),
    "ImageNet features": ("embeddings", OVERRIDES, (0, 1, 2)),
    "characters": ("glyphs-2000", SLOW, (0,)),
}
METHODS, FOLDS = ("plain", "oltr-plus"), 5
LARGE, WIDTH, KINDS = 100_000, 256, 2000
Labels = NDArray[np.int64]


@dataclass
class Pool:
    """Features of unit length, and what they are: from `first_open` on a stranger's class."""

    z: NDArray[np.float64]
    truth: Labels
    fold: Labels


def pools(model: Trained) -> tuple[dict[str, Pool], Pool, Pool, int]:
    """What is to be grouped, by name; then all strangers and all known test images."""
    splits = splits_of(model.config.data)
    assert splits.open_test is not None and splits.open_names is not None
    first_open = len(splits.class_names)
    names = sorted(set(splits.open_names))
    strangers = first_open + np.array([names.index(name) for name in splits.open_names])
    found, kept = [], []
    for images, truth in ((splits.open_test, strangers), (splits.test, splits.test.labels)):
        x = torch.cat([rows for rows, _ in stream(model.model, images, model.device)])
        rejected = (model.model.head.predict(x)[0] < 0).numpy()
        z = F.normalize(x.double(), dim=1).numpy()
        found.append(Pool(z, np.asarray(truth), _folds(np.asarray(truth))))
        kept.append(rejected)
    both = [
        np.concatenate([getattr(p, key)[r] for p, r in zip(found, kept, strict=True)])
        for key in ("z", "truth", "fold")
    ]
    return {"rejected": Pool(*both), "every stranger": found[0]}, found[0], found[1], first_open


def _folds(truth: Labels) -> Labels:
    """Each class spread evenly over the folds."""
    order = np.argsort(truth, kind="stable")
    fold = np.empty_like(order)
    fold[order] = np.arange(len(order)) % FOLDS
    return fold


def ours(z: NDArray[np.float64], truth: Labels, known: torch.Tensor) -> tuple[Labels, int]:
    found = group_features(torch.from_numpy(z), known)
    label = found.group - 1
    sure = [found.sure[label == g].mean() for g in range(label.max(initial=-1) + 1)]
    return label, sum(s >= BELIEVED for s in sure)


def k_means(z: NDArray[np.float64], truth: Labels, known: torch.Tensor) -> tuple[Labels, int]:
    count = len(set(truth.tolist()))
    return KMeans(count, n_init=10, random_state=0).fit_predict(z).astype(np.int64), count


def hdbscan(z: NDArray[np.float64], truth: Labels, known: torch.Tensor) -> tuple[Labels, int]:
    label = HDBSCAN(copy=True).fit_predict(z).astype(np.int64)
    return label, int(label.max()) + 1


WAYS: dict[str, Callable[..., tuple[Labels, int]]] = {
    "oltr discover": ours,
    "k-means, true number": k_means,
    "HDBSCAN, defaults": hdbscan,
}


def agreement(label: Labels, truth: Labels) -> dict[str, float]:
    """Of labels with -1 for none: purity of what is grouped, the rest with each alone."""
    inside = label >= 0
    largest = [np.bincount(truth[label == g]).max() for g in set(label[inside].tolist())]
    alone = np.where(inside, label, len(label) + np.arange(len(label)))
    return {
        "grouped": float(inside.mean()),
        "purity": float(sum(largest) / max(inside.sum(), 1)),
        "NMI": float(normalized_mutual_info_score(truth, alone)),
        "ARI": float(adjusted_rand_score(truth, alone)),
        "groups": len(largest),
    }


def means_of(pool: Pool, rows: Labels, label: Labels, first_open: int) -> dict[int, Any]:
    """New classes: each group called what most of it is, those of one name joined."""
    named: dict[int, list[Any]] = {}
    for group in sorted(set(label[label >= 0].tolist())):
        inside = rows[label == group]
        name = int(np.bincount(pool.truth[inside]).argmax())
        if name >= first_open:
            named.setdefault(name, []).append(pool.z[inside])
    return {name: np.concatenate(parts).mean(axis=0) for name, parts in named.items()}


def right(new: dict[int, Any], known: NDArray[np.float64], asked: Pool, fold: int) -> float:
    """Share named right of one fold by the nearest mean at unit length, old classes and new."""
    means = np.concatenate([known, *(mean[None] for mean in new.values())])
    names = np.array([*range(len(known)), *new])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    part = asked.fold == fold
    return float((names[(asked.z[part] @ means.T).argmax(axis=1)] == asked.truth[part]).mean())


def judged(model: Trained) -> dict[str, Any]:
    each, strangers, tests, first_open = pools(model)
    known = known_means(model.model.head.bank)
    old = known.numpy()
    results: dict[str, Any] = {}
    for name, pool in each.items():
        row: dict[str, Any] = {
            "images": len(pool.z),
            "unknown": float((pool.truth >= first_open).mean()),
            "kinds": len(set(pool.truth.tolist())),
            "unknown kinds": len(set(pool.truth[pool.truth >= first_open].tolist())),
            "ways": {},
        }
        for way, run in WAYS.items():
            label, believed = run(pool.z, pool.truth, known)
            found = {**agreement(label, pool.truth), "believed": int(believed)}
            row["ways"][way] = found
        gained: dict[str, list[tuple[float, float]]] = {}
        for fold in range(FOLDS):
            rows = np.flatnonzero(pool.fold != fold)
            labels = {w: run(pool.z[rows], pool.truth[rows], known)[0] for w, run in WAYS.items()}
            labels["true labels of these"] = pool.truth[rows]
            odd = labels["oltr discover"]
            labels["oltr discover, odd ones named too"] = np.where(
                odd >= 0, odd, len(pool.z) + np.arange(len(odd))
            )
            new = {w: means_of(pool, rows, label, first_open) for w, label in labels.items()}
            every = np.flatnonzero(strangers.fold != fold)
            truth = strangers.truth[every]
            new["true labels of every stranger"] = means_of(strangers, every, truth, first_open)
            new["nothing enrolled"] = {}
            for way, means in new.items():
                pair = (right(means, old, strangers, fold), right(means, old, tests, fold))
                gained.setdefault(way, []).append(pair)
        row["enrolled"] = {w: np.mean(pairs, axis=0).tolist() for w, pairs in gained.items()}
        results[name] = row
    return results


def large() -> dict[str, Any]:
    """Wall and processor seconds, and the peak of resident memory, of a whole call."""
    config = configured(Table("icons", "", "icons", (0,), ()), Row("plain", "plain"), 0)
    run, _ = trained(config, Path("runs/tables"))
    model = load_trained(run, device="cpu")
    model.model.head.set_threshold(float("inf"), "max_softmax")  # all are rejected
    draw = np.random.default_rng(0)
    middle = np.maximum(draw.normal(size=(KINDS, WIDTH)), 0).astype(np.float32)
    kind = draw.integers(KINDS, size=LARGE)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.lib.format.open_memmap(
            f"{folder}/rows.npy", "w+", dtype=np.float32, shape=(LARGE, WIDTH)
        )
        for first in range(0, LARGE, 1000):
            part = slice(first, first + 1000)
            noise = draw.normal(size=(1000, WIDTH)).astype(np.float32)
            rows[part] = np.maximum(middle[kind[part]] + 0.5 * noise, 0)
        del rows
        clock, work = time.perf_counter(), time.process_time()
        found = discover(model, f"{folder}/rows.npy", out=f"{folder}/out")
        took = time.perf_counter() - clock, time.process_time() - work
    assert len(found) == LARGE
    return {
        "images": LARGE,
        "width": WIDTH,
        "kinds": KINDS,
        "seconds": took[0],
        "processor seconds": took[1],
        "threads": torch.get_num_threads(),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **agreement(found.group - 1, kind),
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--large", action="store_true", help="measure 100,000 and nothing else")
    args = parser.parse_args()
    file = RESULTS / "discover.json"
    made = json.loads(file.read_text()) if file.exists() else {}
    if args.large:
        made["large"] = large()
    else:
        made["rows"] = [row for row in made.get("rows", []) if row["set"] not in args.sets]
        for name in args.sets:
            config, overrides, seeds = SETS[name]
            if config == "embeddings":
                embed_icons()
            for method in METHODS:
                table = Table(name, "", config, seeds, (), overrides)
                for seed in seeds:
                    run, _ = trained(configured(table, Row(method, method), seed), args.runs)
                    found = judged(load_trained(run, device="cpu"))
                    made["rows"].append({"set": name, "method": method, "seed": seed, **found})
                    print(name, method, seed, file=sys.stderr, flush=True)
        made["rows"].sort(key=lambda row: list(SETS).index(row["set"]))  # stable
        made["date"] = datetime.date.today().isoformat()
    from discover_page import markdown

    file.write_text(json.dumps(made) + "\n")
    file.with_suffix(".md").write_text(markdown(TITLE, made))


if __name__ == "__main__":
    with use_backend("native"):
        main()
