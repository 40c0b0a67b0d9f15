"""Nothing, one of a kind, counts of zero: a right value, or an error with what was expected."""

from __future__ import annotations

import math

import pytest
import torch

from oltr_ext import metrics
from oltr_ext.nn import (
    CentroidMemory,
    CosineClassifier,
    FeatureBank,
    LinearHead,
    LWSHead,
    MetaEmbeddingClassifier,
    OLTRHead,
    OpenMaxHead,
    RangeLoss,
    all_scores,
    best_tau,
    logit_adjusted_bias,
    logit_scores,
    open_score,
    prior_share,
)
from oltr_ext.nn.scores import LOGIT_SCORES, SUMMED

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("counts", "prior", "message"),
    [
        ([1, 1, 1], [0.0, 0, 0], "3 of 3 that are not"),
        ([1, 1, 0], [0.5, 0.5, 0], "1 of 3 that are not; count a class without images as part"),
        ([1, 1], [0.5, NAN], "1 of 2"),
        ([1, 1], [INF, 1], "1 of 2"),
        ([3, -1], [0.5, 0.5], "expected counts from 0, got -1 to 3"),
        ([NAN, 1.0], [0.5, 0.5], "expected counts from 0"),
        ([0, 0], [0.5, 0.5], "got 0 images in"),
        ([], [], r"got 0 images in \(0,\) for \(0,\)"),
        ([1, 1], [0.5, 0.3, 0.2], r"\(2,\) for \(3,\)"),
    ],
)
def test_a_share_of_no_prior_is_told(counts, prior, message):
    with pytest.raises(ValueError, match=f"^prior_share: .*{message}"):
        prior_share(torch.tensor(counts), torch.tensor(prior))


def test_one_class_has_all_of_any_prior():
    assert prior_share(torch.tensor([4]), torch.tensor([1.0])) == 0
    assert prior_share(torch.tensor([0, 4]), torch.tensor([0.5, 0.5])) == 0


def test_a_bias_makes_up_for_no_frequency_of_zero():
    for tau in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"^logit_adjusted_bias: expected .* got 1 of 2"):
            logit_adjusted_bias(torch.zeros(2), torch.tensor([1.0, 0.0]), tau)


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (4,), (2, 3, 4)])
def test_scores_of_no_class_are_told(shape):
    logits, got = torch.zeros(shape), r"got \(" + ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"all_scores: expected logits \(B, C >= 1\), {got}"):
        all_scores(logits)
    with pytest.raises(ValueError, match=f"logit_scores: expected logits .*, {got}"):
        logit_scores(logits)
    for name in (*LOGIT_SCORES, "nearest_distance"):
        with pytest.raises(ValueError, match=f"open_score: expected logits .*, {got}"):
            open_score(name, logits, torch.zeros(shape[0]))


def test_scores_of_no_row_and_of_one_class():
    for scores in (all_scores(torch.zeros(0, 3)), logit_scores(torch.zeros(0, 3))):
        assert {len(score) for score in scores.values()} == {0}
    one = all_scores(torch.tensor([[2.0], [-5.0]]))
    assert one["max_softmax"].tolist() == [1, 1] and one["max_logit"].tolist() == [2, -5]
    assert one["energy"].tolist() == [2, -5]


@pytest.mark.parametrize(
    "layer",
    [
        *(LinearHead, LWSHead, OpenMaxHead, OLTRHead, CosineClassifier, MetaEmbeddingClassifier),
        lambda width, classes: CentroidMemory(classes, width),
    ],
)
def test_what_could_answer_nothing_is_not_built(layer):
    for width, classes in ((4, 0), (0, 4), (4, -1)):
        with pytest.raises(ValueError, match=f"class and one feature, got {classes} and {width}$"):
            layer(width, classes)


@pytest.mark.parametrize("head", [LinearHead, LWSHead, OpenMaxHead, OLTRHead])
def test_one_class_and_no_rows(head):
    made = head(4, 1)
    label, confidence = made.predict(torch.rand(3, 4))
    assert label.tolist() == [0, 0, 0] and torch.isfinite(confidence).all()
    assert torch.isfinite(made.loss(torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)))
    label, confidence = head(4, 3).predict(torch.rand(0, 4))
    assert label.shape == confidence.shape == (0,)


def test_settings_of_none_are_told():
    for alpha in (0, -1):
        with pytest.raises(ValueError, match=f"OpenMaxHead: expected alpha of .* 1, got {alpha}"):
            OpenMaxHead(4, 3, alpha=alpha)
    with pytest.raises(ValueError, match="RangeLoss: expected k of at least 1, got 0"):
        RangeLoss(k=0)


def test_tau_of_nothing_is_told():
    weight, x, y = torch.rand(2, 4), torch.rand(3, 4), torch.tensor([0, 0, -1])
    with pytest.raises(ValueError, match=r"weight \(C >= 1, D\) and worth .*, got \(0, 4\)"):
        best_tau(weight[:0], x, y, [0.0])
    with pytest.raises(ValueError, match=r"got \(2, 4\) and a worth \(3,\)"):
        best_tau(weight, x, y, [0.0], torch.ones(3))
    for rows, worth in ((slice(0, 0), None), (slice(2, 3), None), (slice(0, 3), [0.0, 1.0])):
        with pytest.raises(ValueError, match="rows of known classes that count, got 1 and 0"):
            best_tau(
                weight, x[rows], y[rows], [0.0], None if worth is None else torch.tensor(worth)
            )
    # a row that is open is of no class, not of the last
    with pytest.raises(ValueError, match="got 1 and 0"):
        best_tau(weight, x[2:], y[2:], [0.0], torch.ones(2))


def test_a_bank_of_less_than_it_was_told_to_expect():
    bank, y = FeatureBank(), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="standardise: expected a bank that was fitted"):
        bank.standardise({})
    with pytest.raises(ValueError, match="expected at least one feature, got none"):
        bank.fit([], [1, 2])
    with pytest.raises(ValueError, match="class 0 has 5 features, and counts say 3"):
        bank.fit([(torch.rand(5, 4), y)], [3, 0], most=4)
    bank.fit([(torch.rand(5, 4), y)], [7, 0])  # two of them could not be read
    assert len(bank.rows) == 5 and len(bank.means) == 1
    good = {name: torch.rand(2) for name in SUMMED}
    for name in good:
        for bad, got in ((torch.rand(0), "none"), (torch.tensor([1, NAN]), "others")):
            with pytest.raises(ValueError, match=f"expected finite scores {name}, got {got}"):
                bank.standardise({**good, name: bad})
        with pytest.raises(ValueError, match=f"expected finite scores {name}, got none"):
            bank.standardise({k: v for k, v in good.items() if k != name})
    assert bank.location is None
    bank.fit([(torch.rand(5, 4), y)], [5, 0], most=0)
    bank.standardise({name: each for name, each in good.items() if name != "nearest_feature"})
    assert torch.isfinite(bank.location).all()


def test_accuracy_of_classes_that_there_are_not():
    for target, classes in (([0], 0), ([2, 5], 3)):
        with pytest.raises(ValueError, match=rf"class_accuracy: .* below {classes} classes, got"):
            metrics.class_accuracy(target, target, classes)
    with pytest.raises(ValueError, match="target: labels start at 0, got -1"):
        metrics.class_accuracy([0], [-1], 3)
    assert metrics.class_accuracy([], [], 0).shape == (0,)
    found = metrics.class_accuracy([0, 1, 0], [0, 1, 1], 3)
    assert found[:2].tolist() == [1, 0.5] and math.isnan(found[2])
