"""`OLTRClassifier` where it is asked for more than `fit` and `predict`: rows that come later,
labels of narrow types, numbers at the ends of their dtype, threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from drawn_rows import DATA, KNOWN, STRANGERS, drawn
from sklearn.exceptions import NotFittedError

from oltr_ext import OLTRClassifier
from oltr_ext.estimator import classifier
from oltr_ext.estimator.rows import held_out, kept, shuffled_order
from oltr_ext.estimator.running import threads

# --- rows that come later -----------------------------------------------------------------------


def test_what_one_class_is_rejected_by_does_not_outlive_it() -> None:
    rows, label = DATA
    model = OLTRClassifier(outlier_label=-1, random_state=0)
    model.partial_fit(rows[label == 0], label[label == 0], classes=[0, 1, 2, 3])
    model.partial_fit(rows[label > 0], label[label > 0])
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.85
    assert (model.predict(STRANGERS) == -1).mean() > 0.9


def test_rows_that_were_trained_on_never_calibrate() -> None:
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)
    before = model.offset_
    model.partial_fit(*DATA)  # as one does for another pass
    assert model.offset_ == before
    single = OLTRClassifier(outlier_label=-1, random_state=0).partial_fit(*drawn((1, 1, 1, 1)))
    assert single.offset_ == -np.inf
    few = deepcopy(single).partial_fit(*drawn((5, 1), seed=3, first=3))  # scored first
    assert len(few._pairs) == 5
    few = deepcopy(single).partial_fit(*drawn((3, 3), seed=3, first=8))  # held out
    assert len(few._pairs) == 2
    single.partial_fit(*drawn((8, 8, 8, 8), seed=3))
    assert len(single._pairs) == 32
    assert (single._pairs[:, 1] < 0).all()  # none of them is at distance 0
    assert (single.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.85


def test_what_is_interrupted_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train = classifier.train

    def cut(*args: Any, **named: Any) -> None:
        train(*args, **named)
        raise KeyboardInterrupt

    new, model = drawn((4,), first=9), OLTRClassifier(outlier_label=-1, random_state=0)
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "train", cut)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(*DATA)
    with pytest.raises(NotFittedError):
        model.predict(KNOWN[0])
    model.partial_fit(*DATA)
    before, other = model.predict_proba(KNOWN[0]), deepcopy(model).partial_fit(*new)
    with monkeypatch.context() as patch:
        patch.setattr(classifier, "train", cut)
        for learn in (model.partial_fit, model.fit):
            with pytest.raises(KeyboardInterrupt):
                learn(*new)
    np.testing.assert_array_equal(model.predict_proba(KNOWN[0]), before)
    model.partial_fit(*new)
    np.testing.assert_array_equal(model.predict_proba(KNOWN[0]), other.predict_proba(KNOWN[0]))


def test_a_partial_fit_that_fails_changes_nothing() -> None:
    model = OLTRClassifier(outlier_label=9, random_state=0).partial_fit(*DATA)
    before = model.predict_proba(KNOWN[0])
    rows = drawn((4,), first=9)[0]
    with pytest.raises(ValueError, match="9 is one of the classes"):
        model.partial_fit(rows, [9] * 4)
    with pytest.raises(TypeError, match=r"expected labels of one type, got int64 and <U1"):
        model.partial_fit(rows, ["a"] * 4)
    with pytest.raises(TypeError, match=r"expected labels of one type"):
        model.partial_fit(rows, [7] * 4, classes=["a", "b"])
    with pytest.raises(ValueError, match="1d array"):
        model.partial_fit(rows, [7] * 4, classes=[[7, 8]])
    np.testing.assert_array_equal(model.predict_proba(KNOWN[0]), before)
    first = OLTRClassifier(outlier_label=3, random_state=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="3 is one of the classes"):
            first.partial_fit(*DATA)
    assert not hasattr(first, "classes_")


def test_fit_forgets_what_was_before() -> None:
    rows = np.eye(3, 5)
    again = OLTRClassifier(random_state=0).fit(*DATA).fit(rows, [0, 1, 2])
    fresh = OLTRClassifier(random_state=0).fit(rows, [0, 1, 2])
    np.testing.assert_array_equal(again.score_samples(rows), fresh.score_samples(rows))


# --- labels -------------------------------------------------------------------------------------


def test_integers_stay_integers() -> None:
    large = np.uint64(2**60) + np.arange(4, dtype=np.uint64)  # which floats do not tell apart
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(DATA[0], large[DATA[1]])
    answer = model.predict(KNOWN[0])
    assert answer.dtype == np.int64 and (answer == large[KNOWN[1]].astype(np.int64)).mean() > 0.85
    assert (model.predict(STRANGERS) == -1).mean() > 0.9
    model.partial_fit(STRANGERS[:50], np.full(50, -3))
    assert model.classes_.tolist() == [-3, *large.tolist()]
    with pytest.raises(TypeError, match="no type of integers"):
        OLTRClassifier(outlier_label=-1).fit(DATA[0], np.uint64(2**63) + large[DATA[1]])


def test_ids_that_floats_do_not_tell_apart_meet_ids_of_another_type() -> None:
    large = np.uint64(2**60) + np.arange(4, dtype=np.uint64)
    model = OLTRClassifier(random_state=0).fit(DATA[0], large[DATA[1]])
    model.calibrate_sets(KNOWN[0], large[KNOWN[1]].astype(np.int64))
    assert model._judged_y.bincount().tolist() == [50] * 4
    new, more = np.repeat([2**60 + 50, 2**60 + 60], 5), drawn((5, 5), seed=3, first=8)[0]
    joined = deepcopy(model).enroll(more, new)
    trained = deepcopy(model).partial_fit(more, new)
    named = OLTRClassifier(random_state=0, epochs=1)
    named.partial_fit(DATA[0], large[DATA[1]], classes=[2**60 + 50, 2**60 + 60])
    for each in (joined, trained, named):
        assert each.classes_.tolist() == [*large.tolist(), 2**60 + 50, 2**60 + 60]
    assert trained._rows.tolist() == [60, 30, 12, 4, 5, 5]
    with pytest.raises(ValueError, match=f"there were rows of class {2**60 + 50}"):
        joined.enroll(more, new.astype(np.uint64))
    assert model.rename(2**60 + 1, -1).classes_.tolist() == [-1, *large[[0, 2, 3]].tolist()]


def test_floats_are_no_labels_beside_integers_that_they_do_not_hold() -> None:
    model = OLTRClassifier(random_state=0).fit(DATA[0], 2**60 + DATA[1])
    before, more = pickle.dumps(model), drawn((5,), seed=3, first=8)[0]
    for change in (model.enroll, model.partial_fit, model.calibrate_sets):
        with pytest.raises(TypeError, match=rf"integers as labels above {2**53} and floats"):
            change(more, [9.0] * 5)
    with pytest.raises(TypeError, match="and floats"):
        model.rename(2**60, 0.5)
    assert pickle.dumps(model) == before
    with pytest.raises(TypeError, match="and floats"):
        OLTRClassifier(outlier_label=2**60 + 1).fit(DATA[0], DATA[1].astype(float))
    small = OLTRClassifier(random_state=0).fit(*DATA).enroll(more, [9.0] * 5)
    assert small.classes_.tolist() == [0, 1, 2, 3, 9]


def test_an_outlier_label_among_words_that_are_objects_is_a_word() -> None:
    names = np.array(list("abcd"), object)[DATA[1]]
    with pytest.raises(TypeError, match=r"the classes' type, str, got -1"):
        OLTRClassifier(outlier_label=-1).fit(DATA[0], names)
    model = OLTRClassifier(random_state=0).fit(DATA[0], names).set_params(outlier_label=-1)
    with pytest.raises(TypeError, match=r"the classes' type, str, got -1"):
        model.predict(KNOWN[0])
    assert (model.set_params(outlier_label="?").predict(STRANGERS) == "?").mean() > 0.9


@pytest.mark.parametrize("unit", ["D", "ns"])
def test_an_outlier_label_among_days_is_a_day(unit: str) -> None:
    days = np.array(["2021-01-01", "2021-01-02"], f"M8[{unit}]")
    rows, label = DATA[0][30:90], days[DATA[1][30:90]]
    with pytest.raises(TypeError, match=r"the classes' type, datetime64\[.*\], got -1"):
        OLTRClassifier(outlier_label=-1).fit(rows, label)
    with pytest.raises(ValueError, match="is one of the classes"):
        OLTRClassifier(outlier_label=days[1]).fit(rows, label)
    never = np.datetime64("1970-01-01", unit)
    model = OLTRClassifier(outlier_label=never, random_state=0).fit(rows, label)
    assert (model.predict(STRANGERS) == never).mean() > 0.9


def test_an_outlier_label_is_one_label() -> None:
    with pytest.raises(TypeError, match=r"outlier_label: .* int64, got \[-1\]"):
        OLTRClassifier(outlier_label=[-1]).fit(*DATA)
    model = OLTRClassifier(random_state=0).fit(*DATA).set_params(outlier_label=2)
    with pytest.raises(ValueError, match="2 is one of the classes"):
        model.predict(KNOWN[0])


def test_truth_values() -> None:
    model = OLTRClassifier(random_state=0).fit(DATA[0], DATA[1] > 0)
    assert model.predict(STRANGERS).dtype == bool
    with pytest.raises(TypeError, match="bool, got -1"):
        OLTRClassifier(outlier_label=-1).fit(DATA[0], DATA[1] > 0)
    only = OLTRClassifier(outlier_label=False, random_state=0).fit(DATA[0][:60], [True] * 60)
    assert not only.predict(STRANGERS).any() and only.predict(DATA[0][:60]).mean() > 0.8


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "times"),
    [(np.float32, 1e-40), (np.float32, 1e37), (np.float64, 1e-300), (np.float64, 1e300)],
)
@pytest.mark.filterwarnings("error")
def test_features_as_small_or_large_as_their_dtype_holds(dtype: Any, times: float) -> None:
    model = OLTRClassifier(random_state=0, epochs=5).fit((DATA[0] * times).astype(dtype), DATA[1])
    assert (model.predict((KNOWN[0] * times).astype(dtype)) == KNOWN[1]).mean() > 0.97


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strangers_from_far_away_have_a_score(dtype: Any) -> None:
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(DATA[0].astype(dtype), DATA[1])
    near, far = np.zeros((2, 3, 12), dtype)
    near[:, 5], far[:, 5] = 1e6, np.finfo(dtype).max
    np.testing.assert_allclose(model.score_samples(far), model.score_samples(near), atol=1e-3)
    assert (model.predict(far) == -1).all() and np.isfinite(model.predict_proba(far)).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce")  # scikit-learn's sum
def test_features_whose_distances_are_no_numbers_are_told() -> None:
    rows = DATA[0].copy()
    rows[:60], rows[60:90] = 1.7e308, -1.7e308
    with pytest.raises(ValueError, match=r"X: .* from -1\.7e\+308 to 1\.7e\+308"):
        OLTRClassifier(random_state=0).fit(rows, DATA[1])


def test_a_constant_feature_says_nothing_whatever_its_mean_rounds_to() -> None:
    rows, label = np.full((30, 3), 0.1), np.arange(30) % 2
    model = OLTRClassifier(random_state=0).fit(rows, label)
    np.testing.assert_array_equal(model.predict_proba(rows), 0.5)
    assert model._scaling.unit == 1 and (model._scaling.mean == 0.1).all()
    beside = np.insert(DATA[0] * 1e-18, 0, 0.1, axis=1)
    model = OLTRClassifier(random_state=0).fit(beside, DATA[1])
    answer = model.predict(np.insert(KNOWN[0] * 1e-18, 0, 0.1, axis=1))
    assert (answer == KNOWN[1]).mean() > 0.97


def test_zero_has_one_sign() -> None:
    rows, label = np.eye(4)[np.arange(40) % 4], np.arange(40) % 4
    signed = np.where((rows == 0) & (np.arange(40) > 20)[:, None], -0.0, rows)
    assert len(OLTRClassifier(random_state=0).fit(signed, label)._bank) == 4


def test_weights_of_any_unit() -> None:
    rows, weight = DATA[0].astype(np.float32), 1.0 + DATA[1]
    found = [
        OLTRClassifier(random_state=0).fit(rows, DATA[1], weight * unit).predict_proba(KNOWN[0])
        for unit in (1, 2.0**-200, 2.0**200)  # float32 holds neither
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    with pytest.raises(ValueError, match=r"sample_weight: expected weights up to 1e\+280, got 1e"):
        OLTRClassifier().fit(rows, DATA[1], np.full(len(rows), 1e307))
    least = np.where(DATA[1] == 3, 1e-60, 1.0)
    assert np.isfinite(OLTRClassifier().fit(rows, DATA[1], least).predict_proba(KNOWN[0])).all()


def test_a_weight_does_what_repetition_does() -> None:
    rows, label = drawn((30, 16, 8, 8))
    times = np.where(np.arange(len(rows)) % 3 == 0, 2, 1)
    again = np.repeat(np.arange(len(rows)), times)  # all of them are one batch
    weighted = OLTRClassifier(random_state=0).fit(rows, label, times)
    repeated = OLTRClassifier(random_state=0).fit(rows[again], label[again])
    for name in ("predict_proba", "score_samples"):
        asked = getattr(weighted, name)(STRANGERS), getattr(repeated, name)(STRANGERS)
        np.testing.assert_allclose(*asked, rtol=1e-6)
    assert weighted.offset_ == pytest.approx(repeated.offset_, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_weights_that_may_only_be_read() -> None:
    weight = np.ones(len(DATA[0]))
    weight.flags.writeable = False  # as pandas hands its columns out
    OLTRClassifier(epochs=1, random_state=0).fit(*DATA, weight)


# --- which rows it takes ------------------------------------------------------------------------


def test_seeds_choose_independently_of_one_another() -> None:
    rows, one_class = np.random.default_rng(0).normal(size=(500, 6)), np.zeros(500, np.int64)
    chosen = [held_out(shuffled_order(rows, seed), one_class, 1) for seed in range(40)]
    shared = [int((a & b).sum()) for n, a in enumerate(chosen) for b in chosen[:n]]
    assert {int(each.sum()) for each in chosen} == {50}
    assert 4 < np.mean(shared) < 6 and max(shared) < 20  # a tenth of 50, as of any two draws


def test_how_many_are_held_out_goes_by_distinct_rows() -> None:
    order = np.random.default_rng(0).permutation(1000).astype(np.uint64)
    label = np.arange(1000) % 2
    once, often = held_out(order, label, 2), held_out(np.tile(order, 50), np.tile(label, 50), 2)
    assert once.sum() == 100 and (often == np.tile(once, 50)).all()
    many = np.arange(60_000, dtype=np.uint64)
    assert held_out(many, (many % 3).astype(np.int64), 3).sum() == pytest.approx(4096, abs=3)


@pytest.mark.parametrize("most", [1, 7, 100, 1999, 4000])
def test_the_largest_classes_keep_as_many_as_fit(most: int) -> None:
    label = np.repeat(np.arange(4), (1000, 1000, 900, 5))
    order = np.random.default_rng(0).permutation(len(label)).astype(np.uint64)
    counts = np.bincount(label[kept(order, label, 4, most)], minlength=4)
    one_more = np.minimum(np.bincount(label), counts.max() + 1).sum()
    assert counts.sum() <= max(most, 4) and (one_more > most or counts.sum() == len(label))


# --- how it is asked ----------------------------------------------------------------------------


def test_answers_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)
    names = ("predict", "predict_proba", "decision_function", "score_samples")
    whole = [getattr(model, name)(KNOWN[0]) for name in names]
    monkeypatch.setattr("oltr_ext.estimator.classifier.LOGITS", 4 * 7)
    monkeypatch.setattr("oltr_ext.estimator.rejecting.PIECE", 7)
    monkeypatch.setattr("oltr_ext.estimator.scaling.PIECE", 7)
    for name, answer in zip(names, whole, strict=True):
        np.testing.assert_allclose(getattr(model, name)(KNOWN[0]), answer, rtol=1e-9)
    again = OLTRClassifier(outlier_label=-1, random_state=0).fit(*DATA)
    np.testing.assert_allclose(again.score_samples(KNOWN[0]), whole[3], rtol=1e-6)


def test_threads_and_copies_answer_alike() -> None:
    model = OLTRClassifier(outlier_label=-1, test_prior=1.0, random_state=0).fit(*DATA)
    expected, held = model.score_samples(KNOWN[0]), pickle.dumps(model)
    versions = [buffer._version for buffer in model.head_.buffers()]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.score_samples(KNOWN[0]), range(16)))
    for each in found:
        np.testing.assert_array_equal(each, expected)
    assert [
        buffer._version for buffer in model.head_.buffers()
    ] == versions  # asking writes nothing
    copies = [pickle.loads(held), deepcopy(model)]
    for each in copies:
        each.partial_fit(*drawn((5,), seed=3, first=9))
    np.testing.assert_array_equal(*[each.predict_proba(KNOWN[0]) for each in copies])
    np.testing.assert_array_equal(model.score_samples(KNOWN[0]), expected)


def test_processors_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    for jobs, used in ((-1, 3), (-2, 2), (-9, 1), (2, 2)):
        with threads(jobs):
            assert torch.get_num_threads() == used
    model = OLTRClassifier(epochs=1, random_state=0).fit(*DATA).set_params(n_jobs=0)
    with pytest.raises(ValueError, match="n_jobs: expected None or an integer other than 0, got 0"):
        model.predict(KNOWN[0])


def test_a_prior_that_is_set_later_holds_from_the_next_partial_fit() -> None:
    first, more = [each[:90] for each in DATA], [each[90:] for each in DATA]
    model = OLTRClassifier(random_state=0, epochs=4).fit(*first)
    kept = deepcopy(model).partial_fit(*more)
    assert float(kept.head_.prior_share) == 0
    model.set_params(test_prior=0.7).partial_fit(*more)
    anew = OLTRClassifier(random_state=0, epochs=4, test_prior=0.7).fit(*DATA)
    assert float(model.head_.prior_share) == pytest.approx(0.7)
    assert model.offset_ == pytest.approx(anew.offset_)  # measured under the prior that is expected
    np.testing.assert_allclose(model.predict_proba(KNOWN[0]), anew.predict_proba(KNOWN[0]))
    alone = OLTRClassifier(random_state=0, epochs=4).fit(DATA[0][:60], DATA[1][:60])
    alone.set_params(test_prior=0.7).partial_fit(*more)
    assert float(alone.head_.prior_share) == pytest.approx(0.7)
    single = OLTRClassifier(random_state=0, epochs=4, test_prior=0.7)
    single.fit(DATA[0].astype(np.float32), DATA[1])
    pairs = len(single._pairs)
    single.partial_fit(KNOWN[0].astype(np.float32), KNOWN[1])  # 0.7 of float32 is no other prior
    assert len(single._pairs) == pairs + 200


def test_the_bar_ends_where_it_should(capsys: pytest.CaptureFixture[str]) -> None:
    model = OLTRClassifier(epochs=3, verbose=True, random_state=0).fit(*drawn((200, 90)))
    model.partial_fit(*drawn((5,), seed=3, first=9))
    told = [line for line in capsys.readouterr().err.split("\r") if "100%" in line]
    assert "OLTRClassifier.fit" in told[0] and "OLTRClassifier.partial_fit" in told[-1]
