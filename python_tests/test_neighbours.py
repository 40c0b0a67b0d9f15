"""What other libraries get wrong (`findings/`) and users of this one must not meet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oltr_ext import OLTRClassifier, ops
from oltr_ext.metrics import f_measure, open_set_metrics, oscr, shot_accuracy
from oltr_ext.nn import OLTRHead, OpenMaxHead


@pytest.fixture
def medium_precision():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype, most", [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_class_sums_go_on_where_adding_one_changes_nothing(dtype, most):
    """bf16-class-sums: means of many rows, and gradients that many rows share."""
    n = 4 * most
    x, label = torch.ones(n, 3, dtype=dtype), torch.zeros(n, dtype=torch.long)
    means, count = ops.class_means(x, label, 2)[:2]
    assert means[0].tolist() == [1, 1, 1] and count.tolist() == [n, 0]
    memory = torch.tensor([[0.0, 0, 0], [9, 9, 9]], dtype=dtype, requires_grad=True)
    distance, _ = ops.nearest_centroid(x[:, :1].expand(n, 3), memory)
    (grad,) = torch.autograd.grad(distance, memory, torch.ones_like(distance))
    torch.testing.assert_close(
        grad[0].double(), torch.full((3,), -n / 3**0.5).double(), rtol=1e-2, atol=0
    )


@pytest.mark.parametrize("value", [300.0, 2000.0, 0.0])
def test_float16_norms_beyond_float16(value):
    """fp16-unit-vectors: norms of 19,200 and 128,000, and of 0."""
    v = torch.full((1, 4096), value, dtype=torch.float16)
    weight = torch.full((1, 4096), 2000.0, dtype=torch.float16)
    logits = ops.cosine_logits(v, weight)
    norm = v.double().norm()
    assert logits.item() == pytest.approx((16 * norm / (1 + norm)).item(), rel=1e-3)


def test_openmax_scores_a_row_alike_alone_and_in_a_batch():
    """pytorch-ood-openmax-batch: whoever else is there, and whichever classes they are."""
    near = F.one_hot(torch.arange(100) % 5, 5)
    head = OpenMaxHead(5, 5, alpha=3)
    head.start_at(torch.eye(5))
    head.fit(4 * near + torch.randn(100, 5), torch.arange(100) % 5)
    x = 2 * near[:40] + torch.randn(40, 5)
    together = head.outputs(x).unknown
    apart = torch.cat([head.outputs(row[None]).unknown for row in x])
    assert together.std() > 0.01
    torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-6)


def test_medium_precision_answers_a_row_alike_alone_and_in_a_batch(medium_precision):
    """medium-depends-on-size: with 100 classes torch rounds three rows and not two."""
    x, target = torch.randn(64, 512).relu(), torch.arange(64) % 50
    head = OLTRHead(512, 100)
    head.init_from(None, x, target, classifier="means")
    with torch.no_grad():
        together = head.outputs(x).logits
        for rows in (1, 2, 3, 16):
            torch.testing.assert_close(
                head.outputs(x[:rows]).logits, together[:rows], rtol=0, atol=1e-4
            )


def test_metrics_do_not_depend_on_the_order_of_rows():
    """mapie-row-order: most scores are equal, and rows come class by class or right ones first."""
    rng = np.random.default_rng(0)
    target = np.repeat(np.arange(-1, 5), 40)
    pred = np.where(rng.random(240) < 0.7, np.maximum(target, 0), rng.integers(5, size=240))
    score = rng.choice([0.5, 1.0], p=[0.2, 0.8], size=240)

    def figures(rows):
        s, p, t = score[rows], pred[rows], target[rows]
        shots = shot_accuracy(p, t, [100, 50, 20, 10, 5])
        return [
            *open_set_metrics(s, t).values(),
            oscr(s, p, t).area,
            f_measure(p, t),
            *shots.values(),
        ]

    want = figures(np.arange(240))
    for rows in (np.argsort(pred == target), np.argsort(pred != target), rng.permutation(240)):
        for got, figure in zip(figures(rows), want, strict=True):
            np.testing.assert_allclose(got, figure, rtol=1e-12)


@pytest.mark.parametrize("taken_for", [np.zeros(20, int), np.arange(20)])
def test_few_shot_accuracy_whatever_the_errors_are_taken_for(taken_for):
    """macro-over-few-classes: 20 of 200 images of ten rare classes, as one class or as twenty."""
    target = np.arange(40, 50).repeat(20)
    pred = target.copy()
    pred[::10] = taken_for
    got = shot_accuracy(pred, target, np.repeat([500, 5], [40, 10]))
    assert got["few"] == pytest.approx(0.9) and np.isnan(got["many"])


def test_uint8_features_and_large_labels_are_those_numbers():
    """smote-uint8 and label-floats: differences below zero, neighbours beyond 2**24."""
    rng = np.random.default_rng(0)
    y = 2**30 + np.arange(60) % 3
    x = rng.integers(100, 120, (60, 8)) + 100 * np.eye(8, dtype=int)[y - 2**30]
    small, wide = (
        OLTRClassifier(epochs=2, random_state=0).fit(rows, y)
        for rows in (x.astype(np.uint8), x.astype(np.float64))
    )
    assert small.classes_.tolist() == [2**30, 2**30 + 1, 2**30 + 2]
    assert (small.predict(x.astype(np.uint8)) == y).all()
    np.testing.assert_array_equal(small.score_samples(x.astype(np.uint8)), wide.score_samples(x))
