"""Scores by the training's features, against their formulas; fitted, kept, used and exported."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import OAS
from test_heads import heads_of_every_kind
from torch import nn

from oltr_ext import use_backend
from oltr_ext.metrics import open_scores
from oltr_ext.nn import FeatureBank, HeadOutput, LinearHead, OLTRHead, heads
from oltr_ext.nn import scores as score_module
from oltr_ext.nn.bank_fits import largest_share
from oltr_ext.nn.scores import (
    BANK_SCORES,
    FEATURE_SCORES,
    HEAD_SCORES,
    SCORES,
    SUM_SCORES,
    SUMMED,
)


def training(rows=90, width=7, classes=6, seed=0):
    """Class 4 has no image, class 5 has one."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.cat([torch.arange(rows - 1) % 4, torch.tensor([5])])
    centres = 3 * torch.rand(classes, width, generator=generator)
    return centres[target] + torch.rand(rows, width, generator=generator), target


def fitted(most=None, **options):
    x, y = training(**options)
    bank = FeatureBank()
    bank.fit(zip(x.split(13), y.split(13), strict=True), torch.bincount(y, minlength=6), most=most)
    return bank, x, y


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_distances_are_those_of_the_formulas(backend):
    bank, x, y = fitted()
    rows = torch.cat([x[:5], torch.rand(20, 7)]) * 3  # their length does not matter
    z, t = (F.normalize(v.double(), dim=1).numpy() for v in (rows, x))
    means = np.stack([t[y == c].mean(0) for c in (0, 1, 2, 3, 5)])
    within = t - np.stack([t[y == c].mean(0) for c in y])
    # scikit-learn divides by n and knows no classes: as many degrees of freedom, the same sum
    free = len(t) - 5
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(free, free)))[0][:, :7]
    spread = np.linalg.cholesky(within.T @ within)
    shrunk = OAS(assume_centered=True, store_precision=True).fit(basis @ spread.T)
    gap = z[:, None] - means
    want = np.sqrt(np.einsum("bci,ij,bcj->bc", gap, shrunk.precision_, gap).min(1))
    near = np.linalg.norm(z[:, None] - t, axis=2).min(1)
    with use_backend(backend):
        found = bank.scores(rows, torch.zeros(25, dtype=torch.float64))
    assert list(found) == list(bank.names) == [n for n in FEATURE_SCORES if n != "vim"]
    np.testing.assert_allclose(-found["mahalanobis"], want, rtol=1e-5)
    np.testing.assert_allclose(-found["nearest_feature"], near, rtol=1e-5, atol=1e-7)
    assert (found["nearest_feature"][:5].abs() < 1e-7).all() and near[5:].min() > 1e-3


def test_sums_are_standardised_on_features_that_were_not_trained_on():
    bank, *_ = fitted()
    held, rows = training(30, seed=1)[0], torch.rand(9, 7)
    logits, other = torch.randn(30).double() * 5 + 2, torch.randn(9).double()
    scores = {"max_logit": logits, **bank.scores(held, logits)}
    bank.standardise(scores)
    assert bank.names == tuple(name for name in BANK_SCORES if name != "vim")
    new = {"max_logit": other, **bank.scores(rows, other)}
    for name, parts in SUM_SCORES.items():
        fit = {part: (scores[part].mean(), scores[part].std(correction=0)) for part in parts}
        for found, of in (
            (bank.sums(scores)[name], scores),
            (bank.scores(held, logits)[name], scores),
            (new[name], new),
        ):
            want = sum((of[part] - mean) / deviation for part, (mean, deviation) in fit.items())
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
        assert list(bank.scores(rows, other, (name,))) == [name]
    same = {name: torch.ones(3).double() for name in scores}  # no spread
    bank.standardise(same)
    assert all((v == 0).all() for v in bank.sums(same).values())


def test_the_largest_classes_keep_fewer_rows_evenly_and_the_covariance_all():
    whole, _, y = fitted()
    for most in (0, 4, 5, 30, 40, 88, 89, 90, 10**9):
        bank, *_ = fitted(most)
        limit = largest_share(torch.bincount(y), most)
        assert torch.equal(bank.whitening, whole.whitening)
        assert torch.equal(bank.means, whole.means)
        if most < 5:  # not one of each class
            assert bank.rows is None and "nearest_feature" not in bank.names and limit == 0
            continue
        kept = [int(np.flatnonzero((whole.rows == row).all(1).numpy())[0]) for row in bank.rows]
        assert kept == sorted(set(kept)) and len(kept) <= most
        each = np.bincount(y[kept], minlength=6)
        if limit is None:
            assert most >= 90 and len(kept) == 90
            continue
        assert each.tolist() == [min(limit, n) for n in torch.bincount(y, minlength=6).tolist()]
        assert most - len(kept) < 4  # one more of each of the four would be too many
        for c in range(4):
            places = [n for n, row in enumerate(np.flatnonzero(y == c)) if row in kept]
            steps, even = np.diff([*places, sum(y == c)]), sum(y == c).item() / len(places)
            assert places[0] == 0 and np.floor(even) <= steps.min() <= steps.max() <= np.ceil(even)


def test_odd_training_sets():
    bank = FeatureBank()
    x, y = torch.eye(4)[:3], torch.arange(3)
    bank.fit([(x, y)], [1, 1, 1])  # no deviation from a mean: plain distances
    assert torch.equal(bank.whitening, torch.eye(4))
    found = bank.scores(torch.tensor([[0.0, 2, 0, 0]]), torch.zeros(1).double())
    assert found["mahalanobis"] == found["nearest_feature"] == 0
    with pytest.raises(ValueError, match=r"FeatureBank\.fit: expected finite features"):
        bank.fit([(x / 0, y)], [1, 1, 1])
    with pytest.raises(RuntimeError, match=r"expected labels in \[0, 2\), got 2"):
        bank.fit([(x, y)], [1, 1])
    with pytest.raises(ValueError, match="at least one feature"):
        bank.fit([], [1, 1])
    nothing = bank.scores(torch.full((2, 4), torch.nan), torch.zeros(2).double())
    assert nothing["mahalanobis"].isnan().all() and nothing["nearest_feature"].isnan().all()


def with_bank(head, x, y):
    head.eval()
    head.fit_bank([(x, y)], torch.bincount(y, minlength=head.num_classes).tolist())
    with torch.no_grad():
        head.bank.standardise(head.scores(head.outputs(x + 0.1)))
    return head


def test_every_head_has_them_saves_loads_and_answers_by_them():
    for head, x, y in heads_of_every_kind():
        before = set(head.state_dict())
        assert not any("bank" in key for key in before) and head.bank.names == ()
        assert not set(head.scores(head.outputs(x))) & set(BANK_SCORES)
        other = copy.deepcopy(head)
        with_bank(head, x, y)
        added = {f"bank.{name}" for name in (*FeatureBank.TENSORS, "length")}
        assert set(head.state_dict()) == before | added
        # a product of other strides need not have the bits of what is loaded
        assert all(tensor.is_contiguous() for tensor in head.state_dict().values())
        other.load_state_dict(head.state_dict())
        with torch.no_grad():
            out = head.outputs(x)
        scores = head.scores(out)
        assert set(BANK_SCORES) <= set(scores)
        for name in BANK_SCORES:
            middle = scores[name].median().item()
            head.set_threshold(middle, name)
            label, confidence = head.predict(x)
            assert torch.equal(confidence, scores[name])
            assert torch.equal(label == -1, confidence < middle)
            other.load_state_dict(head.state_dict())
            assert other.score == name and torch.equal(other.predict(x)[1], confidence)
        x[0, 0] = torch.nan
        assert head.predict(x)[0][0] == -1
        with pytest.raises(RuntimeError, match=r"Missing key.*bank\.whitening"):
            head.load_state_dict({k: v for k, v in head.state_dict().items() if "bank" not in k})


def test_predict_holds_a_bounded_number_of_distances(monkeypatch):
    head, x, y = heads_of_every_kind()[0]
    with_bank(head, x, y).set_threshold(0.0, "nearest_feature")
    whole, rows, outputs = head.predict(x), [], head.outputs
    monkeypatch.setattr(heads, "LOGITS", 3 * len(head.bank.rows) + 1)
    monkeypatch.setattr(head, "outputs", lambda x: rows.append(len(x)) or outputs(x))
    torch.testing.assert_close(head.predict(x), whole)
    assert rows == [3] * (len(x) // 3) + [len(x) % 3] * (len(x) % 3 > 0)


def test_a_score_costs_only_what_it_needs(monkeypatch):
    head, x, y = heads_of_every_kind()[0]
    with_bank(head, x, y)
    asked = []
    own, gen = FeatureBank._own, score_module.entropy_score
    monkeypatch.setattr(
        FeatureBank, "_own", lambda self, names, *a: asked.extend(names) or own(self, names, *a)
    )
    monkeypatch.setattr(score_module, "entropy_score", lambda *a: asked.append("gen") or gen(*a))
    for name, want in (
        ("max_logit", []),
        ("gen", ["gen"]),
        ("mahalanobis", ["mahalanobis"]),
        ("max_logit+nearest_feature", ["nearest_feature"]),
    ):
        head.set_threshold(0.0, name)
        head.predict(x)
        assert asked == want
        asked.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_leaves_the_bank(dtype):
    digits = 1e-5 if dtype == torch.float64 else 1e-1
    for head, x, y in heads_of_every_kind():
        with_bank(head, x, y)
        want = {k: v.clone() for k, v in head.bank.state_dict().items()}
        scores = head.scores(head.outputs(x))
        head.to(dtype)
        assert all(torch.equal(v, want[k]) for k, v in head.bank.state_dict().items())
        found = head.scores(head.outputs(x.to(dtype)))
        for name in FEATURE_SCORES:
            torch.testing.assert_close(found[name], scores[name], rtol=digits, atol=digits)
    empty = copy.deepcopy(head).to("meta")
    assert empty.bank.rows.is_meta and empty.bank.rows.dtype == torch.float32
    empty.load_state_dict(head.state_dict(), assign=True)
    assert torch.equal(empty.bank.rows, head.bank.rows)


class Predict(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head.predict(x)


@pytest.mark.parametrize("name", ["max_softmax", "gen", *BANK_SCORES])
def test_predict_is_one_graph_with_what_the_score_needs(name):
    rows = ({0: torch.export.Dim("rows")},)
    head, x, y = heads_of_every_kind()[0]
    with_bank(head, x, y).requires_grad_(False)
    head.set_threshold(head.scores(head.outputs(x))[name].median().item(), name)
    small = copy.deepcopy(head)
    small.bank.keep_for(name)
    held = {key.removeprefix("bank.") for key in small.state_dict() if "bank." in key}
    assert ("rows" in held) == ("nearest" in name or name == "knn")
    assert ("means" in held) == ("mahal" in name) and ("scale" in held) == ("+" in name)
    assert ("background" in held) == ("relative" in name) and ("alpha" in held) == (name == "vim")
    with torch.no_grad():
        program = torch.export.export(Predict(small), (x[:2],), dynamic_shapes=rows).module()
    for part in (x, x[:1], x[:7]):
        for want, got in zip(head.predict(part), program(part), strict=True):
            torch.testing.assert_close(got, want)


def test_names_keep_their_places():
    """A head stores the index of its score."""
    released = ("max_softmax", "max_logit", "energy", "nearest_distance", "reachability", "openmax")
    sums = ("max_logit+mahalanobis", "max_logit+nearest_feature")
    later = ("gen", "relative_mahalanobis", "knn", "vim", "max_logit+relative_mahalanobis")
    three = "max_logit+relative_mahalanobis+nearest_feature"
    assert (*released, "mahalanobis", "nearest_feature", *sums, *later, three) == SCORES
    assert set(SCORES) == {*HEAD_SCORES, *BANK_SCORES} and len(set(SCORES)) == len(SCORES)
    assert set(open_scores(torch.zeros(1, 2))) < set(HEAD_SCORES)
    assert SUMMED[:3] == ("max_logit", "mahalanobis", "nearest_feature")
    head = LinearHead(3, 2)
    with pytest.raises(ValueError, match="LinearHead has no score mahalanobis; it has max_softmax"):
        head.score_of(head.outputs(torch.rand(2, 3)), "mahalanobis")
    bare = with_bank(head, torch.rand(9, 3), torch.arange(9) % 2)
    kinds = {"max_softmax", "max_logit", "energy", "gen"}
    assert set(bare.scores(HeadOutput(torch.rand(2, 2)))) == kinds


def test_a_memory_has_both_kinds_of_distance():
    x, y = training()
    head = OLTRHead(7, 6)
    head.init_from(None, x, y)
    assert {"nearest_distance", "nearest_feature"} <= set(with_bank(head, x, y).bank.names) | set(
        head.scores(head.outputs(x))
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_bank_is_fitted_in_other_precisions(dtype):
    for head, x, y in heads_of_every_kind():
        counts = torch.bincount(y, minlength=4)
        head.fit_bank([(x, y)], counts)
        want = float(head.bank.alpha)
        head.to(dtype).fit_bank([(x.to(dtype), y)], counts)
        assert head.bank.rows.dtype == torch.float32
        assert float(head.bank.alpha) == pytest.approx(want, rel=0.1)


def test_a_fit_that_raises_leaves_the_bank():
    head, x, y = heads_of_every_kind()[0]
    counts = torch.bincount(y, minlength=4)
    head.fit_bank([(x, y)], counts)
    want = {name: value.clone() for name, value in head.bank.state_dict().items()}
    with pytest.raises(ValueError, match=r"fit_bank: expected features \(B, 6\), got \(2, 5\)"):
        head.fit_bank([(torch.rand(2, 5), y[:2])], counts)

    def broken(features):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        head.bank.fit([(x + 1, y)], counts, max_logit=broken)
    found = head.bank.state_dict()
    assert found.keys() == want.keys() and all(torch.equal(v, want[k]) for k, v in found.items())
