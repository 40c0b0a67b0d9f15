"""How many known observations the thresholds of their sizes keep, beside that of single images.

    python benchmarks/observations.py RUN --out benchmarks/results/observations.md

The known test images of a run, dealt into two halves of each class twenty times: thresholds are
calibrated on one half, as `oltr train` does on validation images, and judged on the other; and on
observations of strangers of one class each.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from oltr_ext._defaults import own_defaults
from oltr_ext.engine.evaluate import collect, stream
from oltr_ext.engine.observed import BY, _drawn, _of_means
from oltr_ext.engine.splits import load_splits
from oltr_ext.metrics import calibrate_threshold
from oltr_ext.serve.trained import load_trained

SIZES, DRAWS, SHARE = (2, 3, 4, 5), 20, 0.95


@own_defaults()
@torch.no_grad()
def measured(run: Path) -> dict[tuple[int, str], np.ndarray]:
    """Of each size and mean: known kept and strangers rejected by the threshold of single images,
    and by that of the size; means of the draws."""
    trained = load_trained(run, device="cpu")
    splits, name = load_splits(trained.config.data), trained.threshold["score"]
    parts = (splits.test, *splits.opened)
    seen = [collect(trained.model, part, trained.device) for part in parts]
    features = [torch.cat([x for x, _ in stream(trained.model, p, trained.device)]) for p in parts]
    known, target = features[0], seen[0].target
    strangers, alone = torch.cat(features[1:]), np.concatenate([s.scores[name] for s in seen[1:]])
    _, kinds = np.unique(np.array(splits.open_names), return_inverse=True)
    score, found = seen[0].scores[name], {}
    for draw in range(DRAWS):
        order = np.lexsort((np.random.default_rng(draw).random(len(target)), target))
        one, other = np.sort(order[::2]), np.sort(order[1::2])
        single = calibrate_threshold(score[one], value=SHARE)
        scores = (score, score, alone)
        row = ((score[other] >= single).mean(), (alone < single).mean())
        found.setdefault((1, "-"), []).append((*row, *row))
        for size in SIZES:
            rows = (one[_drawn(target[one], size)], other[_drawn(target[other], size)])
            chosen = (*rows, _drawn(kinds, size))
            for by in BY:
                if by == "scores":
                    a, b, c = (s[r].mean(1) for s, r in zip(scores, chosen, strict=True))
                else:
                    given = zip((known, known, strangers), chosen, strict=True)
                    a, b, c = (_of_means(trained.model.head, x, r, name) for x, r in given)
                own = calibrate_threshold(a, value=SHARE)
                row = [v for t in (single, own) for v in ((b >= t).mean(), (c < t).mean())]
                found.setdefault((size, by), []).append(row)
    return {key: 100 * np.mean(rows, axis=0) for key, rows in found.items()}


def page(runs: list[Path]) -> str:
    lines = [
        "# Thresholds for observations",
        f"Known observations kept, where {100 * SHARE:g} % are asked, and strangers rejected, in "
        f"percent; means of {DRAWS} draws.",
        "Written by `benchmarks/observations.py`, whose head says how; runs of `make demo`.",
        "",
        "| run | images | mean of | by that of one image: kept | out | by the size's: kept | out |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for run in runs:
        for (size, by), row in measured(run).items():
            numbers = " | ".join(f"{value:.1f}" for value in row)
            lines.append(f"| `{run.name}` | {size} | {by} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.write_text(page(asked.runs))
