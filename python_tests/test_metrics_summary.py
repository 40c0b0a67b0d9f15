"""evaluate(): the whole dict, on a case small enough to work by hand, and at its edges."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from oltr_ext.metrics import evaluate, f_measure, open_scores, open_set_metrics, oscr, shot_accuracy


def random_case(seed: int, *, n: int = 300, classes: int = 6) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    target = rng.integers(-1, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), np.maximum(target, 0)] += np.where(target >= 0, 2, 0)
    return {
        "logits": logits,
        "distance": rng.uniform(0.5, 2, n),
        "target": target,
        "train_counts": np.array([300, 120, 60, 30, 12, 5])[:classes],
    }


def no_nan(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def test_small_case_by_hand() -> None:
    # Max softmax .9, .6, .8 for known images of class 0, 1, 1 predicted 0, 0, 1; .7 open.
    # Ranks: .9 and .8 of three known lie above .7: AUROC 2/3. Accuracy: 1, 1/2, overall 2/3.
    top = np.array([0.9, 0.6, 0.8, 0.7])
    logits = np.log(np.stack([top, 1 - top], axis=1))
    logits[2] = logits[2, ::-1]
    result = evaluate(logits, None, [0, 1, 1, -1], [150, 10], thresholds={"max_softmax": 0.75})
    assert result["samples"] == {"known": 3, "open": 1}
    assert result["shots"]["group"] == ["many", "few"]
    assert result["shots"]["classes"] == {"many": 1, "medium": 0, "few": 1}
    closed = result["closed"]
    assert (closed["many"], closed["medium"], closed["few"]) == (1.0, None, 0.5)
    assert closed["overall"] == pytest.approx(2 / 3)
    score = result["scores"]["max_softmax"]
    assert score["auroc"] == pytest.approx(2 / 3)
    assert score["fpr95"] == 1.0
    points = score["operating_points"]
    assert points["released"]["known_accepted"] == 1.0
    assert points["released"]["open_rejected"] == 0.0
    # At .75: knowns .9 and .8 pass, both right, and the open image does not.
    # 2019: 2*2 / (2 + 2 + 0); 2020: 2*2 / (2 + 3 + 0).
    assert points["calibrated"]["known_accepted"] == pytest.approx(2 / 3)
    assert points["calibrated"]["open_rejected"] == 1.0
    assert points["calibrated"]["oltr2019"] == 1.0
    assert points["calibrated"]["oltr2020"] == pytest.approx(0.8)
    assert points["calibrated"]["few"] == 0.5
    assert "released" not in result["scores"]["energy"]["operating_points"]
    assert set(result["scores"]) == {"max_softmax", "max_logit", "energy", "gen"}


def test_agrees_with_the_single_metrics_and_with_torch() -> None:
    case = random_case(0)
    result = evaluate(**case, thresholds={"energy": 2.5})
    tensors = {key: torch.as_tensor(value) for key, value in case.items()}
    assert evaluate(**tensors, thresholds={"energy": 2.5}) == result
    scores = open_scores(case["logits"], case["distance"])
    pred, target = case["logits"].argmax(1), case["target"]
    for name, score in scores.items():
        for key, value in open_set_metrics(score, target).items():
            assert result["scores"][name][key] == value
        assert result["scores"][name]["oscr"] == oscr(score, pred, target).area
    final = np.where(scores["energy"] >= 2.5, pred, -1)
    point = result["scores"]["energy"]["operating_points"]["calibrated"]
    assert point["oltr2020"] == f_measure(final, target, "oltr2020")
    after = shot_accuracy(final, target, case["train_counts"])
    assert point["g_mean"] == pytest.approx((after["balanced"] * point["open_rejected"]) ** 0.5)
    for key in ("overall", "many", "medium", "few", "balanced"):
        assert point[key] == after[key]
        assert point[key] <= result["closed"][key]


def test_distance_and_reachability_order_alike() -> None:
    scores = evaluate(**random_case(1))["scores"]
    for key in ("auroc", "fpr95", "aupr_in", "aupr_out", "oscr"):
        assert scores["nearest_distance"][key] == scores["reachability"][key]


def test_round_trips_through_strict_json_even_with_empty_groups() -> None:
    case = random_case(2)
    for change in (
        {},
        {"target": np.where(case["target"] < 0, 0, case["target"])},
        {"target": np.full(300, -1)},
        {"train_counts": np.full(6, 500)},
        {"convention": (100, 20)},
        {key: case[key][:0] for key in ("logits", "distance", "target")},
    ):
        result = evaluate(**{**case, **change})
        text = json.dumps(result, allow_nan=False)
        assert json.loads(text, parse_constant=no_nan) == result


def test_no_open_images_leaves_closed_results_alone() -> None:
    case = random_case(3)
    known = case["target"] >= 0
    alone = {**case, **{key: case[key][known] for key in ("logits", "distance", "target")}}
    result, full = evaluate(**alone), evaluate(**case)
    assert result["closed"] == full["closed"]
    for score in result["scores"].values():
        for key in ("auroc", "fpr95", "fpr95_open", "aupr_in", "aupr_out", "oscr"):
            assert score[key] is None
        assert score["roc"] == {"fpr": [], "tpr": []}
        assert score["f_curve"] == {"threshold": [], "oltr2019": [], "oltr2020": []}
    point = result["scores"]["max_softmax"]["operating_points"]["released"]
    for key in ("open_rejected", "oltr2019", "oltr2020", "g_mean"):
        assert point[key] is None
    assert point["known_accepted"] is not None


def test_curves_are_short_and_end_where_they_should() -> None:
    result = evaluate(**random_case(4, n=5000))
    for score in result["scores"].values():
        for curve in ("roc", "oscr_curve"):
            fpr, rate = score[curve].values()
            assert len(fpr) == len(rate) <= 201
            assert (fpr[0], rate[0], fpr[-1]) == (0, 0, 1)
            assert fpr == sorted(fpr) and rate == sorted(rate)
        assert score["oscr_curve"]["ccr"][-1] == pytest.approx(result["closed"]["overall"])
        assert len(score["f_curve"]["threshold"]) == len(score["f_curve"]["oltr2019"]) <= 201


def test_bad_input_is_refused() -> None:
    case = random_case(5)
    with pytest.raises(ValueError, match="train_counts: expected 6 labels, got 5"):
        evaluate(**{**case, "train_counts": case["train_counts"][:5]})
    with pytest.raises(ValueError, match="target: expected 300 labels, got 2"):
        evaluate(**{**case, "target": [0, 1]})
    with pytest.raises(ValueError, match=r"expected thresholds.*odin"):
        evaluate(**case, thresholds={"odin": 0.5})
    with pytest.raises(ValueError, match="NaN"):
        evaluate(**{**case, "logits": np.full((300, 6), np.nan)})
    with pytest.raises(ValueError, match="expected 'oltr'"):
        evaluate(**case, convention="places")
