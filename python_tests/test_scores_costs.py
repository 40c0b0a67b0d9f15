"""What answers cost by a table, and the cheapest threshold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_scores_open_sets import run  # noqa: F401

from oltr_ext.cli import main
from oltr_ext.engine.evaluate import collect
from oltr_ext.engine.splits import load_splits
from oltr_ext.metrics import cheapest_threshold, expected_cost, read_costs
from oltr_ext.serve.assess import assess
from oltr_ext.serve.costs import price
from oltr_ext.serve.trained import load_trained

TABLE = """true,b,unknown,a
unknown,3,0,4
a,1,0.25,0

b,0,0.5,7
"""
COSTS = np.array([[0, 1, 0.25], [7, 0, 0.5], [4, 3, 0]])


def test_a_table_in_any_order(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text(TABLE, encoding="utf-8-sig")
    assert np.array_equal(read_costs(path, ["a", "b"]), COSTS)
    assert expected_cost(COSTS, [0, 1, -1, 0, -1], [0, 0, 0, -1, -1]) == (1 + 0.25 + 4) / 5
    assert np.isnan(expected_cost(COSTS, [], []))


def test_a_label_beyond_the_classes_is_not_unknown():
    for answer, target, which in (([2], [0], "answer"), ([0], [2], "target")):
        with pytest.raises(ValueError, match=rf"{which}: expected labels in \[-1, 2\), got 2"):
            expected_cost(COSTS, answer, target)
    with pytest.raises(ValueError, match="answer: expected 2 labels, got 1"):
        expected_cost(COSTS, [0], [0, 1])
    with pytest.raises(ValueError, match=r"pred: expected labels in \[0, 2\), got 2"):
        cheapest_threshold(COSTS, [0.5], [2], [0])
    with pytest.raises(ValueError, match=r"target: expected labels in \[-1, 2\), got 2"):
        cheapest_threshold(COSTS, [0.5], [0], [2])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("true,b", "true,c", r"column for each of 2 classes and unknown, got 'c'"),
        ("true,b", "true,a", r"column .* got 'a', 'a'"),
        ("\na,", "\nb,", r"row .* got 'b', 'b'"),
        ("a,1,0.25,0\n", "", r"row .* missing 'a'"),
        ("0.25", "nan", r"row 'a': expected 3 numbers"),
        ("0.25", "", r"row 'a': expected 3 numbers"),
        ("0.25,", "", r"row 'a': expected 3 numbers"),
        (TABLE, "", r"column .* missing 'a', 'b', 'unknown'"),
    ],
)
def test_tables_that_are_none(tmp_path, old, new, message):
    path = tmp_path / "costs.csv"
    path.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_costs(path, ["a", "b"])
    with pytest.raises(ValueError, match="a class is named 'unknown'"):
        read_costs(path, ["a", "unknown"])
    with pytest.raises(FileNotFoundError):
        read_costs(tmp_path / "none.csv", ["a"])


@pytest.mark.parametrize("seed", range(8))
def test_the_cheapest_threshold_is_that_of_every_one_tried(seed):
    rng = np.random.default_rng(seed)
    target, pred = rng.integers(-1, 2, 40), rng.integers(0, 2, 40)
    score = rng.normal(size=40).round(seed % 3)  # with ties
    costs = rng.random((3, 3))
    level, cost = cheapest_threshold(costs, score, pred, target)
    levels = [*np.unique(score), np.inf]
    tried = [expected_cost(costs, np.where(score >= v, pred, -1), target) for v in levels]
    assert cost == pytest.approx(min(tried))
    assert expected_cost(costs, np.where(score >= level, pred, -1), target) == pytest.approx(cost)
    assert level <= levels[int(np.argmin(np.round(tried, 12)))] and np.isfinite(level)


def test_of_several_as_cheap_the_lowest_and_nothing_above_infinity():
    costs = np.array([[0, 0.4, 1.4], [0.4, 0, 1.4], [0.6, 0.6, 0]])
    target = [1, 1, 1, -1, -1, -1, -1, -1]  # to reject all saves 3.0 and costs 3 (1.4 - 0.4)
    assert cheapest_threshold(costs, range(8), [0] * 8, target)[0] == 0
    dear = np.array([[0, 1.0], [1, 0]])
    level, cost = cheapest_threshold(dear, [np.inf, 0.5], [0, 0], [-1, -1])
    assert level == np.inf and cost == 0.5


def test_all_or_nothing():
    score, pred, target = [0.5, 1.0], [0, 1], [0, 1]
    assert cheapest_threshold(1 - np.eye(3), score, pred, target) == (0.5, 0)
    free = np.array([[1, 1, 0.0]] * 3)  # nothing is as cheap as unknown
    level, cost = cheapest_threshold(free, score, pred, target)
    assert level == np.nextafter(1.0, 2) and cost == 0
    with pytest.raises(ValueError, match="cheapest_threshold: expected images, got none"):
        cheapest_threshold(free, [], [], [])


def test_eval_says_both_costs(run, tmp_path, capsys):  # noqa: F811
    names = [*(f"class {c}" for c in range(4)), "unknown"]
    rng = np.random.default_rng(0)
    costs = rng.random((5, 5)) * (1 - np.eye(5))
    lines = [",".join(["", *names])]
    lines += [
        ",".join([name, *map(repr, row.tolist())]) for name, row in zip(names, costs, strict=True)
    ]
    (tmp_path / "costs.csv").write_text("\n".join(lines))
    args = ["eval", str(run / "one"), "--device", "cpu", "--costs", str(tmp_path / "costs.csv")]
    assert main([*args, "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["costs"]
    result = assess(load_trained(run / "one", device="cpu"), name="one")
    trained, splits = result.trained, load_splits(result.trained.config.data)
    assert found["score"] == trained.threshold["score"]
    assert found["calibrated"]["threshold"] == trained.threshold["value"]
    val = [collect(trained.model, p, trained.device) for p in (splits.val, splits.open_val)]
    for part, each in (("test", [result.seen]), ("val", val)):
        for key in ("calibrated", "cheapest"):
            total = [
                costs[t, p if s >= found[key]["threshold"] else -1]
                for o in each
                for t, p, s in zip(o.target, o.pred, o.scores[found["score"]], strict=True)
            ]
            assert found[key][part] == pytest.approx(np.mean(total))
    assert found["cheapest"]["val"] <= found["calibrated"]["val"]
    assert f"one: expected cost {found['calibrated']['test']:.4g} at the calibrated" in told.err
    (tmp_path / "costs.csv").write_text(",unknown\n")
    assert main(args) == 1
    assert "expected a column for each of 4 classes and unknown" in capsys.readouterr().err


def test_who_joined_costs_the_dearest_and_who_went_chooses_nothing(run, tmp_path):  # noqa: F811
    names = [*(f"class {c}" for c in range(4)), "unknown"]
    costs = np.arange(25.0).reshape(5, 5)
    lines = [",".join(["", *names])]
    lines += [",".join([n, *map(repr, r)]) for n, r in zip(names, costs.tolist(), strict=True)]
    (tmp_path / "costs.csv").write_text("\n".join(lines))
    trained = load_trained(run / "one", device="cpu")
    head = trained.model.head
    head.enroll(torch.randn(4, trained.model.feature_dim), ["d", "d", "e", "e"])
    head.remove([0])
    result = assess(trained, name="one")
    price(result, tmp_path / "costs.csv")
    seen, level = result.seen, trained.threshold["value"]
    accepted = seen.scores[trained.threshold["score"]] >= level
    assert 0 not in seen.target
    wide = np.concatenate([costs[:, :4], costs.max(1)[:, None].repeat(2, 1), costs[:, 4:]], 1)
    want = wide[seen.target, np.where(accepted, seen.pred, -1)].mean()
    assert result.summary["costs"]["calibrated"]["test"] == pytest.approx(want)
