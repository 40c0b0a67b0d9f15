"""Laws of the sample streams: exact coverage, class cycles, pure functions of the position."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.data import BalancedSampler, ClassAwareSampler, ShuffleSampler
from oltr_ext.data.samplers import batch_for

ALL = (ShuffleSampler, ClassAwareSampler, BalancedSampler)
labels_st = st.lists(st.integers(0, 6), min_size=1, max_size=40)
seed_st = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=60, deadline=None)
@given(labels_st, seed_st, st.sampled_from(ALL), st.data())
def test_any_window_equals_the_whole_stream(labels, seed, kind, data):
    stream = kind(labels, seed=seed)
    whole = stream.at(0, 200)
    start = data.draw(st.integers(0, 199))
    count = data.draw(st.integers(0, 200 - start))
    np.testing.assert_array_equal(stream.at(start, count), whole[start : start + count])
    assert whole.min() >= 0 and whole.max() < len(labels)


@settings(max_examples=40, deadline=None)
@given(labels_st, seed_st, st.sampled_from(ALL), st.integers(0, 8))
def test_resumed_stream_equals_uninterrupted(labels, seed, kind, stop):
    one, two = kind(labels, seed=seed), kind(labels, seed=seed)
    expected = list(one.batches(5, 8))
    list(two.batches(5, stop))
    again = kind(labels, seed=seed)
    again.load_state_dict(two.state_dict())
    rest = list(again.batches(5, 8 - stop))
    assert len(rest) == 8 - stop
    for got, want in zip(rest, expected[stop:], strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.concatenate(expected)[:, 0], np.arange(40))


@settings(max_examples=40, deadline=None)
@given(labels_st, seed_st)
def test_shuffle_covers_every_image_once_a_pass(labels, seed):
    size = len(labels)
    passes = ShuffleSampler(labels, seed=seed).at(0, 3 * size).reshape(3, size)
    for row in passes:
        np.testing.assert_array_equal(np.sort(row), np.arange(size))


@settings(max_examples=60, deadline=None)
@given(labels_st, seed_st, st.integers(1, 5))
def test_class_aware_cycles(labels, seed, per_class):
    labels = np.array(labels)
    classes, counts = np.unique(labels, return_counts=True)
    cycles = 7
    picked = ClassAwareSampler(labels, samples_per_class=per_class, seed=seed).at(
        0, cycles * len(classes) * per_class
    )
    by_visit = labels[picked].reshape(cycles, len(classes), per_class)
    # each visit stays in one class, and each cycle visits every non-empty class exactly once
    assert (by_visit == by_visit[:, :, :1]).all()
    for cycle in by_visit[:, :, 0]:
        np.testing.assert_array_equal(np.sort(cycle), classes)
    # a class's own images come in whole shuffled passes, carried over from visit to visit
    for c, count in zip(classes, counts, strict=True):
        own = picked[labels[picked] == c]
        for begin in range(0, len(own) - count + 1, count):
            np.testing.assert_array_equal(
                np.sort(own[begin : begin + count]), np.flatnonzero(labels == c)
            )


def test_paper_batch_holds_32_classes_of_4():
    labels = np.repeat(np.arange(64), 10)
    for batch in ClassAwareSampler(labels, seed=1).batches(128, 20):
        rows = labels[batch[:, 1]].reshape(32, 4)
        assert (rows == rows[:, :1]).all() and len(np.unique(rows)) == 32


def test_orders_are_reshuffled_and_seeded():
    labels = np.repeat(np.arange(20), 20)
    for kind in ALL:
        a = kind(labels, seed=0).at(0, 800)
        assert not np.array_equal(a[:400], a[400:])
        assert not np.array_equal(a, kind(labels, seed=1).at(0, 800))


def test_shuffles_are_uniform():
    labels = np.zeros(3, dtype=np.int64)
    perms = ClassAwareSampler(labels, samples_per_class=3, seed=5).at(0, 18000).reshape(-1, 3)
    _, counts = np.unique(perms, axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000 * 5 / 6)


def test_balanced_is_balanced_over_classes_and_images():
    labels = np.array([0] * 90 + [3] * 9 + [5])  # classes 1, 2 and 4 are empty
    picked = BalancedSampler(labels, seed=2).at(0, 30000)
    share = np.bincount(labels[picked], minlength=6) / 30000
    np.testing.assert_allclose(share, [1 / 3, 0, 0, 1 / 3, 0, 1 / 3], atol=0.02)
    images = np.bincount(picked[labels[picked] == 3] - 90, minlength=9)
    assert images.max() / images.min() < 1.25


def test_thousand_classes_are_fast():
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(1000), rng.zipf(1.3, 120_000) % 1000])
    begin = time.perf_counter()
    ClassAwareSampler(labels).at(10**7, len(labels))
    assert time.perf_counter() - begin < 2.0


@pytest.mark.parametrize("kind", ALL)
def test_bad_labels_are_named(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: the data set is empty"):
        kind(np.empty(0, np.int64))
    with pytest.raises(ValueError, match="at least 0, got -1"):
        kind([0, -1])
    with pytest.raises(ValueError, match=r"expected labels \(N,\) of integers"):
        kind([0.5])
    with pytest.raises(ValueError, match="samples_per_class"):
        ClassAwareSampler([0], samples_per_class=0)


def test_a_batch_that_few_images_fill():
    """Four times at least; where there are next to none, never more than all of them."""
    found = {images: batch_for(images) for images in (1, 2, 7, 16, 96, 503, 511, 512, 10_000)}
    assert found == {1: 1, 2: 2, 7: 2, 16: 4, 96: 16, 503: 64, 511: 64, 512: 128, 10_000: 128}
