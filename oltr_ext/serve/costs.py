"""What a model's answers cost, at its threshold and at the one that is cheapest on validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from oltr_ext._defaults import own_defaults
from oltr_ext.engine.evaluate import Outputs, collect
from oltr_ext.metrics import cheapest_threshold, expected_cost, json_ready, read_costs
from oltr_ext.serve.assess import Assessment

__all__ = ["price"]


@own_defaults()
def price(result: Assessment, path: str | Path) -> str:
    """Put ``costs`` into a summary: the expected cost on the test images at the calibrated
    threshold, and at the cheapest on the validation images, by the same score.

    How many of the images are open weighs in both: as many as there are.

    Returns:
        A line on it.

    Raises:
        FileNotFoundError, ValueError: see `read_costs`.
    """
    trained, splits, seen = result.trained, result.splits, result.seen
    costs = read_costs(path, trained.class_names)
    name, calibrated = trained.threshold["score"], trained.threshold["value"]
    parts = [splits.val] if splits.open_val is None else [splits.val, splits.open_val]
    val = Outputs.join(
        [collect(trained.model, p, trained.device, workers=splits.workers) for p in parts]
    )
    known = len(trained.class_names)
    val = val.only(np.flatnonzero(~np.isin(val.target, trained.roster.removed)))
    # an enrolled class has no column, and is no right answer to what is judged here: the dearest
    columns = len(trained.roster) - known
    dearest = np.repeat(costs.max(axis=1, keepdims=True), columns, axis=1)
    costs = np.concatenate([costs[:, :known], dearest, costs[:, known:]], axis=1)
    cheapest, least = cheapest_threshold(costs, val.scores[name], val.pred, val.target)
    found = {}
    for key, level in (("calibrated", calibrated), ("cheapest", cheapest)):
        cost, there = (
            expected_cost(costs, np.where(o.scores[name] >= level, o.pred, -1), o.target)
            for o in (seen, val)
        )
        found[key] = {"threshold": level, "test": cost, "val": there}
    result.summary["costs"] = json_ready({"score": name, **found})
    one, other = found["calibrated"], found["cheapest"]
    return (
        f"expected cost {one['test']:.4g} at the calibrated threshold ({name} {calibrated:.4g}), "
        f"{other['test']:.4g} at {cheapest:.4g}, the cheapest on validation images: {least:.4g} "
        f"there, {one['val']:.4g} at the calibrated one"
    )
