"""Methods on the embedded icons over several seeds: mean, spread, and difference to `plain`.

    python benchmarks/icons_five_seeds.py                      # all methods, seeds 0 to 4
    python benchmarks/icons_five_seeds.py --methods plain oltr --seeds 0 1

Every method has the same budget: epochs of the same number of images. Writes
results/icons_five_seeds.json (each run) and .md (the table). Runs are kept in --runs and taken
up again, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oltr_ext import __version__, use_backend
from oltr_ext.engine.assess import assess
from oltr_ext.engine.config import load_config
from oltr_ext.engine.methods import METHODS
from oltr_ext.engine.predict import load_trained
from oltr_ext.engine.schema import Config
from oltr_ext.engine.splits import Splits, load_splits
from oltr_ext.engine.train import train
from oltr_ext.metrics import SCORE_NAMES

RESULTS = Path(__file__).parent / "results" / "icons_five_seeds.json"
CLOSED = ("overall", "many", "medium", "few")
COLUMNS = (*CLOSED, "auroc", "fpr95", "oscr", "known kept", "open out")


def run(method: str, config: Config, folder: Path, splits: Splits) -> dict[str, Any]:
    """Train (or take up) one run and judge it; numbers in percent."""
    begin = time.perf_counter()
    trained = load_trained(train(config, folder))
    seconds = time.perf_counter() - begin
    result = assess(trained, name=method, splits=splits)
    summary, threshold = result.summary, trained.threshold
    point = summary["scores"][threshold["score"]]["operating_points"]["calibrated"]
    return {
        "method": method,
        "seed": config.seed,
        "closed": {k: 100 * summary["closed"][k] for k in CLOSED},
        "open": {
            name: {k: 100 * score[k] for k in ("auroc", "fpr95", "aupr_in", "aupr_out", "oscr")}
            for name, score in summary["scores"].items()
        },
        "calibrated": {
            "score": threshold["score"],
            "known kept": 100 * point["known_accepted"],
            "open out": 100 * point["open_rejected"],
            "oltr2019": point["oltr2019"],
            "oltr2020": point["oltr2020"],
        },
        "seconds": round(seconds, 1),
    }


def numbers(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Per column one value a seed; the open-set ones by the score that validation data chose."""
    chosen = [r["open"][r["calibrated"]["score"]] for r in rows]
    return {
        **{k: np.array([r["closed"][k] for r in rows]) for k in CLOSED},
        **{k: np.array([c[k] for c in chosen]) for k in ("auroc", "fpr95", "oscr")},
        **{k: np.array([r["calibrated"][k] for r in rows]) for k in ("known kept", "open out")},
    }


def markdown(runs: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The table, with the difference to plain seed by seed."""
    by_method = {m: [r for r in runs if r["method"] == m] for m in about["methods"]}
    lines = [
        "# Icons over five seeds" if len(about["seeds"]) == 5 else "# Icons",
        "",
        f"Percent, mean ± standard deviation over seeds {', '.join(map(str, about['seeds']))}. "
        "AUROC, FPR95 and OSCR by the score that tells strangers best on validation data; the last "
        "two columns at the threshold calibrated there.",
        "",
        f"| method | {' | '.join(COLUMNS)} | score |",
        f"| --- |{' ---: |' * len(COLUMNS)} --- |",
    ]
    plain = numbers(by_method["plain"]) if "plain" in by_method else None
    for method, rows in by_method.items():
        cells = [f"{v.mean():.1f} ± {v.std(ddof=1 if len(v) > 1 else 0):.1f}" for v in
                 numbers(rows).values()]  # fmt: skip
        scores = ", ".join(sorted({r["calibrated"]["score"] for r in rows}))
        lines.append(f"| {method} | {' | '.join(cells)} | {scores} |")
    for method, rows in by_method.items():
        if plain is None or method == "plain":
            continue
        gain = {k: v - plain[k] for k, v in numbers(rows).items()}
        cells = [f"{v.mean():+.1f} ± {v.std(ddof=1 if len(v) > 1 else 0):.1f}" for v in
                 gain.values()]  # fmt: skip
        lines.append(f"| {method} minus plain | {' | '.join(cells)} | |")
    lines += [
        "",
        "AUROC of each score on the test set:",
        "",
        f"| method | {' | '.join(SCORE_NAMES)} |",
    ]
    lines.append(f"| --- |{' ---: |' * len(SCORE_NAMES)}")
    for method, rows in by_method.items():
        cells = [
            f"{np.mean([r['open'][n]['auroc'] for r in rows]):.1f}" if n in rows[0]["open"] else "-"
            for n in SCORE_NAMES
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    lines += ["", "Budget:", ""]
    for method in by_method:
        seconds = np.mean([r["seconds"] for r in by_method[method]])
        lines.append(f"- {method}: {about['budget'][method]}; {seconds:.0f} s a run")
    lines += ["", f"{about['date']}, {about['versions']}, {about['machine']}.", ""]
    return "\n".join(lines)


def budget(config: Config, images: int) -> str:
    """Epochs and optimizer steps of a configuration."""
    stages = [s for s in (config.stage1, config.stage2) if s is not None]
    epochs = " + ".join(str(s.epochs) for s in stages)
    steps = sum(s.epochs * (images // s.batch_size) for s in stages)
    return f"{epochs} epochs, {steps} steps of {stages[0].batch_size} images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--runs", type=Path, default=Path("runs/icons_five_seeds"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="the .json; the .md lies beside")
    args = parser.parse_args()
    known = json.loads(args.out.read_text())["runs"] if args.out.exists() else []
    configs = {m: load_config("icons", method=m) for m in args.methods}
    splits = load_splits(configs[args.methods[0]].data)
    runs = []
    for seed in args.seeds:
        for method in args.methods:
            config = configs[method].model_copy(update={"seed": seed})
            folder = args.runs / f"{method}_{seed}"
            data = load_splits(config.data)  # its own augmentation
            row = run(method, config, folder, data)
            old = [r for r in known if (r["method"], r["seed"]) == (method, seed)]
            if row["seconds"] < 2 and old:  # a run taken up at its end took its time before
                row["seconds"] = old[0]["seconds"]
            runs.append(row)
            print(json.dumps({k: row[k] for k in ("method", "seed", "closed", "seconds")}))
    about = {
        "date": datetime.date.today().isoformat(),
        "versions": f"oltr_ext {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "machine": f"{torch.get_num_threads()} CPU threads, native backend",
        "methods": args.methods,
        "seeds": args.seeds,
        "budget": {m: budget(c, len(splits.train)) for m, c in configs.items()},
    }
    configurations = {m: c.model_dump(mode="json", exclude={"seed"}) for m, c in configs.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({**about, "configurations": configurations, "runs": runs}, indent=1) + "\n"
    )
    args.out.with_suffix(".md").write_text(markdown(runs, about))
    print(f"\n{args.out.with_suffix('.md').read_text()}")


if __name__ == "__main__":
    with use_backend("native"):
        main()
