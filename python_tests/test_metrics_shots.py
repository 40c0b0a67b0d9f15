"""Shot groups and accuracies: hand-worked cases, and the laws they obey."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.metrics import shot_accuracy, shot_groups

SEEDED = settings(deadline=None, derandomize=True)

CONVENTIONS = ["oltr", "decoupling", (30, 10), (0, 1)]


def test_groups_at_the_bounds_of_both_conventions() -> None:
    counts = [101, 100, 99, 21, 20, 19, 0]
    oltr = shot_groups(counts, "oltr")
    assert oltr["many"].tolist() == [True, True, False, False, False, False, False]
    assert oltr["few"].tolist() == [False, False, False, False, True, True, True]
    decoupling = shot_groups(counts, "decoupling")
    assert decoupling["many"].tolist() == [True, False, False, False, False, False, False]
    assert decoupling["medium"].tolist() == [False, True, True, True, True, False, False]
    assert decoupling["few"].tolist() == [False, False, False, False, False, True, True]


@SEEDED
@given(st.lists(st.integers(0, 300), max_size=40), st.sampled_from(CONVENTIONS))
def test_groups_partition_the_classes(counts: list[int], convention: str) -> None:
    groups = shot_groups(counts, convention)
    assert (sum(mask.astype(int) for mask in groups.values()) == 1).all()
    assert all(len(mask) == len(counts) for mask in groups.values())


def test_hand_worked_accuracy() -> None:
    # class 0 (many): 2 of 3 right; 1 (medium): 0 of 1; 2 (few): 1 of 2, the other rejected;
    # 3 (few): no test image; two open images do not count. Overall 3 of 6.
    target = [0, 0, 0, 1, 2, 2, -1, -1]
    pred = [0, 0, 1, 0, 2, -1, -1, 2]
    result = shot_accuracy(pred, target, [120, 50, 5, 3])
    assert result["many"] == pytest.approx(2 / 3)
    assert result["medium"] == 0.0
    assert result["few"] == 0.5  # class 3 has no test image, so it does not pull the mean down
    assert result["overall"] == 0.5
    np.testing.assert_allclose(result["per_class"], [2 / 3, 0, 0.5, math.nan])
    assert result["balanced"] == pytest.approx((2 / 3 + 0 + 1 / 2) / 3)
    assert result["worst"] == result["geometric"] == result["harmonic"] == 0.0


def test_means_over_classes() -> None:
    # Accuracies 1, 1/4 and 1/2 of 2, 4 and 2 images.
    target, pred = [0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 1, 0, 0, 0, 2, 0]
    result = shot_accuracy(pred, target, [9, 9, 9])
    assert result["balanced"] == pytest.approx(7 / 12)
    assert result["geometric"] == pytest.approx(1 / 2)
    assert result["harmonic"] == pytest.approx(3 / 7)
    assert result["worst"] == 0.25
    nothing = shot_accuracy([0], [-1], [9, 9])
    assert all(math.isnan(nothing[k]) for k in ("balanced", "geometric", "harmonic", "worst"))


def test_macro_f1_by_hand() -> None:
    # class 0: one of two right, one other taken for it: 2/(2 + 1 + 1) = 1/2; class 1: both right,
    # and a rejected one: 4/(4 + 1) = 4/5; class 2: never right; class 3 has no test image.
    target, pred = [0, 0, 1, 1, 1, 2, -1], [0, 3, 1, 1, -1, 0, 1]
    assert shot_accuracy(pred, target, [9] * 4)["macro_f1"] == pytest.approx((1 / 2 + 4 / 5) / 3)
    assert math.isnan(shot_accuracy([0], [-1], [9])["macro_f1"])


def test_overall_weighs_images_and_groups_weigh_classes() -> None:
    # class 0: 4 of 4, class 1: 0 of 1. Images: 4/5; classes: (1 + 0) / 2.
    result = shot_accuracy([0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [200, 200])
    assert (result["overall"], result["many"]) == (0.8, 0.5)
    assert math.isnan(result["medium"]) and math.isnan(result["few"])


def test_torch_and_numpy_agree_and_open_images_never_matter() -> None:
    rng = np.random.default_rng(0)
    target, pred = rng.integers(-1, 8, 200), rng.integers(-1, 8, 200)
    counts = rng.integers(0, 150, 8)
    ours = shot_accuracy(pred, target, counts)
    theirs = shot_accuracy(torch.tensor(pred), torch.tensor(target), torch.tensor(counts))
    known = target >= 0
    alone = shot_accuracy(pred[known], target[known], counts)
    for key in ("many", "medium", "few", "overall", "per_class"):
        np.testing.assert_array_equal(ours[key], theirs[key])
        np.testing.assert_array_equal(ours[key], alone[key])


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shot_groups.*'places'"):
        shot_groups([1, 2], "places")
    with pytest.raises(ValueError, match="few <= many"):
        shot_groups([1, 2], (10, 30))
    with pytest.raises(ValueError, match="labels start at 0"):
        shot_groups([1, -2])
    with pytest.raises(ValueError, match="expected 2 labels, got 1"):
        shot_accuracy([0], [0, 1], [5, 5])
    with pytest.raises(ValueError, match="pred below 2 classes, got 2"):
        shot_accuracy([2], [0], [5, 5])
    with pytest.raises(ValueError, match="integers"):
        shot_accuracy([0.5], [0], [5, 5])


def test_no_images_at_all() -> None:
    result = shot_accuracy([], [], [120, 5])
    assert all(math.isnan(result[key]) for key in ("overall", "many", "medium", "few"))
