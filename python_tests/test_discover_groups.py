"""Groups among features: the known classes set their scale, their sureness is the silhouette."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from oltr_ext.nn import FeatureBank
from oltr_ext.serve import discover_groups
from oltr_ext.serve.discover_groups import group_features, known_means, measure

WIDTH = 64


def blobs(count: int, each: int, *, first: int, spread: float = 0.5) -> tuple[Any, Any]:
    """Around axes of their own, from `first` on."""
    label = np.repeat(np.arange(count), each)
    noise = np.random.default_rng(first).normal(size=(len(label), WIDTH))
    return 5 * np.eye(WIDTH)[first + label] + spread * noise, label


@pytest.fixture(scope="module")
def known() -> tuple[Any, Any, FeatureBank]:
    rows, label = blobs(6, 20, first=0)
    bank = FeatureBank()
    bank.fit([(torch.tensor(rows), torch.tensor(label))], np.bincount(label).tolist())
    return rows, label, bank


def test_the_means_of_the_known_come_back_out_of_the_bank(known: Any) -> None:
    rows, label, bank = known
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    means = np.stack([unit[label == c].mean(axis=0) for c in range(6)])
    np.testing.assert_allclose(known_means(bank).numpy(), means, atol=1e-5)
    with pytest.raises(ValueError, match="keeps the means of its classes"):
        known_means(FeatureBank())


def test_groups_are_average_linkage_cut_at_the_lower_quartile_of_distances_to_the_known(
    known: Any,
) -> None:
    rows, label, bank = known
    x, truth = blobs(5, 9, first=6)
    x = np.concatenate([x, np.eye(WIDTH)[50:54]])
    found = group_features(torch.tensor(x), known_means(bank))
    pairs = cdist(x, rows, "cosine")
    near = np.stack([pairs[:, label == c].mean(axis=1) for c in range(6)], axis=1).min(axis=1)
    assert found.cut == pytest.approx(np.quantile(near, 0.25), abs=1e-5)
    expected = fcluster(linkage(x, "average", metric="cosine"), found.cut, "distance")
    expected[np.bincount(expected)[expected] < 2] = 0
    assert adjusted_rand_score(expected, found.group) == 1
    assert ((expected == 0) == (found.group == 0)).all() and found.cells == 0
    assert adjusted_rand_score(truth, found.group[:45]) == 1
    assert (found.group[45:] == 0).all()
    sizes = np.bincount(found.group)[1:]
    assert (np.diff(sizes) <= 0).all() and len(found.means) == len(sizes)


def test_sureness_is_the_silhouette_among_groups_and_known_classes(known: Any) -> None:
    rows, label, bank = known
    x, _ = blobs(4, 7, first=20, spread=0.7)
    found = group_features(torch.tensor(x), known_means(bank))
    inside = found.group > 0
    everything = np.concatenate([x[inside], rows])
    labels = np.concatenate([found.group[inside], 1000 + label])
    expected = silhouette_samples(everything, labels, metric="cosine")[: inside.sum()]
    np.testing.assert_allclose(found.sure[inside], expected, atol=2e-5)
    assert (found.sure[~inside] == 0).all()
    alone = np.where(np.arange(len(x)) == 3, 2, 1)  # what is alone in its group has no others
    rows = np.arange(len(x))
    sure, _ = measure(torch.tensor(x), alone, known_means(bank), rows)
    labels = np.concatenate([alone, 1000 + label])
    expected = silhouette_samples(np.concatenate([x, known[0]]), labels, metric="cosine")[: len(x)]
    np.testing.assert_allclose(sure, expected, atol=2e-5)
    assert sure[3] == 0


def test_order_and_length_of_the_features_do_not_matter(known: Any) -> None:
    x, _ = blobs(5, 8, first=12)
    draw = np.random.default_rng(0)
    order = draw.permutation(len(x))
    means = known_means(known[2])
    one = group_features(torch.tensor(x), means)
    other = group_features(torch.tensor(x[order] * draw.uniform(0.1, 9, (len(x), 1))), means)
    assert adjusted_rand_score(one.group[order], other.group) == 1
    np.testing.assert_allclose(one.sure[order], other.sure, atol=1e-5)


def test_cells_stand_for_many_and_threads_change_nothing(
    known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, _ = blobs(10, 60, first=30)
    x, means = torch.tensor(x), known_means(known[2])
    whole = group_features(x, means)
    monkeypatch.setattr(discover_groups, "EXACT", 120)
    threads = torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(group_features(x, means))
    finally:
        torch.set_num_threads(threads)
    assert 0 < found[0].cells <= 120 and whole.cells == 0
    assert (found[0].group == found[1].group).all() and (found[0].sure == found[1].sure).all()
    inside = found[0].group > 0
    assert inside.mean() > 0.95
    assert adjusted_rand_score(whole.group[inside], found[0].group[inside]) > 0.95
    far = torch.cat([x, -x.mean(dim=0, keepdim=True)])  # in some cell it must be, in a group not
    assert group_features(far, means).group[-1] == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_few_are_no_error(known: Any, count: int) -> None:
    x = torch.randn(1, WIDTH).repeat(count, 1) * torch.tensor([[1.0], [1.01]])[:count]
    found = group_features(x, known_means(known[2]))
    assert found.group.tolist() == [1, 1][:count] if count > 1 else not found.group.any()
    assert found.sure.shape == (count,) and len(found.means) == (count > 1)
    assert not group_features(x, known_means(known[2]), least=3).group.any()


def test_a_feature_of_zeros_is_like_nothing(known: Any) -> None:
    x = torch.cat([torch.zeros(3, WIDTH), torch.tensor(blobs(2, 6, first=40)[0]).float()])
    found = group_features(x, known_means(known[2]))
    assert not found.group[:3].any() and found.group[3:].all()
    assert np.isfinite(found.sure).all()
