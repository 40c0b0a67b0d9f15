"""What half precision cannot hold: norms over 65,504 in float16, sums over 256 ones in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch

from oltr_ext import ops, use_backend
from oltr_ext.nn import (
    CentroidMemory,
    CosineClassifier,
    FocalLoss,
    FSLwFHead,
    LiftedStructureLoss,
    MetaEmbedding,
    OLTRHead,
    RangeLoss,
    tau_normalise,
)

backends = pytest.mark.parametrize("backend", ["native", "reference"])
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])


def long_rows(rows, width=64):
    """(rows, width) float16 with norms of 160,000 and more."""
    x = 2e4 + 2e4 * torch.rand(rows, width)
    x = (x * torch.randn(rows, width).sign()).half()
    assert (x.double().norm(dim=1) > 1.6e5).all()
    return x


@backends
def test_ops_take_norms_that_float16_cannot_hold(backend):
    v, w, target = long_rows(6), long_rows(5), torch.arange(6) % 5
    zeros = torch.zeros(5).half(), torch.zeros(64, 64).half(), torch.zeros(64).half()

    def results(v, w, *rest):
        yield ops.cosine_logits(v, w)
        yield ops.cosine_cross_entropy(v, w, target)
        yield ops.disc_centroids_loss(v, target, w, margin=1e12)
        yield ops.nearest_centroid(v, w).index
        yield ops.meta_embedding(v, w, w * 0, *rest, return_details=True).distance

    with use_backend(backend):
        got, want = results(v, w, *zeros), results(*(t.double() for t in (v, w, *zeros)))
        for a, b in zip(got, want, strict=True):
            assert a.isfinite().all()
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("without", [("memory",), ("selector",), ("memory", "selector")])
def test_a_distance_that_float16_cannot_hold(without):
    """Left out or not, a part changes nothing in the distance."""
    x, memory = long_rows(6), long_rows(5)
    whole, part = MetaEmbedding(64, 5).half(), MetaEmbedding(64, 5, without=without).half()
    want, got = whole.embed(x, memory), part.embed(x, memory)
    assert got.distance.dtype == want.distance.dtype == torch.float32
    assert torch.equal(got.nearest, want.nearest)
    torch.testing.assert_close(got.distance, want.distance)
    assert (got.embedding != 0).any(dim=1).all()


@pytest.mark.parametrize("kind", ["classifier", "head"])
def test_directions_from_rows_of_such_norms(kind):
    x = long_rows(5)
    if kind == "classifier":
        classifier = CosineClassifier(64, 5).half()
        classifier.start_at(x)
    else:
        head = OLTRHead(64, 5).half()
        head.init_from(None, x, torch.arange(5), classifier="means")
        classifier = head.classifier.cosnorm_classifier
    cosine = torch.cosine_similarity(classifier.weight.double(), x.double())
    assert (cosine > 1 - 1e-5).all()
    assert (classifier.weight.double().norm(dim=1) - 3**-0.5).abs().max() < 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_directions_from_rows_whose_squares_float32_cannot_hold(scale):
    classifier, rows = CosineClassifier(6, 4), torch.randn(4, 6)
    rows[3] = 0
    before = classifier.weight[3].clone()
    classifier.start_at(rows * scale)
    want = rows[:3] / rows[:3].norm(dim=1, keepdim=True) / 3**0.5
    torch.testing.assert_close(classifier.weight[:3], want)
    assert torch.equal(classifier.weight[3], before)


def test_tau_normalisation_of_such_norms_and_of_zero():
    weight = torch.cat([long_rows(3), torch.zeros(1, 64).half()])
    for tau in (0.0, 0.5, 1.0):
        got = tau_normalise(weight, tau)
        assert got.dtype == torch.float16 and (got[3] == 0).all()
        wide = weight[:3].double()
        want = wide / wide.norm(dim=1, keepdim=True) ** tau
        torch.testing.assert_close(got[:3].double(), want, rtol=1e-3, atol=1e-5)


def test_losses_and_cosines_of_such_norms():
    x, y = long_rows(6), torch.arange(6) % 3
    for loss in (LiftedStructureLoss(), RangeLoss(margin=1e12)):
        got, want = loss(x, y), loss(x.double(), y)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    logits = torch.tensor([[0.0, 12.0], [0.0, 9.0]], requires_grad=True)
    loss = FocalLoss(0.5)(logits.half(), torch.tensor([1, 1]))  # 1 - p is 6e-6, which float16 has
    assert loss.dtype == torch.float32  # to one digit
    torch.testing.assert_close(loss, FocalLoss(0.5)(logits, torch.tensor([1, 1])))
    head = FSLwFHead(64, [20, 20, 20]).half()
    assert head.outputs(x).logits.isfinite().all()


@backends
@halves
def test_class_means_of_many_rows(backend, dtype):
    """A sum of ones in bfloat16 stops at 256, one of hundreds in float16 at 65,504."""
    x, target = torch.full((3000, 3), 100.0, dtype=dtype), torch.arange(3000) % 2
    with use_backend(backend):
        assert (ops.class_means(x, target, 2).means == 100).all()
        assert (ops.class_means(x, target, 2).counts == 1500).all()
        memory = CentroidMemory(2, 3).to(dtype)
        memory.initialise(x, target)
        assert (memory.centroids == 100).all()
        memory = CentroidMemory(2, 3, learnable=False).to(dtype)
        memory.update(x, target)
        assert (memory.centroids == 100).all() and (memory.counts == 1500).all()


@backends
@halves
def test_gradients_that_sum_over_many_rows(backend, dtype):
    ones = torch.ones(1000, 3, dtype=dtype)
    centroids = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    target = torch.zeros(1000, dtype=torch.int64)
    with use_backend(backend):
        loss = ops.disc_centroids_loss(ones, target, centroids, repel_weight=0)
        (1000 * loss).backward()
        assert centroids.grad.tolist() == [[-1000] * 3, [0] * 3]
        classes = torch.zeros(3000, 2, dtype=dtype), torch.zeros(3000, dtype=dtype)
        hundreds = torch.full((3000, 2), 100.0, dtype=dtype)
        recalled = ops.memory_attention(ones[:1, :2], *classes, hundreds)
        torch.testing.assert_close(recalled, hundreds[:1], rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_memory_follows_by_its_momentum_and_rounds_once(dtype):
    memory = CentroidMemory(2, 3, learnable=False).to(dtype)
    memory.update(torch.full((4, 3), 2.0), torch.tensor([0, 0, 1, 1]))
    memory.update(torch.full((2, 3), 7.0), torch.tensor([0, 0]), momentum=0.9)
    want = torch.tensor(0.9 * 2 + 0.1 * 7, dtype=torch.float64).to(dtype)
    digits = {torch.float64: 1e-15, torch.float32: 2e-7}.get(dtype, 0)
    torch.testing.assert_close(memory.centroids[0], want.expand(3), rtol=digits, atol=0)
    assert (memory.centroids[1] == 2).all()


@halves
def test_the_closest_classes_of_half_precision(dtype):
    memory = CentroidMemory(5, 6).to(dtype)
    memory.initialise(torch.randn(10, 6, dtype=dtype), torch.arange(10) % 5)
    x = torch.randn(4, 6)
    for rows in (x, x.to(dtype)):
        got = memory.closest(rows, 3)
        want = torch.cdist(rows.double(), memory.centroids.double()).topk(3, largest=False)
        torch.testing.assert_close(got.distance.double(), want.values)
        assert torch.equal(got.index, want.indices)


def near_centroids():
    """A head that tells 8 classes, and its centroids, at which an embedding is 1e7 times longer."""
    rng = torch.Generator().manual_seed(0)
    y = torch.arange(80) % 8
    x = 3 * torch.randn(9, 16, generator=rng)
    new, x = x[8] + 0.5 * torch.randn(5, 16, generator=rng), x[y]
    x = x + 0.5 * torch.randn(80, 16, generator=rng)
    head = OLTRHead(16, 8)
    head.init_from(None, x, y, classifier="means")
    return head.eval(), head.memory.centroids.detach().clone(), new


@backends
@pytest.mark.parametrize("without", [(), ("selector",)])
@pytest.mark.parametrize("how", ["half", "autocast"])
def test_a_feature_at_its_own_centroid(backend, without, how):
    head, x, _ = near_centroids()
    head.classifier.without = without
    with use_backend(backend):
        want = head.outputs(x).logits.float()
        if how == "half":
            head, x = head.half(), x.half()
        x.requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
            got, loss = head.outputs(x).logits, head.loss(x, torch.arange(8))
            label, _ = head.predict(x.detach())
        assert got.dtype == torch.float16 and label.tolist() == [*range(8)]
        torch.testing.assert_close(got.float(), want, rtol=0, atol=0.02)
        (loss + got.float().logsumexp(dim=1).sum()).backward()
        assert all(p.grad.isfinite().all() for p in (x, *head.parameters()) if p.grad is not None)


@pytest.mark.parametrize("how", ["half", "autocast"])
def test_a_class_that_joins(how):
    head, x, new = near_centroids()
    single = copy.deepcopy(head)
    single.enroll(new, ["new"] * 5)
    head = head.half() if how == "half" else head
    with torch.autocast("cpu", torch.float16, enabled=how == "autocast"):
        head.enroll(new, ["new"] * 5)
    got, want = (each.classifier.cosnorm_classifier.weight[8].float() for each in (head, single))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-2)
    x = torch.cat([x, new]).to(next(head.parameters()).dtype)
    assert head.predict(x)[0].tolist() == [*range(8), *[8] * 5]


def test_a_class_beyond_float16_does_not_join():
    head, _, new = near_centroids()
    head.half()
    with pytest.raises(ValueError, match=r"within torch\.float16"):
        head.enroll(new * 1e6, ["new"] * 5)
    assert head.num_classes == 8 and len(head.roster) == 8
