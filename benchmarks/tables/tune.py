"""Chooses each method's settings on validation data, by the same number of trials for each.

    python benchmarks/tables/tune.py glyphs-2000 [--methods plain crt]

Trains every trial with seeds that no table uses, and takes the one with the highest OSCR on the
validation images of known and open classes: one number for how many known are right and how few
strangers get in. Test images are not looked at. Writes results/tables/tuning.json.

A trial is a line of trials.yaml, and a set that is not in there takes what a set like it asked for.
On embeddings training is cheap, and the scale of the features another: there each method keeps what
the icons asked for, and its rates are tried.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from embedded import OVERRIDES, embed_icons
from runs import SLOW, judged

from oltr_ext import use_backend
from oltr_ext.config.loading import load_config
from oltr_ext.config.methods import METHODS

HERE = Path(__file__).parent
OUT = HERE.parent / "results" / "tables" / "tuning.json"
SETS = {  # configurations, with the overrides of every run
    "icons": (),
    "glyphs-2000": SLOW,
    "embeddings": OVERRIDES,
}
LIKE = {  # sets that take the settings of another; those of `SETS` until they are tuned
    "glyphs-2000": "icons",
    "glyphs-18000": "glyphs-2000",
    "icons-large": "glyphs-2000",
    "embeddings": "icons",
}
SEEDS = (100,)
RATES = (0.03, 0.1, 0.3, 1.0)
CRITERION = "oscr"
SHOWN = ("overall", "many", "medium", "few", "auroc", "oscr")


def trials(config: str) -> dict[str, list[list[str]]]:
    """For each method, the overrides of each trial."""
    written = yaml.safe_load((HERE / "trials.yaml").read_text(encoding="utf-8"))
    if config in written:
        return dict(written[config])
    kept = {m: [o for o in carried(m, config) if not o.startswith("stage2.lr")] for m in METHODS}
    return {m: [[*kept[m], *rates(m, rate)] for rate in RATES] for m in METHODS}


def rates(method: str, rate: float) -> list[str]:
    """A rate for both stages, in the proportions of the method."""
    overrides = [f"stage1.lr={{feature: {rate}, classifier: {rate}}}"]
    times = (METHODS[method].stage2 or {}).get("lr_times")
    if times:
        each = ", ".join(f"{key}: {factor * rate:.6g}" for key, factor in times.items())
        overrides.append(f"stage2.lr={{{each}}}")
    return overrides


def chosen(method: str, config: str) -> list[str]:
    """Overrides for a method on a set.

    Raises:
        KeyError: neither it nor a set like it has been tuned.
    """
    found = json.loads(OUT.read_text()).get(config, {"methods": {}})["methods"]
    return list(found[method]["chosen"]) if method in found else carried(method, config)


def carried(method: str, config: str) -> list[str]:
    """What another set's tuning says to this one. A rate or decay of stage 1 alone belongs to the
    data: each configuration has its own, for all methods."""
    found = chosen(method, LIKE[config])
    alone = len(found) == 1 and found[0].startswith(("stage1.lr", "stage1.weight_decay"))
    return [] if alone else found


def tuned(config: str, method: str, folder: Path) -> dict[str, Any]:
    """Every trial's validation numbers, and the best one's overrides."""
    rows = []
    for overrides in trials(config)[method]:
        given = [*SETS[config], *overrides]
        each = [
            judged(load_config(config, [*given, f"seed={seed}"], method=method), folder)["val"]
            for seed in SEEDS
        ]
        means = {k: round(mean(row[k] for row in each), 2) for k in SHOWN}
        rows.append({"overrides": overrides, **means})
        print(method, rows[-1], flush=True)
    best = max(rows, key=lambda row: row[CRITERION])
    return {"chosen": best["overrides"], "trials": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", choices=list(SETS))
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        help="tune these anew and keep what is there of the others; default: all",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    args = parser.parse_args()
    if args.config == "embeddings":
        embed_icons()
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    before = found.get(args.config, {}).get("methods", {})
    made = {m: tuned(args.config, m, args.runs) for m in args.methods or METHODS}
    found[args.config] = {
        "data": "validation images of known and open classes",
        "seeds": SEEDS,
        "criterion": f"highest {CRITERION}, by the score that auto chooses",
        "methods": {m: made.get(m) or before[m] for m in METHODS if m in made or m in before},
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    with use_backend("native"):
        main()
