"""Trains and judges configurations, each once: what is in the folder already is taken up.

Methods that start from the same stage 1 share it; the result has the same bits as if each trained
its own (see `oltr_ext.engine.train.train`). A process may work on some seeds and another on others.
Scores and their choice are settled whenever a row is made, so that a run serves those of today.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from oltr_ext._defaults import own_defaults
from oltr_ext.config.schema import Config, Data, OpenSet
from oltr_ext.engine import checkpoint
from oltr_ext.engine.checkpoint import MODEL
from oltr_ext.engine.preflight import AFTERWARDS, chosen_by_prior
from oltr_ext.engine.settle import settle, settled_by
from oltr_ext.engine.splits import Splits, load_splits
from oltr_ext.engine.train import train
from oltr_ext.serve.assess import assess
from oltr_ext.serve.trained import load_trained

SLOW = ("amp=bf16",)  # overrides of what takes hours
CLOSED = ("overall", "many", "medium", "few")
OPEN = ("auroc", "fpr95", "oscr")
F_RULES = ("oltr2019", "oltr2020")


def digest(config: Config, *more: str, without: Collection[str] = ()) -> str:
    held = config.model_dump(mode="json", exclude=set(without))
    text = json.dumps([held, *more] if more else held, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def splits_of(data: Data) -> Splits:
    """One data set is read once, whatever is trained on it; its augmentation is part of the key."""
    return load_splits(data)


def folder_of(config: Config, folder: Path) -> Path:
    """Of a run, by all but what acts once it is trained."""
    after = AFTERWARDS - ({"test_prior"} if chosen_by_prior(config) else set())
    return folder / digest(config, without=after)


def trained(config: Config, folder: Path) -> tuple[Path, float]:
    """Folder of the finished run, and the seconds that its training took (stage 1 included)."""
    run = folder_of(config, folder)
    took = run / "seconds.json"
    if not took.exists():
        first, before = None, 0.0
        if config.stage2 is not None:
            # what acts after stage 2, and may be of its head alone
            after = {"test_prior": "balanced", "open_set": OpenSet()}
            first, before = trained(config.model_copy(update={"stage2": None, **after}), folder)
        begin = time.perf_counter()
        train(config, run, stage1=first)
        took.write_text(json.dumps(before + time.perf_counter() - begin))
        for file in set(run.glob(f"*{checkpoint.SUFFIX}")) - {run / MODEL}:
            file.unlink()  # a table is thousands of runs
    return run, json.loads(took.read_text())


def judged(config: Config, folder: Path) -> dict[str, Any]:
    """Validation and test numbers of a run, in percent; trains it where it is not yet there."""
    run, seconds = trained(config, folder)
    row = run / f"row_{digest(config, *settled_by())}.json"
    if not row.exists():
        splits = splits_of(config.data)
        model = load_trained(run / MODEL)
        with own_defaults():
            model.threshold, _ = settle(model.model, config, splits, model.device)
        seen = dataclasses.replace(
            splits, test=splits.val, open_test=splits.open_val, test_ids=None
        )
        test = assess(model, name="test", splits=splits).summary
        row.write_text(
            json.dumps(
                {
                    "val": numbers(assess(model, name="val", splits=seen).summary, model.threshold),
                    "test": numbers(test, model.threshold),
                    "score": model.threshold["score"],
                    "expects": test["expects"],
                    "seconds": round(seconds, 1),
                }
            )
        )
    return dict(json.loads(row.read_text()))


def numbers(summary: dict[str, Any], threshold: dict[str, Any]) -> dict[str, Any]:
    """The columns of a table. Open-set ones by the score that validation data chose, at the
    threshold calibrated there; AUROC of every other score beside them."""
    scores = summary["scores"]
    chosen = scores[threshold["score"]]
    point = chosen["operating_points"]["calibrated"]
    return {
        **{k: 100 * summary["closed"][k] for k in CLOSED},
        **{k: percent(chosen[k]) for k in OPEN},
        **{f"F {rule}": percent(point[rule]) for rule in F_RULES},
        "known kept": 100 * point["known_accepted"],
        "open out": percent(point["open_rejected"]),
        "auroc of": {name: percent(score["auroc"]) for name, score in scores.items()},
    }


def percent(share: float | None) -> float | None:
    """None of what there are no open images to count by."""
    return None if share is None else 100 * share
