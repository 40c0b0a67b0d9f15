"""Ten classes join an `OLTRClassifier` by `partial_fit`, with five rows each, beside one that had
them from the start: `python benchmarks/tables/estimator_joined.py icons features letters`.
Writes its section of the table that `estimator.py` makes."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np
from estimator import JOINED, SETS, Set, write
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from oltr_ext import OLTRClassifier
from oltr_ext.metrics import open_set_metrics

NEW, ROWS, SEEDS = 10, 5, 5


def parts(data: Set, seed: int) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Classes that join, (N,) whether a training row is of the others, and the joining rows."""
    label, draw = data.train[1], np.random.default_rng(seed)
    able = np.flatnonzero(np.bincount(label) >= ROWS)
    new = draw.permutation(able)[:NEW]
    joining = [draw.permutation(np.flatnonzero(label == c))[:ROWS] for c in new]
    return new, ~np.isin(label, new), np.concatenate(joining)


def measure(data: Set, seed: int) -> dict[str, dict[str, float]]:
    (rows, label), (asked, truth) = data.train, data.test
    new, old, joining = parts(data, seed)
    is_new = np.isin(truth, new)

    def judged(it: OLTRClassifier, took: float, joined: bool) -> dict[str, float]:
        right = it.predict(asked) == truth
        score, strange = it.score_samples(asked), it.score_samples(data.strangers)

        def auroc(known: NDArray[np.bool_]) -> float:
            target = np.concatenate([truth[known], np.full(len(strange), -1)])
            return open_set_metrics(np.concatenate([score[known], strange]), target)["auroc"]

        found = {
            "old": float(right[~is_new].mean()),
            "auroc old": auroc(~is_new),
            "kept old": float((score[~is_new] >= it.offset_).mean()),
            "took": took,
        }
        if joined:
            found["new"] = float(right[is_new].mean())
            found["auroc new"] = auroc(is_new)
            found["kept new"] = float((score[is_new] >= it.offset_).mean())
        return found

    it = OLTRClassifier(random_state=seed)
    begin = time.process_time()
    it.fit(rows[old], label[old])
    before = judged(it, time.process_time() - begin, joined=False)
    begin = time.process_time()
    it.partial_fit(rows[joining], label[joining])
    after = judged(it, time.process_time() - begin, joined=True)
    both = np.concatenate([np.flatnonzero(old), joining])
    begin = time.process_time()
    it = OLTRClassifier(random_state=seed).fit(rows[both], label[both])
    whole = judged(it, time.process_time() - begin, joined=True)
    return {"`fit` without them": before, "then `partial_fit`": after, "`fit` with them": whole}


def main(names: list[str]) -> None:
    for name in names:
        told: dict[str, Any] = {}
        data = SETS[name][0](0)
        for seed in range(SEEDS):
            for how, found in measure(data, seed).items():
                told.setdefault(how, []).append(found)
                print(name, how, {k: round(v, 3) for k, v in found.items()}, flush=True)
        held = json.loads(JOINED.read_text()) if JOINED.exists() else {}
        about = (SETS[name][0].__doc__ or name).splitlines()[0]
        held[name] = {"about": about, "new": NEW, "rows": ROWS, "ways": told}
        JOINED.write_text(json.dumps(held, indent=1) + "\n")
        write()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", choices=["icons", "features", "letters", "characters"])
    asked = parser.parse_args()
    os.nice(19)
    with threadpool_limits(1):
        main(asked.sets)
