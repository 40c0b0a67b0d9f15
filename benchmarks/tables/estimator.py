"""`OLTRClassifier` beside scikit-learn's classifiers, each with its own rejection:
`python benchmarks/tables/estimator.py digits icons letters clusters`, and `features` where
`embedded.py` has made them, `characters` where `oltr data make glyphs` has. A set that is named is
measured anew, row by row; the table is of all that have been. Length and height of the features
were chosen by digits and icons, everything else by rows held out of the icons' training, other
digits, other characters and other clusters. `estimator_joined.py` adds classes that join."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import letters_data
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import (
    KNeighborsClassifier,
    NearestCentroid,
    NearestNeighbors,
    RadiusNeighborsClassifier,
)
from threadpoolctl import threadpool_limits

from oltr_ext import OLTRClassifier
from oltr_ext.data.icons import load_icons
from oltr_ext.data.pack import SPLITS, load_pack
from oltr_ext.metrics import fitting_bounds, open_set_metrics, oscr, shot_accuracy

OUT = Path(__file__).parent.parent / "results/tables/estimator.json"
JOINED = OUT.with_name("estimator_joined.json")
FEATURES = Path("runs/tables/icons_embedded")
Floats = NDArray[np.float32]


class Set(NamedTuple):
    train: tuple[Floats, NDArray[np.int64]]
    test: tuple[Floats, NDArray[np.int64]]
    strangers: Floats


def digits(seed: int) -> Set:
    """Eight digits of 100 to 4 images, the two others strangers; who is who by the seed."""
    pixels, label = load_digits(return_X_y=True)
    pixels, draw = pixels.astype(np.float32), np.random.default_rng(seed)
    mixed = draw.permutation(len(label))
    pixels, label = pixels[mixed], label[mixed]
    order, sizes = draw.permutation(10), np.geomspace(100, 4, 8).round().astype(int)
    places = [np.flatnonzero(label == c) for c in order[:8]]
    train = np.concatenate([place[:n] for place, n in zip(places, sizes, strict=True)])
    test = np.concatenate([place[-70:] for place in places])
    name = np.argsort(order)
    strangers = pixels[np.isin(label, order[8:])]
    return Set((pixels[train], name[label[train]]), (pixels[test], name[label[test]]), strangers)


def _pack(pack: Any) -> Set:
    def part(name: str) -> tuple[Floats, NDArray[np.int64]]:
        rows = pack.split_index == SPLITS.index(name)
        flat = pack.images[rows].reshape(rows.sum(), -1).astype(np.float32) / 255
        return flat, pack.class_index[rows]

    return Set(part("train"), part("test"), part("open_test")[0])


def icons(seed: int) -> Set:
    """The pixels of the embedded icons."""
    return _pack(load_icons())


def letters(seed: int) -> Set:
    """The pixels of letters of five alphabets."""
    return _pack(load_pack(str(letters_data.packed())))


def characters(seed: int) -> Set:
    """The pixels of 2,000 characters."""
    return _pack(load_pack("glyphs-2000"))


def features(seed: int) -> Set:
    """ImageNet features of the icons."""

    def part(name: str) -> tuple[Floats, NDArray[np.int64]]:
        rows = np.load(FEATURES / f"{name}_features.npy").astype(np.float32)
        return rows, np.load(FEATURES / f"{name}_labels.npy").astype(np.int64)

    return Set(part("train"), part("test"), part("open_test")[0])


def clusters(seed: int) -> Set:
    """100,000 drawn rows of 1,000 classes, for the times."""
    draw = np.random.default_rng(seed)
    centre = draw.normal(size=(1100, 64)).astype(np.float32)

    def part(label: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
        noise = draw.normal(scale=1.2, size=(len(label), 64)).astype(np.float32)
        return centre[label] + noise, label

    size = np.geomspace(600, 4, 1000)
    size = (size * 100_000 / size.sum()).round().astype(int).clip(2)
    strangers = part(1000 + np.arange(1000) % 100)[0]
    return Set(part(np.repeat(np.arange(1000), size)), part(np.arange(2000) % 1000), strangers)


SETS: dict[str, tuple[Callable[[int], Set], int]] = {
    "digits": (digits, 5),
    "icons": (icons, 1),
    "features": (features, 1),
    "letters": (letters, 1),
    "characters": (characters, 1),
    "clusters": (clusters, 1),
}
LIKELIEST = "probability of its class"


def _radius(rows: Floats) -> float:
    """In which 95 % of the training rows have another."""
    some = rows[np.random.default_rng(0).permutation(len(rows))[:2000]]
    near = NearestNeighbors(n_neighbors=2).fit(rows).kneighbors(some)[0][:, 1]
    return float(np.quantile(near, 0.95))


def classifiers(rows: Floats) -> Iterator[tuple[str, str, Any, Callable[[Any, Any], Any]]]:
    """Name, what it rejects by, the estimator, and that score of rows."""

    def likeliest(it: Any, x: Any) -> Any:
        return it.predict_proba(x).max(1)

    def centroid(it: Any, x: Any) -> Any:
        return -NearestNeighbors(n_neighbors=1).fit(it.centroids_).kneighbors(x)[0][:, 0]

    def neighbour(it: Any, x: Any) -> Any:
        return -it.kneighbors(x, n_neighbors=1)[0][:, 0]

    def within(it: Any, x: Any) -> Any:
        return np.array([len(near) for near in it.radius_neighbors(x)[1]])

    def own(it: Any, x: Any) -> Any:
        return it.score_samples(x)

    yield "OLTRClassifier", "`score_samples`", OLTRClassifier(random_state=0, outlier_label=-1), own
    yield "LogisticRegression", LIKELIEST, LogisticRegression(), likeliest
    balanced = LogisticRegression(class_weight="balanced")
    yield "LogisticRegression, balanced", LIKELIEST, balanced, likeliest
    yield "LinearDiscriminantAnalysis", LIKELIEST, LinearDiscriminantAnalysis(), likeliest
    yield "NearestCentroid", "distance to its centroid", NearestCentroid(), centroid
    yield "KNeighborsClassifier", "distance to the nearest row", KNeighborsClassifier(), neighbour
    one = KNeighborsClassifier(n_neighbors=1)
    yield "KNeighborsClassifier of one", "distance to the nearest row", one, neighbour
    radius = RadiusNeighborsClassifier(_radius(rows), outlier_label=-1)
    yield "RadiusNeighborsClassifier", "rows within its radius", radius, within


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """TimeoutError between two steps of an optimiser once they have been used."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def measure(data: Set, it: Any, score: Callable[[Any, Any], Any], most: float) -> dict[str, float]:
    (rows, label), (asked, truth) = data.train, data.test
    counts, begin = np.bincount(label), time.process_time()
    try:
        with limit(most):
            it.fit(rows, label)
    except TimeoutError:
        return {"fit_over": time.process_time() - begin}
    fit, begin = time.process_time() - begin, time.process_time()
    answer = it.predict(asked)
    took = time.process_time() - begin
    known, strange = score(it, asked), score(it, data.strangers)
    found: dict[str, float] = {}
    if isinstance(it, OLTRClassifier):
        found["kept"] = float((answer != -1).mean())
        found["rejected"] = float((it.predict(data.strangers) == -1).mean())
        it.set_params(outlier_label=None)
        answer = it.predict(asked)  # the closed answer, for the accuracies
    bounds = fitting_bounds(counts)
    shot = shot_accuracy(answer, truth, counts, bounds or (30, 10))
    everything = np.concatenate([known, strange])
    target = np.concatenate([truth, np.full(len(strange), -1)])
    pred = np.concatenate([answer.clip(0), np.zeros(len(strange), np.int64)])
    return {
        "overall": float(shot["overall"]),
        "few": float(shot["few"]),
        "auroc": open_set_metrics(everything, target)["auroc"],
        "oscr": oscr(everything, pred, target).area,
        "fit": fit,
        "predict": took,
        **found,
    }


def main(names: list[str], only: list[str], most: float) -> None:
    for name in names:
        make, seeds = SETS[name]
        datas = [make(seed) for seed in range(seeds)]
        rows, label = datas[0].train
        listed = list(zip(*[classifiers(data.train[0]) for data in datas], strict=True))
        for each in listed:
            method, by = each[0][:2]
            if only and method not in only:
                continue
            told = []
            for data, (_, _, it, score) in zip(datas, each, strict=True):
                told.append(measure(data, it, score, most))
                print(name, method, {k: round(v, 3) for k, v in told[-1].items()}, flush=True)
            held = json.loads(OUT.read_text()) if OUT.exists() else {}
            methods = held.get(name, {}).get("methods", {}) | {method: {"by": by, "seeds": told}}
            held[name] = {
                "about": make.__doc__.splitlines()[0] if make.__doc__ else name,
                "rows": len(rows),
                "width": rows.shape[1],
                "counts": [int(np.bincount(label).max()), int(np.bincount(label).min())],
                "classes": int(label.max()) + 1,
                "asked": len(datas[0].test[0]),
                "methods": {it[0][0]: methods[it[0][0]] for it in listed if it[0][0] in methods},
            }
            held = {each: held[each] for each in SETS if each in held}
            OUT.write_text(json.dumps(held, indent=1) + "\n")
            write()


def write() -> None:
    """The table, of what has been measured."""
    text = table(json.loads(OUT.read_text()))
    if JOINED.exists():
        text += joined(json.loads(JOINED.read_text()))
    OUT.with_suffix(".md").write_text(text)


def joined(held: dict[str, Any]) -> str:
    keys = ("old", "new", "auroc old", "auroc new", "kept old", "kept new")
    text = (
        "\n## Classes that join\n\n`python benchmarks/tables/estimator_joined.py`. Ten classes, "
        "five rows each, that the first `fit` has not seen; means and deviations over which ten "
        "and which rows. Test rows of the old and of the new classes: accuracy, AUROC against "
        "strangers, and share scoring at least `offset_`; seconds of the call.\n"
    )
    for each in held.values():
        text += (
            f"\n### {each['about']}\n\n"
            "| | old | new | AUROC, old | AUROC, new | kept, old | kept, new | s |\n"
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        )
        for how, seeds in each["ways"].items():
            cells = []
            for key in keys:
                values = [100 * s[key] for s in seeds if key in s]
                cells.append(f"{np.mean(values):.1f} ± {np.std(values):.1f}" if values else "—")
            cells.append(f"{np.median([s['took'] for s in seeds]):.2f}")
            text += f"| {how} | " + " | ".join(cells) + " |\n"
    return text


def table(held: dict[str, Any]) -> str:
    text = (
        "# `OLTRClassifier` beside scikit-learn's classifiers\n\n"
        "`python benchmarks/tables/estimator.py`. Percent; each with its defaults, on the rows as "
        "they are, and its own way to reject. Few-shot: mean over the classes of the third with "
        "the fewest rows. AUROC and OSCR: known test rows against strangers. Seconds of one "
        "processor (one thread, time of the process, on a shared machine, rows in different "
        "hours) to fit, and to predict the test rows, rejection included for `OLTRClassifier`. "
        "Bold: the best, and what is within half a point of it. Of `OLTRClassifier`, percents of "
        "digits, icons, letters and clusters are of the blend that goes by how many rows say so; "
        "its seconds, the other sets and the classes that join are of the one before, which on "
        "those four differed by up to 0.6 points.\n"
    )
    for each in held.values():
        most, least = each["counts"]
        text += (
            f"\n## {each['about']}\n\n{each['rows']:,} rows of {each['width']:,} numbers, "
            f"{each['classes']:,} classes of {most:,} to {least:,} rows, {each['asked']:,} test "
            "rows.\n\n"
            "| classifier | rejects by | overall | few | AUROC | OSCR | fit, s | predict, s |\n"
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        )
        means = {
            method: {k: float(np.mean([s[k] for s in m["seeds"]])) for k in m["seeds"][0]}
            for method, m in each["methods"].items()
        }
        best = {
            k: max(m.get(k, 0) for m in means.values()) for k in ("overall", "few", "auroc", "oscr")
        }
        for method, mean in means.items():
            cells = []
            for key, top in best.items():
                word = f"{100 * mean[key]:.1f}" if key in mean else "—"
                cells.append(f"**{word}**" if mean.get(key, -1) >= top - 0.005 else word)
            if "fit" in mean:
                cells += [f"{mean['fit']:.2f}", f"{mean['predict']:.3f}"]
            else:
                cells += [f"more than {mean['fit_over']:.0f}", "—"]
            text += f"| {method} | {each['methods'][method]['by']} | " + " | ".join(cells) + " |\n"
        ours = means.get("OLTRClassifier")
        if ours:
            text += (
                f"\nWith `outlier_label=-1` it keeps {100 * ours['kept']:.1f} % of the known test "
                f"rows and rejects {100 * ours['rejected']:.1f} % of the strangers.\n"
            )
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", choices=SETS)
    parser.add_argument("--only", nargs="+", default=[], help="rows to measure, and keep the rest")
    parser.add_argument("--most", type=float, default=360, help="seconds to fit before giving up")
    asked = parser.parse_args()
    os.nice(19)
    warnings.simplefilter("ignore")  # of LogisticRegression's iterations, and -1 as no class
    with threadpool_limits(1):
        main(asked.sets, asked.only, asked.most)
