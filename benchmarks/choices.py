"""What the rules of enrolment, of groups and of scores come to on the icons' strangers.

    python benchmarks/choices.py RUN [RUN ...] --out benchmarks/results/choices.md

Odd images: five of a class never seen with one of another such class, in a place that is drawn;
whether `unlike` names it, and how many of the five it names. Groups: of all strangers, how many of
a group's images are of its commonest class. Scores: chosen by one half of the validation images,
known and open, and judged by the AUROC of the other half.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from oltr_ext._defaults import own_defaults
from oltr_ext.engine.evaluate import Outputs, _pick_score, collect, stream
from oltr_ext.engine.splits import Splits, load_splits
from oltr_ext.metrics import open_set_metrics
from oltr_ext.serve.discover import grouped, known_classes
from oltr_ext.serve.trained import Trained, load_trained
from oltr_ext.serve.unlike import unlike

DRAWS = 2000


def odd_ones(features: torch.Tensor, kinds: np.ndarray) -> tuple[float, float]:
    """Percent of odd images that are named, and of the right ones."""
    draw, odd, right = np.random.default_rng(0), 0, 0
    for _ in range(DRAWS):
        one, other = draw.choice(np.unique(kinds), 2, replace=False)
        rows = [*draw.choice(np.flatnonzero(kinds == one), 5, replace=False)]
        place = int(draw.integers(6))
        rows.insert(place, draw.choice(np.flatnonzero(kinds == other)))
        named = unlike(features[rows])
        odd += place in named
        right += len(set(named) - {place})
    return 100 * odd / DRAWS, 100 * right / DRAWS / 5


def pure(
    trained: Trained, features: torch.Tensor, kinds: np.ndarray, least: float, below: float
) -> tuple[int, float]:
    """Groups as sure as that, and percent of their images that are of the commonest class."""
    apart = np.arange(len(features), dtype=np.uint64).view(np.uint8).reshape(len(features), 8)
    made, _ = grouped(features.numpy(), apart, known_classes(trained)[1])
    sizes, common = [], []
    for number in np.unique(made.group[made.group > 0]):
        own = made.group == number
        if least <= made.sure[own].mean() < below:
            sizes.append(own.sum())
            common.append(np.unique(kinds[own], return_counts=True)[1].max())
    return len(sizes), 100 * sum(common) / max(1, sum(sizes))


def halves(trained: Trained, splits: Splits) -> tuple[float, float]:
    """AUROC in percent of the score that the rule chooses, and of that which did best."""
    parts = [collect(trained.model, p, trained.device) for p in (splits.val, splits.open_val)]
    rule, best = [], []
    for n in range(50):
        orders = [np.random.default_rng(n).permutation(len(p.target)) for p in parts]
        one, other = (
            [p.only(np.sort(o[h::2])) for p, o in zip(parts, orders, strict=True)] for h in (0, 1)
        )
        whole, judge = Outputs.join(one), Outputs.join(other)
        auroc = {k: open_set_metrics(v, whole.target)["auroc"] for k, v in whole.scores.items()}
        for kept, name in ((rule, _pick_score("auto", *one)), (best, max(auroc, key=auroc.get))):
            kept.append(open_set_metrics(judge.scores[name], judge.target)["auroc"])
    return 100 * float(np.mean(rule)), 100 * float(np.mean(best))


@own_defaults()
@torch.no_grad()
def line(run: Path) -> str:
    trained = load_trained(run, device="cpu")
    splits = load_splits(trained.config.data)
    kinds = np.array(splits.open_names)
    rows = [x for part in splits.opened for x, _ in stream(trained.model, part, trained.device)]
    features = torch.cat(rows)
    odd, right = odd_ones(features, kinds)
    (few, some), (surer, most) = (
        pure(trained, features, kinds, *r) for r in ((0.25, 0.5), (0.5, 2))
    )
    rule, best = halves(trained, splits)
    return (
        f"| `{run.name}` | {odd:.0f} | {right:.1f} | {few}: {some:.0f} | {surer}: {most:.0f} | "
        f"{rule:.1f} | {best:.1f} |\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.write_text(
        "# Choices of enrolment, groups and scores\n"
        "Runs of `make demo`, percent. Written by `benchmarks/choices.py`, whose head says how.\n\n"
        "| run | odd images named | right ones named | groups 0.25 to 0.5 sure: of one class | "
        "0.5 and more | AUROC of the rule's score | of the best in the other half |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n" + "".join(map(line, asked.runs))
    )
