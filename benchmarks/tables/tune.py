"""Chooses each method's settings on validation data, by the same number of trials for each.

    python benchmarks/tables/tune.py [--methods plain crt]

Trains every line of trials.yaml on the embedded icons, with seeds that no table uses, and takes the
trial with the highest OSCR on the validation images of known and open classes: one number for how
many known are right and how few strangers get in. Test images are not looked at. Writes
results/tables/tuning.json; the tables of every data set use what it chose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from runs import judged

from oltr_ext import use_backend
from oltr_ext.engine.config import load_config
from oltr_ext.engine.methods import METHODS

HERE = Path(__file__).parent
OUT = HERE.parent / "results" / "tables" / "tuning.json"
DATA = "icons"
SEEDS = (100,)
CRITERION = "oscr"
SHOWN = ("overall", "many", "medium", "few", "auroc", "oscr")


def trials() -> dict[str, list[list[str]]]:
    return dict(yaml.safe_load((HERE / "trials.yaml").read_text(encoding="utf-8")))


def chosen(method: str) -> list[str]:
    """Overrides that tuning chose for a method.

    Raises:
        KeyError: it has not been tuned.
    """
    return list(json.loads(OUT.read_text())["methods"][method]["chosen"])


def tuned(method: str, lines: list[list[str]], folder: Path) -> dict[str, Any]:
    """Every trial's validation numbers, and the best one's overrides."""
    rows = []
    for overrides in lines:
        each = [
            judged(load_config(DATA, [*overrides, f"seed={seed}"], method=method), folder)["val"]
            for seed in SEEDS
        ]
        means = {k: round(mean(row[k] for row in each), 2) for k in SHOWN}
        rows.append({"overrides": overrides, **means})
        print(method, rows[-1], flush=True)
    best = max(rows, key=lambda row: row[CRITERION])
    return {"chosen": best["overrides"], "trials": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        help="tune these anew and keep what is there of the others; default: all",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    args = parser.parse_args()
    lines = trials()
    before = json.loads(OUT.read_text())["methods"] if args.methods else {}
    made = {m: tuned(m, lines[m], args.runs) for m in args.methods or METHODS}
    results = {m: made.get(m) or before[m] for m in METHODS if m in made or m in before}
    about = {
        "data": f"{DATA}, validation images of known and open classes",
        "seeds": SEEDS,
        "criterion": f"highest {CRITERION}, by the score that tells strangers best",
        "methods": results,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    with use_backend("native"):
        main()
