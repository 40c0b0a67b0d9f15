"""Scores of the papers after 2020 against their formulas, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import logsumexp
from sklearn.covariance import OAS
from sklearn.neighbors import NearestNeighbors
from test_feature_bank import training, with_bank
from test_heads import heads_of_every_kind

from oltr_ext.nn import FeatureBank, LinearHead, bank_fits, feature_bank
from oltr_ext.nn.bank_fits import default_neighbours, kth_distance, null_space
from oltr_ext.nn.scores import SCORES, entropy_score, logit_scores


def gen(logits, gamma=0.1, top=100):
    """Liu et al., Eq. 2 and 4; what the largest leaves to the others is their sum."""
    rows = []
    for row in np.asarray(logits, np.float64):
        p = np.sort(np.exp(row - logsumexp(row)))[::-1]
        left = np.array([p[1:].sum(), *(1 - p[1:])])
        rows.append(-(p**gamma * left**gamma)[:top].sum())
    return np.array(rows)


@pytest.mark.parametrize("classes", [1, 2, 7, 250])
def test_gen_is_the_generalised_entropy_of_the_largest_probabilities(classes, monkeypatch):
    logits = 4 * torch.randn(40, classes, dtype=torch.float64)
    np.testing.assert_allclose(entropy_score(logits), gen(logits), rtol=1e-10, atol=1e-12)
    few = entropy_score(logits, gamma=0.3, top=3)
    np.testing.assert_allclose(few, gen(logits, 0.3, 3), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr("oltr_ext.nn.scores.CHUNK", 3 * classes)
    assert torch.equal(entropy_score(logits, gamma=0.3, top=3), few)
    with pytest.raises(ValueError, match="expected top of at least 1, got 0"):
        entropy_score(logits, top=0)


def test_gen_tells_what_float64_cannot_subtract_from_one():
    """1 - p is 0 from a margin of 37 on, and its tenth power still 0.02."""
    logits = torch.tensor([[m, 0.0] for m in (30.0, 40, 50, 60)], dtype=torch.float64)
    found = entropy_score(logits)
    np.testing.assert_allclose(found, -2 * np.exp(-logits[:, 0].numpy() / 10), rtol=1e-9)
    assert entropy_score(torch.tensor([[1.0, torch.nan]])).isnan().all()


def head_and_rows(head=None):
    x, y = training(rows=200)
    head = head or LinearHead(7, 6)
    head.fit_bank([(x, y)], y.bincount(minlength=6))
    generator = torch.Generator().manual_seed(5)
    rows = torch.cat([x[:5], 3 * torch.rand(20, 7, generator=generator)])
    with torch.no_grad():
        return head, x, y, rows, head.scores(head.outputs(rows))


def shrunk(rows, free):
    """Precision of rows (N, D) less their mean, as scikit-learn shrinks it, with `free` degrees of
    freedom: as many rows of the same sum of squares."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(free, free)))[0][:, : rows.shape[1]]
    spread = np.linalg.cholesky(rows.T @ rows)
    return OAS(assume_centered=True).fit(basis @ spread.T).precision_


def test_relative_mahalanobis_is_that_of_its_paper():
    _, x, y, rows, scores = head_and_rows()
    z, t = (F.normalize(v.double(), dim=1).numpy() for v in (rows, x))
    means = {c: t[y == c].mean(0) for c in (0, 1, 2, 3, 5)}
    own = shrunk(t - np.stack([means[int(c)] for c in y]), len(t) - 5)
    whole = shrunk(t - t.mean(0), len(t) - 1)

    def square(gap, precision):
        return np.einsum("bi,ij,bj->b", gap, precision, gap)

    relative = [square(z - m, own) - square(z - t.mean(0), whole) for m in means.values()]
    want = -np.min(relative, axis=0)
    np.testing.assert_allclose(scores["relative_mahalanobis"], want, rtol=1e-5, atol=1e-4)


def test_vim_is_that_of_its_paper():
    head, x, _, rows, scores = head_and_rows()
    w, b = (p.detach().double().numpy() for p in (head.linear.weight, head.linear.bias))
    t, r = x.double().numpy(), rows.double().numpy()
    origin = -np.linalg.pinv(w) @ b
    vectors = np.linalg.eigh((t - origin).T @ (t - origin))[1][:, ::-1]
    residual = vectors[:, 3:]  # half of 7 are principal

    def norm(v):
        return np.linalg.norm((v - origin) @ residual @ residual.T, axis=1)

    alpha = np.abs((t @ w.T + b).max(1)).sum() / norm(t).sum()
    want = logsumexp(r @ w.T + b, axis=1) - alpha * norm(r)
    np.testing.assert_allclose(scores["vim"], want, rtol=1e-5, atol=1e-5)


def test_few_rows_have_no_other_principal_directions_than_theirs():
    """Which of the others came first would be the solver's whim."""
    rows = torch.randn(3, 40, dtype=torch.float64)
    space = null_space(rows)
    assert space.shape == (40, 37) and (rows @ space).abs().max() < 1e-9
    assert null_space(torch.zeros(3, 4, dtype=torch.float64)).shape == (4, 4)


@pytest.mark.parametrize(("width", "left"), [(1, 1), (5, 3), (767, 384), (768, 256), (1501, 501)])
def test_the_principal_space_has_the_paper_s_size_where_it_gives_one(width, left):
    if width < 768:
        space = null_space(torch.randn(width + 9, width, dtype=torch.float64))
        torch.testing.assert_close(space.t() @ space, torch.eye(left, dtype=torch.float64))
        return
    sizes = []

    found = torch.ones(width), torch.empty(width, width, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", lambda a: sizes.append(a.shape) or found)
        assert null_space(torch.empty(2, width, device="meta")).shape == (width, left)
    assert sizes == [(width, width)]


def test_vim_without_a_residual_is_the_energy():
    """All training features in the principal space: nothing to match alpha on."""
    x = torch.zeros(9, 6)
    x[:, :2] = torch.rand(9, 2)
    head = LinearHead(6, 3)
    head.linear.bias.data.zero_()
    head.fit_bank([(x, torch.arange(9) % 3)], [3, 3, 3])
    scores = head.scores(head.outputs(torch.rand(4, 6)))
    assert head.bank.alpha == 0 and torch.equal(scores["vim"], scores["energy"])


def test_vim_is_fitted_on_a_sample_of_many(monkeypatch):
    x, y = training(rows=90)
    monkeypatch.setattr(feature_bank, "SAMPLE", 30)
    asked, head = [], LinearHead(7, 6)
    bank, counts = FeatureBank(), y.bincount(minlength=6)
    bank.fit([(x, y)], counts, max_logit=lambda rows: asked.append(rows) or head(rows).amax(1))
    whole = FeatureBank()
    whole.fit([(x, y)], counts)
    assert len(asked[0]) <= 30 and len(bank.rows) == 90
    assert len(y[(x[:, None] == asked[0]).all(2).any(1)].unique()) == 5  # some of every class
    assert torch.equal(whole.whitening, bank.whitening) and "vim" not in whole.names


@pytest.mark.parametrize("k", [1, 2, 5, 200])
@pytest.mark.parametrize("columns", [7, 1 << 13])
def test_knn_is_exact_whatever_is_held_at_a_time(k, columns, monkeypatch):
    monkeypatch.setattr(bank_fits, "COLUMNS", columns)
    x, y = training(rows=200)
    bank = FeatureBank()
    bank.fit([(x, y)], y.bincount(minlength=6), neighbours=k)
    assert bank.neighbours.tolist() == list(range(1, k + 1))
    rows = torch.cat([x[:5], torch.rand(20, 7)])
    z, t = (F.normalize(v.double(), dim=1).numpy() for v in (rows, x))
    want = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(t).kneighbors(z)[0][:, -1]
    found = bank.scores(rows, torch.zeros(25).double())
    np.testing.assert_allclose(-found["knn"], want, atol=2e-7)
    if k == 1:
        torch.testing.assert_close(found["knn"], found["nearest_feature"], rtol=1e-5, atol=2e-7)


def test_knn_never_holds_a_distance_for_every_row(monkeypatch):
    sizes, topk = [], torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda s, *a, **k: sizes.append(s.shape) or topk(s, *a, **k)
    )
    x, rows = torch.rand(3, 4, dtype=torch.float64), torch.rand(20_000, 4)
    found = kth_distance(x, rows, 2)
    assert max(b for _, b in sizes) == bank_fits.COLUMNS
    torch.testing.assert_close(found, torch.cdist(x, rows.double()).topk(2, largest=False)[0][:, 1])


def test_k_is_half_the_rarest_class_between_two_and_fifty():
    for counts, k in (([60, 4, 0], 2), ([9, 1], 2), ([40, 12], 6), ([5000, 5000], 50), ([0], 2)):
        assert default_neighbours(torch.tensor(counts)) == k
    x, y = torch.eye(4)[:1], torch.tensor([0])
    bank = FeatureBank()
    bank.fit([(x, y)], [1])  # fewer features than k: the farthest
    assert len(bank.neighbours) == 1 and bank.scores(x, torch.zeros(1).double())["knn"] == 0
    with pytest.raises(ValueError, match="expected neighbours of at least 1, got 0"):
        bank.fit([(x, y)], [1], neighbours=0)


def test_every_head_has_every_score_and_a_bank_of_before_reads_with_its_own():
    for head, x, y in heads_of_every_kind():
        with_bank(head, x, y)
        with torch.no_grad():
            out = head.outputs(x)
        scores = head.scores(out)
        lacking = {"openmax", "nearest_distance", "reachability"} - scores.keys()
        assert set(scores) == set(SCORES) - lacking
        assert all(v.dtype == torch.float64 and v.isfinite().all() for v in scores.values())
        assert float(head.bank.alpha) > 0
        later = ("background", "middle", "neighbours", "residual", "origin", "alpha")
        old = {k: v for k, v in head.state_dict().items() if k.split(".")[-1] not in later}
        for name in ("location", "scale"):
            old[f"bank.{name}"] = old[f"bank.{name}"][:3]
        head.load_state_dict(old)
        before = ("mahalanobis", "nearest_feature")
        assert head.bank.names == (*before, *(f"max_logit+{name}" for name in before))
        found = head.scores(out)
        for name in head.bank.names:
            assert torch.equal(found[name], scores[name])


def test_gen_costs_nothing_unless_named():
    head, x, _ = heads_of_every_kind()[0]
    out = head.outputs(x)
    assert "gen" not in head.scores(out, ("max_logit",))
    assert set(head.scores(out, ())) == set(logit_scores(out.logits))
    want = entropy_score(out.logits.double())
    assert torch.equal(head.score_of(out, "gen"), want)
