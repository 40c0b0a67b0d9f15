"""Classifiers made anew and OpenMax, against their papers' formulas worked by hand."""

from __future__ import annotations

from math import exp, log, sqrt

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import weibull_min

from oltr_ext.nn import (
    LinearHead,
    LWSHead,
    OpenMaxHead,
    best_tau,
    class_directions,
    fit_weibull,
    logit_adjusted_bias,
    open_score,
    openmax,
    prior_share,
    tau_normalise,
)


def test_tau_normalisation_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 4.0], [0.0, 0.0]])  # lengths 5, 4, 0
    assert torch.equal(tau_normalise(weight, 0), weight)
    torch.testing.assert_close(
        tau_normalise(weight, 1), torch.tensor([[0.6, 0.8], [0, 1.0], [0, 0]])
    )
    half = tau_normalise(weight, 0.5)
    torch.testing.assert_close(half[:2], weight[:2] / torch.tensor([[sqrt(5)], [2.0]]))


def test_best_tau_is_the_smallest_that_is_right_most_often():
    # class 0 is ten times as long: the row of class 1 is right once 10^(1 - tau) < 2
    weight = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    features, target = torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 9.0]]), torch.tensor([0, 1, -1])
    assert best_tau(weight, features, target, [1.0, 0.9, 0.8, 0.6, 0.0]) == 0.8
    with pytest.raises(ValueError, match=r"best_tau: expected .*, got 1 and 0"):
        best_tau(weight, features[2:], target[2:], [0.5])


def test_nearest_class_mean_by_cosine_and_by_distance():
    x, y = torch.rand(40, 5), torch.arange(40) % 4
    x[y == 1] *= 30  # length must not matter
    directions = class_directions([(x[:15], y[:15]), (x[15:], y[15:])], 5)
    assert (directions[4] == 0).all()  # a class without images
    head = LinearHead(5, 4)
    head.start_at(directions[:4])
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    rows = torch.rand(30, 5)
    cosine = F.cosine_similarity(rows[:, None], means, dim=2).argmax(1)
    distance = torch.cdist(rows, F.normalize(means)).argmin(1)
    assert torch.equal(head(rows).argmax(1), cosine) and torch.equal(cosine, distance)
    assert len(cosine.unique()) > 1


def test_logit_adjustment_by_hand():
    # f = (1, 0.5) with frequencies 0.9 and 0.1: 1 - log 0.9 against 0.5 - log 0.1
    head = LinearHead(2, 2)
    prior = torch.tensor([0.9, 0.1])
    row = torch.tensor([[1.0, 0.5]])
    head.start_at(torch.eye(2), logit_adjusted_bias(torch.zeros(2), prior))
    want = torch.tensor([[1 - log(0.9), 0.5 - log(0.1)]])
    torch.testing.assert_close(head(row), want)
    assert head(row).argmax() == 1
    bias = logit_adjusted_bias(torch.tensor([1.0, 2.0]), prior, tau=0.5)
    torch.testing.assert_close(bias, torch.tensor([1 - 0.5 * log(0.9), 2 - 0.5 * log(0.1)]))


def test_prior_share_by_hand():
    prior = torch.tensor([0.6, 0.3, 0.1])
    assert prior_share(torch.tensor([7, 7, 7]), prior) == pytest.approx(0, abs=1e-5)
    assert prior_share(torch.tensor([60, 30, 10]), prior) == pytest.approx(1, abs=1e-5)
    assert prior_share(torch.tensor([36, 9, 1]), prior) == pytest.approx(2, abs=1e-5)
    assert prior_share(torch.tensor([1, 2, 6]), prior) == pytest.approx(-1, abs=1e-5)
    assert prior_share(torch.tensor([5, 0, 0]), prior) == 2  # no finite t is enough
    # two classes: t is the ratio of the log odds
    two = prior_share(torch.tensor([3, 1]), torch.tensor([0.9, 0.1]))
    assert two == pytest.approx(log(3) / log(9), abs=1e-5)
    assert prior_share(torch.tensor([3, 1]), torch.tensor([0.5, 0.5])) == 0
    with pytest.raises(ValueError, match=r"prior_share: expected .* 0 images in \(3,\)"):
        prior_share(torch.zeros(3), prior)
    with pytest.raises(ValueError, match=r"in \(2,\) for \(3,\)"):
        prior_share(torch.ones(2), prior)


def test_lws_trains_one_scale_a_class():
    head = LWSHead(2, 2, class_prior=torch.tensor([1.0, 3.0]))
    head.start_at(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert [n for n, p in head.named_parameters() if p.requires_grad] == ["scales"]
    row = torch.tensor([[1.0, 1.0]])
    assert head(row).tolist() == [[3, 3]]  # scales of one, no bias
    with torch.no_grad():
        head.scales.copy_(torch.tensor([2.0, 0.5]))
    assert head(row).tolist() == [[6, 1.5]]
    loss = head.loss(row, torch.tensor([1]))
    assert loss.item() == pytest.approx(log((exp(6) + 3 * exp(1.5)) / (3 * exp(1.5))), rel=1e-6)
    loss.backward()
    share = exp(6) / (exp(6) + 3 * exp(1.5))  # softmax minus one-hot, times w x = 3
    assert head.scales.grad.tolist() == pytest.approx([3 * share, -3 * share], rel=1e-5)


def test_start_at_refuses_another_shape():
    with pytest.raises(ValueError, match=r"start_at: expected weight of shape \(3, 2\), got"):
        LinearHead(2, 3).start_at(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"start_at: expected bias of shape \(3,\), got \(2,\)"):
        LinearHead(2, 3).start_at(torch.ones(3, 2), torch.ones(2))


def test_weibull_of_two_values_by_hand():
    # for two values a factor e apart the shape solves u tanh u = 1 with u = k / 2
    shape, scale = fit_weibull(torch.tensor([5.0, 5 * exp(1)], dtype=torch.float64))
    k = 2 * 1.1996786402577339
    assert shape == pytest.approx(k, rel=1e-9)
    assert scale == pytest.approx(5 * ((1 + exp(k)) / 2) ** (1 / k), rel=1e-9)


def test_weibull_is_scipy_s():
    values = torch.from_numpy(weibull_min.rvs(2.3, scale=4, size=60, random_state=0))
    shape, _, scale = weibull_min.fit(values.numpy(), floc=0)
    assert fit_weibull(values) == pytest.approx((shape, scale), rel=1e-3)
    # without spread, all the weight is at the value
    shape, scale = fit_weibull(torch.full((3,), 7.0))
    assert shape > 1e7 and scale == pytest.approx(7)
    for wrong in (torch.empty(0), torch.tensor([1.0, 0.0]), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="fit_weibull: expected one row of positive values"):
            fit_weibull(wrong)


def test_openmax_by_hand():
    head = OpenMaxHead(2, 2, alpha=2)
    head.start_at(torch.eye(2))
    head.mean.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    head.weibull.copy_(torch.tensor([[0.0, 1.0, 1.0], [0.5, 2.0, 3.0]]))  # shift, shape, scale
    row = torch.tensor([[2.0, 1.0]])
    # class 0 is first: a distance of 1, F = 1 - exp(-1), all of it; class 1 second: a distance of
    # sqrt 5, F = 1 - exp(-((sqrt 5 + 0.5) / 3)^2), half of it
    first = 2 * (1 - exp(-1))
    second = 1 * 0.5 * (1 - exp(-(((sqrt(5) + 0.5) / 3) ** 2)))
    unknown = exp(first + second)
    want = unknown / (unknown + exp(2 - first) + exp(1 - second))
    out = head.outputs(row)
    assert out.logits.tolist() == row.tolist()
    assert out.unknown.item() == pytest.approx(want, rel=1e-9)
    head.set_threshold(0.0, "openmax")
    label, confidence = head.predict(row)
    assert label.item() == 0 and confidence.item() == pytest.approx(1 - want, rel=1e-9)
    head.set_threshold(1 - want + 1e-6, "openmax")
    assert head.predict(row)[0].item() == -1
    head.alpha = 1  # only the best class is revised
    want = exp(first) / (exp(first) + exp(2 - first) + exp(1))
    assert head.outputs(row).unknown.item() == pytest.approx(want, rel=1e-9)


def test_openmax_fits_the_tails_of_what_is_right():
    head = OpenMaxHead(3, 3, alpha=3)
    head.start_at(torch.eye(3))
    rows = torch.tensor(
        [[5.0, 0, 0], [7.0, 0, 0], [9.0, 0, 0], [0, 4.0, 0], [6.0, 4.0, 0], [2.0, 1.0, 0]]
    )
    target = torch.tensor([0, 0, 0, 1, 1, 1])  # the last two are called class 0
    head.fit(rows, target, tail=2)
    assert head.mean.tolist() == [[7, 0, 0], [0, 4, 0], [0, 0, 0]]
    # class 0: distances 2, 0, 2, of which the largest two are equal; shifted to 10,000
    shift, shape, scale = head.weibull[0].tolist()
    assert shift == 1e4 - 2 and shape > 1e7 and scale == pytest.approx(1e4, rel=1e-12)
    assert head.weibull[1, 0] == 1e4  # one image, at its own mean
    assert head.weibull[2].tolist() == [0, 1, 1e30]  # no image: never unknown
    near, far = head.outputs(torch.tensor([[7.0, 0, 0], [20.0, 0, 0]])).unknown.tolist()
    assert near < 0.01 and far > 0.99
    other = OpenMaxHead(3, 3, alpha=3)
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.outputs(rows).unknown, head.outputs(rows).unknown)


def test_openmax_keeps_the_fit_in_double_precision():
    """A tail of a few units around ten thousand has shapes in the thousands."""
    head = OpenMaxHead(1, 1)
    head.start_at(torch.eye(1))
    rows = torch.tensor([[0.0], [1.0], [5.5], [7.25], [11.25]])  # mean 5
    head.fit(rows, torch.zeros(5, dtype=torch.int64), tail=4)
    distance = torch.tensor([5.0, 4.0, 2.25, 6.25], dtype=torch.float64)
    assert head.weibull[0].tolist() == [1e4 - 2.25, *fit_weibull(distance + 1e4 - 2.25)]


def test_openmax_fits_each_class_as_alone(monkeypatch):
    head, fits, fit_rows = OpenMaxHead(4, 30), [], openmax._fit_rows
    monkeypatch.setattr(openmax, "_fit_rows", lambda tails: fits.append(tails) or fit_rows(tails))
    x = torch.randn(400, 4)
    target = (torch.rand(400) ** 2 * 29).long()  # 1 to 70 images; the last class has none
    head.fit(x, target, tail=6)
    assert len(fits) == 1  # all classes at once
    monkeypatch.undo()
    logits = head.linear(x)
    for c in target.unique().tolist():
        own = logits[target == c]
        right = own.argmax(dim=1) == c
        own = own[right] if right.any() else own
        distance = (own - own.mean(dim=0)).double().norm(dim=1)
        tail = distance.sort(descending=True).values[:6]
        shift, shape, scale = head.weibull[c].tolist()
        assert shift == pytest.approx(1e4 - tail.min().item(), rel=1e-9)
        assert (shape, scale) == pytest.approx(fit_weibull(tail + shift), rel=1e-3)
    with pytest.raises(ValueError, match=r"OpenMaxHead.fit: expected finite features, class 3"):
        head.fit(x.masked_fill((target == 3)[:, None], torch.nan), target)
    with pytest.raises(
        ValueError, match=r"OpenMaxHead.fit: expected features and a tail .*, got 0"
    ):
        head.fit(x[:0], target[:0])
    with pytest.raises(ValueError, match=r"a tail of at least 1, got [0-9]+ and 0"):
        head.fit(x, target, tail=0)
    with pytest.raises(ValueError, match=r"OpenMaxHead.fit: expected labels in .*, got -1 to"):
        head.fit(x, target - 1)


def test_openmax_takes_all_images_where_none_is_right():
    head = OpenMaxHead(2, 2)
    head.start_at(torch.eye(2))
    head.fit(torch.tensor([[3.0, 1.0], [5.0, 1.0]]), torch.tensor([1, 1]))
    assert head.mean[1].tolist() == [4, 1] and head.alpha == 2


def test_the_openmax_score_needs_a_head_that_gives_it():
    logits = torch.zeros(1, 2)
    assert open_score("openmax", logits, unknown=torch.tensor([0.25])).item() == 0.75
    with pytest.raises(ValueError, match="openmax needs a head that gives a probability"):
        open_score("openmax", logits)


def test_weights_that_are_no_matrix():
    with pytest.raises(ValueError, match=r"tau_normalise: expected weight \(C, D\), got \(4,\)"):
        tau_normalise(torch.ones(4), 1.0)


def test_a_fit_of_openmax_that_raises_leaves_the_head():
    head = OpenMaxHead(2, 2)
    head.start_at(torch.eye(2))
    x, y = torch.eye(2).repeat(3, 1), torch.arange(6) % 2
    head.fit(x, y)
    want = head.mean.clone(), head.weibull.clone()
    x = x * 2
    x[1::2] = torch.nan  # of the second class, when the first is done
    with pytest.raises(ValueError, match="class 1"):
        head.fit(x, y)
    assert torch.equal(head.mean, want[0]) and torch.equal(head.weibull, want[1])
