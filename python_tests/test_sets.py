"""Prediction sets: the law of coverage counted out, each method against its formula, and edges."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.metrics import PredictionSets, set_coverage
from oltr_ext.nn.sets import (
    SET_METHODS,
    rank,
    set_members,
    set_sizes,
    set_thresholds,
    true_log_probability,
)

ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5, 1 / 3)


def thresholds(method, alpha, log_prob, target, classes, prevalence=None, **more):
    groups = torch.arange(classes) * 3 // classes
    prevalence = torch.full((classes,), 1 / classes) if prevalence is None else prevalence
    more = {"groups": groups, "prevalence": prevalence, **more}
    return set_thresholds(method, alpha, log_prob, target, classes, **more)


def left_out(method, alpha, score, target, classes, **more):
    """Of each row, whether its class is in its set when all others calibrate."""
    found, every = [], torch.arange(len(score))
    for n in range(len(score)):
        rest = every != n
        lowest = thresholds(method, alpha, score[rest], target[rest], classes, **more)
        found.append(bool(score[n] >= lowest[target[n]]))
    return torch.tensor(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from(ALPHAS), st.integers(0, 2**31), st.booleans())
def test_each_of_exchangeable_rows_may_be_the_one_asked(n, alpha, seed, tied):
    """Whatever the scores: with each row left out in turn, the share that is covered is the
    probability of coverage, given the bag of rows."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 4, n + 1) if tied else draw.permutation(n + 1)
    score, target = -torch.from_numpy(values).float(), torch.from_numpy(draw.integers(0, 3, n + 1))
    share = torch.tensor([0.5, 0.3, 0.2])
    exact = Fraction(repr(alpha))
    for method, one in (("marginal", torch.zeros(n + 1).long()), ("class", target), ("pas", None)):
        inside = left_out(method, alpha, score, target, 3, prevalence=share)
        groups = [inside] if one is None else [inside[one == g] for g in one.unique()]
        for part in groups:
            covered = Fraction(int(part.sum()), len(part))
            assert covered >= 1 - exact
            if not tied and method != "pas":  # where 0.5 / 0.25 might tie
                assert covered < 1 - exact + Fraction(1, len(part))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(21, 30), min_size=3, max_size=3), st.integers(0, 2**31))
def test_and_so_within_each_group_of_classes(sizes, seed):
    draw = torch.Generator().manual_seed(seed)
    target = torch.arange(6).repeat_interleave(torch.tensor([n // 2 for n in sizes for _ in "12"]))
    score = -torch.rand(len(target), generator=draw)
    inside = left_out("shots", 0.1, score, target, 6)
    for group in range(3):
        part = inside[target // 2 == group]
        assert 0.9 <= part.double().mean() < 0.9 + 1 / len(part)


def quantile(score, alpha):
    """Of nonconformity, as papers write it."""
    n = len(score)
    level = -(-(Fraction(1) - Fraction(repr(alpha))) * (n + 1) // 1)
    return sorted(score)[int(level) - 1] if level <= n else math.inf


@pytest.mark.parametrize("alpha", ALPHAS)
def test_each_method_is_its_formula(alpha):
    """In float64, one class and one row at a time, on nonconformity of probabilities."""
    draw = np.random.default_rng(3)
    classes, rows = 6, np.array([40, 25, 12, 8, 3, 0])
    y = np.repeat(np.arange(classes), rows)
    z = torch.from_numpy(draw.normal(size=(len(y), classes)).astype(np.float32) * 2)
    z[np.arange(len(y)), y] += 2
    asked = torch.from_numpy(draw.normal(size=(50, classes)).astype(np.float32) * 2)
    prevalence = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    target = torch.from_numpy(y)
    p = z.double().softmax(1).numpy()
    test = asked.double().softmax(1).numpy()
    true, share = p[np.arange(len(y)), y], prevalence.double().numpy()
    marginal = quantile(1 - true, alpha)
    own = [quantile(1 - true[y == c], alpha) for c in range(classes)]
    group = (
        np.arange(classes) // 2
    )  # of two classes each, the last with three rows joins the one before
    few = alpha < 0.25
    joined = np.where((group == 2) & few, 1, group)
    expected = {
        "marginal": 1 - test <= marginal,
        "pas": -test / share <= quantile(-true / share[y], alpha),
        "class": 1 - test <= np.array(own),
        "shots": 1 - test <= np.array([quantile(1 - true[joined[y] == g], alpha) for g in joined]),
        "interp": 1 - test <= 0.7 * np.minimum(own, 1) + 0.3 * marginal,
    }
    assert sorted(expected) == sorted(SET_METHODS)
    for method, inside in expected.items():
        lowest = thresholds(
            method, alpha, true_log_probability(z, target), target, classes, prevalence, weight=0.7
        )
        sizes, members, log_prob = set_members(asked, lowest)
        found = np.zeros_like(inside)
        found[np.repeat(np.arange(50), sizes), members] = True
        np.testing.assert_array_equal(found, inside, err_msg=method)
        assert set_sizes(asked, lowest[None])[:, 0].tolist() == inside.sum(1).tolist()
        row = torch.arange(50).repeat_interleave(sizes)
        torch.testing.assert_close(log_prob, asked.double().log_softmax(1)[row, members].float())
        assert all((part.diff() <= 0).all() for part in log_prob.split(sizes.tolist()))


def test_few_rows_and_none():
    """A class of fewer than 1/alpha - 1 rows is always in; so are all where there is no row."""
    target = torch.tensor([0] * 9 + [1] * 8)
    score = -torch.arange(17.0)
    lowest = thresholds("class", 0.1, score, target, 3)
    assert lowest.tolist() == [-8, -math.inf, -math.inf]
    for method in SET_METHODS:
        none = thresholds(method, 0.1, score[:0], target[:0], 3)
        assert none.tolist() == [-math.inf] * 3
        assert set_sizes(torch.randn(4, 3), none[None]).tolist() == [[3]] * 4


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ((9, 9, 9), (0, 1, 2)),
        ((5, 9, 9), (0, 0, 1)),
        ((9, 5, 5), (0, 1, 1)),
        ((9, 9, 5), (0, 1, 1)),
        ((9, 0, 5), (0, 0, 0)),
        ((4, 4, 4), (0, 0, 0)),
        ((0, 0, 2), (0, 0, 0)),
    ],
)
def test_a_group_of_too_few_rows_joins_the_next(rows, names):
    target = torch.arange(3).repeat_interleave(torch.tensor(rows))
    score = -torch.arange(float(len(target)))
    lowest = thresholds("shots", 0.1, score, target, 3)
    for group in set(names):
        mine = [c for c in range(3) if names[c] == group]
        part = score[torch.isin(target, torch.tensor(mine))]
        level = quantile((-part).tolist(), 0.1)
        assert [lowest[c].item() for c in mine] == [-level] * len(mine)


def test_ranks_are_of_decimal_fractions():
    """(1 - 0.7) * 10 is 3.0000000000000004 in binary, and its ceiling one too many."""
    for alpha in range(1, 100):
        for n in range(300):
            assert rank(n, alpha / 100) == alpha * (n + 1) // 100
    assert rank(10**9 - 1, 0.1) == 10**8
    for alpha in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="alpha in"):
            rank(9, alpha)


def test_probabilities_that_are_one_in_float32_are_told_apart():
    logits = torch.tensor([[20.0, 0.0], [25.0, 0.0], [30.0, 0.0]])
    found = true_log_probability(logits, torch.zeros(3).long())
    assert found.diff().gt(0).all() and torch.equal(logits.softmax(1)[:, 0], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_votes_that_tie_are_in_whatever_their_dtype(dtype):
    """1 - (1 - 0.1) is more than 0.1 in float32, and all rows of one vote in ten would be out."""
    votes = torch.tensor([[n, 10 - n] for n in range(11)], dtype=dtype).repeat(10, 1)
    target = torch.zeros(len(votes)).long()
    for method in SET_METHODS:
        for alpha in (0.1, 0.2, 0.3, 0.5, 0.9):
            score = true_log_probability((votes / 10).log(), target)
            lowest = thresholds(method, alpha, score, target, 2, torch.tensor([0.1, 0.9]))
            assert (score >= lowest[0]).double().mean() >= 1 - alpha, (method, alpha)


def test_what_is_no_number_is_the_least_plausible():
    """For calibration and for what is asked alike, so that the law of coverage holds."""
    logits = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [1.0, 0.0]])
    assert true_log_probability(logits, torch.tensor([1, 0, 0]))[:2].tolist() == [-math.inf] * 2
    assert true_log_probability(logits, torch.tensor([-1, -1, -1])).tolist() == [-math.inf] * 3
    sizes, members, _ = set_members(logits, torch.tensor([-9.0, -math.inf]))
    assert sizes.tolist() == [1, 1, 2] and members.tolist() == [1, 1, 0, 1]
    score, target = torch.tensor([math.nan] + [-1.0] * 9), torch.zeros(10).long()
    assert thresholds("marginal", 0.1, score, target, 2).tolist() == [-math.inf] * 2
    assert thresholds("marginal", 0.2, score, target, 2).tolist() == [-1, -1]


def test_many_classes_in_little_memory():
    """B x C in float64 would be 80 MB."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                if isinstance(each, torch.Tensor) and each._base is None:
                    self.bytes = max(self.bytes, each.nbytes)
            return out

    classes, draw = 100_000, torch.Generator().manual_seed(0)
    logits = torch.randn(100, classes, generator=draw) * 3
    target = logits.argmax(1)
    lowest = thresholds("marginal", 0.5, true_log_probability(logits, target), target, classes)
    with Largest() as seen:
        sizes, members, _ = set_members(logits, lowest)
        true_log_probability(logits, target)
    assert seen.bytes <= 8 << 20
    row = int(sizes.argmax())
    first = int(sizes[:row].sum())
    part = members[first : first + sizes[row]]
    expected = (logits[row].double().log_softmax(0).float() >= lowest).nonzero()[:, 0]
    assert sorted(part.tolist()) == expected.tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "aps"}, "expected one of marginal, .*, got 'aps'"),
        ({"target": torch.zeros(4).long()}, r"expected log_prob and target \(n,\), got \(5,\)"),
        ({"target": torch.full((5,), 3)}, r"expected labels in \[0, 3\)"),
        ({"method": "pas", "prevalence": None}, r"pas needs prevalence \(C,\)"),
        ({"method": "pas", "prevalence": torch.zeros(3)}, r"prevalence \(3,\) above 0"),
        ({"method": "shots", "groups": None}, r"shots needs groups \(C,\)"),
        ({"method": "shots", "groups": torch.zeros(2)}, r"groups \(3,\) from 0"),
        ({"method": "interp", "weight": 1.5}, r"weight in \[0, 1\], got 1.5"),
    ],
)
def test_what_does_not_hold_is_told(change, message):
    values = {
        "method": "marginal",
        "alpha": 0.1,
        "log_prob": torch.zeros(5),
        "target": torch.zeros(5).long(),
        "classes": 3,
    }
    with pytest.raises(ValueError, match=message):
        set_thresholds(**{**values, **change})


def sets():
    return PredictionSets(
        indptr=np.array([0, 2, 2, 3]),
        indices=np.array([2, 0, 1]),
        probability=np.array([0.6, 0.3, 0.9]),
        unknown=np.array([False, True, False]),
        classes=np.array(["a", "b", "c"], object),
        always=np.zeros(3, bool),
        alpha=0.1,
        method="marginal",
    )


def test_sets_are_a_sequence():
    found = sets()
    assert len(found) == 3 and found.size.tolist() == [2, 0, 1]
    assert found[0].labels.tolist() == ["c", "a"] and "a" in found[0] and "b" not in found[0]
    assert found[-1].labels.tolist() == ["b"] and found[-1].probability.tolist() == [0.9]
    assert len(found[1]) == 0 and found[1].unknown and [len(s) for s in found[:2]] == [2, 0]
    with pytest.raises(IndexError):
        found[3]
    assert found.covers([0, 0, 1]).tolist() == [True, False, True]
    assert found.covers([1, -1, -1]).tolist() == [False] * 3
    assert repr(found) == "PredictionSets(3 rows, 1 classes each, alpha=0.1, method='marginal')"


def test_coverage_counts_rows_and_classes_of_known_rows():
    target = np.array([0, 0, 0, 0, 1, 1, 2, -1])
    covered = np.array([1, 1, 1, 0, 1, 0, 0, 1], bool)
    found = set_coverage(covered, [1, 2, 3, 0, 1, 0, 0, 50], target, [200, 50, 3])
    assert found["coverage"] == 4 / 7 and found["macro"] == (3 / 4 + 1 / 2 + 0) / 3
    assert (found["many"], found["medium"], found["few"]) == (0.75, 0.5, 0.0)
    assert found["size"] == 1 and found["empty"] == 3 / 7 and found["worst"] == 0
    with pytest.raises(ValueError, match=r"covered: expected shape \(8,\), got \(1,\)"):
        set_coverage([True], [1] * 8, target, [200, 50, 3])
    empty = set_coverage([], [], np.empty(0, int), [1, 2])
    assert all(math.isnan(v) for v in empty.values())
