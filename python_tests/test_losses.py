"""The losses of other methods against their papers' formulas, worked by hand and by loops."""

from __future__ import annotations

from itertools import combinations
from math import e, exp, log

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from oltr_ext.nn import (
    DiscCentroidsLoss,
    FocalLoss,
    LiftedStructureLoss,
    LinearHead,
    OLTRHead,
    RangeLoss,
)


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def test_focal_by_hand():
    # the true class has probability 1/4 in the first row, 3/4 in the second
    logits = torch.tensor([[0.0, log(3)], [0.0, log(3)]], dtype=torch.float64)
    want = ((3 / 4) ** 2 * log(4) + (1 / 4) ** 2 * log(4 / 3)) / 2
    assert FocalLoss(2)(logits, torch.tensor([0, 1])).item() == pytest.approx(want, rel=1e-12)


def test_focal_is_cross_entropy_at_zero_and_safe_when_certain():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(FocalLoss(0)(logits, target), F.cross_entropy(logits, target))
    assert torch.autograd.gradcheck(lambda z: FocalLoss(2)(z, target), logits)
    certain = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = FocalLoss(0.5)(certain, torch.tensor([0]))
    (grad,) = torch.autograd.grad(loss, certain)
    assert loss == 0 and torch.isfinite(grad).all()


def test_lifted_by_hand():
    # one pair at distance 1, whose members are 3 and 2 from the stranger:
    # J = log(exp(1 - 3) + exp(1 - 2)) + 1
    x, y = column(0, 1, 3), torch.tensor([5, 5, 2])
    want = (log(exp(-2) + exp(-1)) + 1) ** 2 / 2
    assert LiftedStructureLoss()(x, y).item() == pytest.approx(want, rel=1e-12)
    # a stranger far enough costs nothing: J is negative
    assert LiftedStructureLoss()(column(0, 1, 30), y) == 0


def lifted_by_loops(x, y, margin):
    pairs = [(i, j) for i, j in combinations(range(len(x)), 2) if y[i] == y[j]]
    total = 0.0
    for i, j in pairs:
        inside = sum(
            (margin - (x[a] - x[k]).norm()).exp() for a in (i, j) for k in range(len(x))
            if y[k] != y[a]
        )  # fmt: skip
        total = total + (inside.log() + (x[i] - x[j]).norm()).clamp_min(0) ** 2
    return total / (2 * len(pairs))


def test_lifted_is_the_paper_s_double_sum():
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3])
    loss = LiftedStructureLoss(1.5)(x, y)
    torch.testing.assert_close(loss, lifted_by_loops(x, y, 1.5))
    (got,), (want,) = (
        torch.autograd.grad(value, x) for value in (loss, lifted_by_loops(x, y, 1.5))
    )
    torch.testing.assert_close(got, want)


def test_range_by_hand():
    # class 0 at 0, 1, 3: squared ranges 9 and 4 are the two largest, harmonic mean 2/(1/9 + 1/4);
    # class 2 at 20, 22: one range of 4; class 1 has one image and none.
    # Means 4/3, 10 and 21: the nearest two are 10 - 4/3 apart.
    x, y = column(0, 1, 3, 10, 20, 22), torch.tensor([0, 0, 0, 1, 2, 2])
    intra, inter = 2 / (1 / 9 + 1 / 4) + 4, 100 - (10 - 4 / 3) ** 2
    loss = RangeLoss(2, margin=100, intra=0.5, inter=0.1)(x, y)
    assert loss.item() == pytest.approx(0.5 * intra + 0.1 * inter, rel=1e-12)
    # beyond the margin only the ranges count
    assert RangeLoss(2, margin=10)(x, y).item() == pytest.approx(intra, rel=1e-12)
    assert RangeLoss(1, margin=10)(x, y).item() == pytest.approx(9 + 4, rel=1e-12)


def test_range_has_the_slope_of_its_formula():
    x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 0, 4, 4, 4, 4, 2])
    assert torch.autograd.gradcheck(lambda v: RangeLoss(2, 30.0)(v, y), x)


@pytest.mark.parametrize("loss", [LiftedStructureLoss(), RangeLoss()])
def test_metric_losses_without_pairs_strangers_or_distance(loss):
    x = torch.randn(4, 3, requires_grad=True)
    for target in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        (grad,) = torch.autograd.grad(loss(x, target), x)
        assert torch.isfinite(grad).all()
    same = torch.ones(4, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(same, torch.tensor([0, 0, 1, 1])), same)
    assert torch.isfinite(grad).all()
    assert LiftedStructureLoss()(x, torch.arange(4)) == 0  # no pair
    assert LiftedStructureLoss()(x, torch.zeros(4)) == 0  # no stranger
    half = loss(x.detach().bfloat16(), torch.tensor([0, 0, 1, 1]))
    assert half.dtype == torch.float32


def test_a_linear_head_takes_a_criterion_and_a_metric():
    x, y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    head = LinearHead(4, 3, criterion=FocalLoss(), metric=RangeLoss(), metric_weight=0.25)
    want = FocalLoss()(head(x), y) + 0.25 * RangeLoss()(x, y)
    torch.testing.assert_close(head.loss(x, y), want)
    assert head.state_dict().keys() == LinearHead(4, 3).state_dict().keys()


def test_balanced_softmax_by_hand():
    # Ren et al.: n_y exp(z_y) / sum_c n_c exp(z_c), here with counts 3 and 1
    head = LinearHead(2, 2, class_prior=torch.tensor([3.0, 1.0]))
    head.start_at(torch.eye(2))
    rows = torch.tensor([[0.0, 0.0], [0.0, log(2)]])
    want = (log(4 / 3) + log((3 + 2) / 2)) / 2
    assert head.loss(rows, torch.tensor([0, 1])).item() == pytest.approx(want, rel=1e-6)


def test_loss_of_logit_adjustment_is_that_of_a_prior_to_the_power_of_tau():
    # Menon et al., Eq. 10: -log softmax(f + tau log pi), tau = 2, pi = 3/4 and 1/4
    head = LinearHead(2, 2, class_prior=torch.tensor([0.75, 0.25]) ** 2)
    head.start_at(torch.eye(2))
    want = log(1 + 9 / e)  # 9 exp(0) against 1 exp(1), the true class the second
    got = head.loss(torch.tensor([[0.0, 1.0]]), torch.tensor([1])).item()
    assert got == pytest.approx(want, rel=1e-6)


def test_official_centroids_ignore_the_weight_and_count_one_too_many():
    # two images of class 0 at 1 and 3, its centroid at 0, the other so far that repel is off
    x, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0])
    grads = {}
    for compat in ("fixed", "official"):
        head = OLTRHead(1, 2, feature_loss_weight=0.01, compat=compat)
        with torch.no_grad():
            head.memory.centroids.copy_(torch.tensor([[0.0], [10.0]]))
        head.loss(x, y).backward()
        grads[compat] = head.memory.centroids.grad[:, 0].tolist()
    # attract = sum |x - c|^2 / (2 B): slope ((0 - 1) + (0 - 3)) / 2 = -2
    assert grads["fixed"] == pytest.approx([0.01 * -2, 0])
    assert grads["official"] == pytest.approx([-2 / 3, 0])


def test_smoothing_passes_over_a_class_of_frequency_zero():
    """As the fused op's does; by torch's cross-entropy the loss would be infinite."""
    prior, x, y = torch.tensor([10.0, 5, 3, 2, 0]), torch.randn(8, 6), torch.arange(8) % 4
    for reduction in ("mean", "sum", "none"):
        criterion = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=3, reduction=reduction)
        head = LinearHead(6, 5, class_prior=prior, criterion=criterion)
        logits = (head(x) + prior.log())[:, :4]
        torch.testing.assert_close(head.loss(x, y), criterion(logits, y))
    head.loss(x, y).sum().backward()
    assert head.linear.weight.grad.isfinite().all()


def test_compat_is_checked_when_it_is_given():
    for make in (lambda: DiscCentroidsLoss(compat="x"), lambda: OLTRHead(4, 3, compat="x")):
        with pytest.raises(ValueError, match="compat to be one of fixed, official, got 'x'"):
            make()
