"""The table of `oltr discover`: its figures, worked by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

TABLES = Path(__file__).resolve().parent.parent / "benchmarks" / "tables"
sys.path.insert(0, str(TABLES))

import discover  # noqa: E402


def test_agreement() -> None:
    truth = np.array([0, 0, 0, 1, 1, 2])
    found = discover.agreement(np.array([0, 0, 1, 1, 1, -1]), truth)
    assert found["purity"] == pytest.approx(4 / 5) and found["grouped"] == pytest.approx(5 / 6)
    assert found["groups"] == 2
    # one pair of each side's four and four is common, of fifteen
    pairs = {"both": 2, "labels": 4, "truth": 4, "all": 15}
    chance = pairs["labels"] * pairs["truth"] / pairs["all"]
    assert found["ARI"] == pytest.approx((pairs["both"] - chance) / (4 - chance))
    assert discover.agreement(truth, truth)["NMI"] == pytest.approx(1)


def test_naming_and_asking() -> None:
    axes = np.eye(4)
    pool = discover.Pool(axes[[2, 2, 3, 0]], np.array([2, 2, 3, 0]), np.array([0, 1, 0, 1]))
    rows = np.arange(4)
    new = discover.means_of(pool, rows, np.array([0, 0, 1, 2]), first_open=2)
    assert set(new) == {2, 3}  # what most of a group is; a known class does not join
    mixed = discover.means_of(pool, rows, np.array([0, 0, 0, -1]), first_open=2)
    np.testing.assert_allclose(mixed[2], [0, 0, 2 / 3, 1 / 3])
    assert set(mixed) == {2}
    known = axes[:2]
    assert discover.right(new, known, pool, 0) == 1
    assert discover.right(mixed, known, pool, 0) == 0.5  # 3 is called 2
    assert discover.right({}, known, pool, 1) == 0.5
    fold = discover._folds(np.repeat([4, 7], 10))
    assert np.bincount(fold[:10]).tolist() == [2] * 5


def test_the_committed_page_is_that_of_the_numbers() -> None:
    import json

    from discover_page import markdown

    file = discover.RESULTS / "discover.json"
    assert file.with_suffix(".md").read_text() == markdown(
        discover.TITLE, json.loads(file.read_text())
    )
