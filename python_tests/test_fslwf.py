"""Generated weights of few-shot classes, worked by hand and by the paper's sums."""

from __future__ import annotations

import copy
from math import log

import pytest
import torch
import torch.nn.functional as F

from oltr_ext.nn import FSLwFHead, fslwf


def test_a_generated_weight_by_hand():
    # base classes 0 and 2, novel class 1 with two images
    head = FSLwFHead(2, [20, 2, 30])
    target = torch.tensor([0] * 20 + [1] * 2 + [2] * 30)
    features = torch.zeros(52, 2)
    features[20], features[21] = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 0.5])
    head.init_from(torch.tensor([[3.0, 0.0], [9.0, 9.0], [0.0, 2.0]]), [(features, target)])
    with torch.no_grad():
        head.keys.copy_(torch.tensor([[5.0, 0.0], [0.0, 5.0]]))
        head.gamma.fill_(log(3))  # attention 3/4 to the base class in front, 1/4 to the other
        head.phi_avg.copy_(torch.tensor([2.0, 4.0]))
        head.phi_att.copy_(torch.tensor([1.0, 0.1]))
    # unit features (1, 0) and (0, 1): mean (1/2, 1/2); they recall (3/4, 1/4) and (1/4, 3/4)
    made = head.generate(head.support, torch.zeros(2, dtype=torch.int64), 1)
    torch.testing.assert_close(made, torch.tensor([[2 / 2 + 1 / 2, 4 / 2 + 0.1 / 2]]))
    logits = head(torch.tensor([[2.0, 0.0]]))
    cosine = 1.5 / (1.5**2 + 2.05**2) ** 0.5
    torch.testing.assert_close(logits, 10 * torch.tensor([[1.0, cosine, 0.0]]))
    # a class that plays novel is not recalled
    hidden = torch.tensor([True, False])
    made = head.generate(head.support, torch.tensor([0, 1]), 2, hidden)
    torch.testing.assert_close(made, torch.tensor([[2.0, 0.1], [0.0, 4.1]]))


def episode_by_loops(head, x, row, hidden, support):
    def unit(v):
        return v / v.norm()

    weights = []
    for c in range(len(hidden)):
        if not hidden[c]:
            weights.append(head.weight[c])
            continue
        average, attended, count = 0, 0, 0
        for i in range(len(x)):
            if support[i] and row[i] == c:
                z, seen = unit(x[i]), [b for b in range(len(hidden)) if not hidden[b]]
                q = unit(head.query(z))
                share = torch.stack([head.gamma * (q @ unit(head.keys[b])) for b in seen]).softmax(
                    0
                )
                attended = attended + sum(
                    s * unit(head.weight[b]) for s, b in zip(share, seen, strict=True)
                )
                average, count = average + z, count + 1
        weights.append(head.phi_avg * average / count + head.phi_att * attended / count)
    losses = []
    for i in range(len(x)):
        if not support[i]:
            logits = torch.stack([head.scale * (unit(x[i]) @ unit(w)) for w in weights])
            losses.append(F.cross_entropy(logits[None], row[i : i + 1]))
    return torch.stack(losses).mean()


def test_an_episode_is_the_paper_s_sums():
    head = FSLwFHead(3, [20] * 4)
    with torch.no_grad():
        for parameter in (head.phi_avg, head.phi_att, head.query.weight):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x, row = torch.randn(9, 3), torch.tensor([0, 1, 1, 1, 2, 2, 3, 3, 1])
    hidden = torch.tensor([False, True, True, False])
    support = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 0]).bool()
    loss = head.episode_loss(x, row, hidden, support)
    want = episode_by_loops(head, x, row, hidden, support)
    torch.testing.assert_close(loss, want)
    parameters = list(head.parameters())
    for a, b in zip(*(torch.autograd.grad(v, parameters) for v in (loss, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    (grad,) = torch.autograd.grad(head.episode_loss(x, row, hidden, support), head.weight)
    assert (grad[hidden] == 0).all() and (grad[~hidden] != 0).any()


def test_a_batch_becomes_an_episode(monkeypatch):
    head = FSLwFHead(3, [20, 4, 20, 20], fake=1)
    calls = []
    monkeypatch.setattr(head, "episode_loss", lambda *args: calls.append(args))
    x, target = torch.randn(8, 3), torch.tensor([1, 3, 0, 0, 0, 2, 1, 2])
    for _ in range(20):
        head.loss(x, target)
    chosen = set()
    for features, row, hidden, support in calls:
        assert torch.equal(features, x[[1, 2, 3, 4, 5, 7]])  # the novel class stays out
        assert row.tolist() == [2, 0, 0, 0, 1, 1]
        (fake,) = hidden.nonzero()[:, 0].tolist()
        # half of its images, rounded down, make its weight
        assert support.nonzero()[:, 0].tolist() == {0: [1], 1: [4]}[fake]
        chosen.add(fake)
    assert chosen == {0, 1}  # class 3 has one image here, too few to play novel


def test_without_fake_or_without_base_rows():
    head = FSLwFHead(3, [20, 4, 20], fake=0)
    x = torch.randn(4, 3)
    weight = F.normalize(head.weight, dim=1)
    want = F.cross_entropy(10 * F.normalize(x, dim=1) @ weight.t(), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(head.loss(x, torch.tensor([0, 0, 2, 2])), want)
    nothing = head.loss(x, torch.ones(4, dtype=torch.int64))
    nothing.backward()
    assert nothing == 0


def novel_head():
    head = FSLwFHead(3, [20, 6, 20, 5])
    x, target = torch.randn(51, 3), torch.tensor([0] * 20 + [1] * 6 + [2] * 20 + [3] * 5)
    head.init_from(torch.randn(4, 3), [(x, target)])
    return head


def test_weights_are_generated_a_few_rows_at_a_time(monkeypatch):
    head, x = novel_head(), torch.randn(4, 3)
    want = head(x)
    widest, softmax = [], torch.softmax
    monkeypatch.setattr(torch, "softmax", lambda m, **k: widest.append(len(m)) or softmax(m, **k))
    monkeypatch.setattr(fslwf, "CHUNK", 6)  # three rows of two base classes
    torch.testing.assert_close(head(x), want)
    assert widest == [3, 3, 3, 2]


def test_eval_generates_once_and_never_answers_with_old_weights(monkeypatch):
    head, x, made = novel_head(), torch.randn(4, 3), []
    generate = FSLwFHead.generate
    monkeypatch.setattr(FSLwFHead, "generate", lambda *a: made.append(0) or generate(*a))

    def calls():
        """Times that weights are made in three calls, all of which must give the true answer."""
        with torch.enable_grad():
            want = head(x).detach()  # with gradients nothing is kept
        made.clear()
        for _ in range(3):
            with torch.no_grad():
                assert torch.equal(head(x), want)
        return len(made)

    assert calls() == 3  # training
    head.eval()
    assert calls() == 1

    def step():
        with torch.enable_grad():
            head.loss(torch.randn(6, 3), torch.tensor([0, 0, 0, 2, 2, 2])).backward()
        torch.optim.SGD(head.parameters(), lr=0.5).step()

    def assign():
        with torch.no_grad():
            head.gamma.fill_(3.0)

    def load():
        head.load_state_dict({**other.state_dict(), "phi_avg": torch.randn(3)})

    def load_assigned():
        head.load_state_dict(other.state_dict(), assign=True)

    def replace():
        head.keys = torch.nn.Parameter(torch.randn_like(head.keys))

    def point_elsewhere():
        head.query.weight.data = torch.randn(3, 3)

    def other_images():
        head.support.neg_()

    def cast():
        head.double()
        head.float()
        head.half()
        head.float()

    other = novel_head()
    for change in (
        step, assign, load, load_assigned, replace, point_elsewhere, other_images, cast,
    ):  # fmt: skip
        with torch.no_grad():
            before = head(x)
            change()
            assert not torch.equal(head(x), before), change
        assert calls() == 1
    with torch.no_grad():  # borrowed parameters, freed after each call
        for _ in range(3):
            borrowed = {"gamma": torch.rand(()) * 9, "phi_att": torch.randn(3)}
            got = torch.func.functional_call(head, borrowed, (x,))
            with torch.enable_grad():
                assert torch.equal(got, torch.func.functional_call(head, borrowed, (x,)))
            del borrowed
        copied = copy.deepcopy(head)
        copied.phi_avg.neg_()
        assert not torch.equal(copied(x), head(x))
        stacked = {"phi_avg": torch.randn(2, 3)}
        each = torch.vmap(lambda p: torch.func.functional_call(head, p, (x,)))(stacked)
        alone = torch.func.functional_call(head, {"phi_avg": stacked["phi_avg"][1]}, (x,))
        torch.testing.assert_close(each[1], alone)
    head.zero_grad()
    head(x).sum().backward()  # in eval mode too
    assert head.phi_att.grad.abs().sum() > 0
    with torch.inference_mode():
        built = novel_head().eval()
        assert torch.equal(built(x), built(x))


def test_a_label_out_of_range_is_named():
    head = FSLwFHead(3, [20, 4])
    for wrong in (-1, 2):
        with pytest.raises(RuntimeError, match=rf"FSLwFHead.loss: .* got {wrong} at row 1"):
            head.loss(torch.randn(3, 3), torch.tensor([0, wrong, 1]))
        with pytest.raises(ValueError, match=rf"FSLwFHead.init_from: .*\[0, 2\), got .*{wrong}"):
            head.init_from(torch.ones(2, 3), [(torch.ones(1, 3), torch.tensor([wrong]))])


def test_errors():
    with pytest.raises(ValueError, match="expected a class with 20 images, got none"):
        FSLwFHead(3, [19, 4])
    head = FSLwFHead(3, [20, 4])
    with pytest.raises(ValueError, match="expected 4 images of novel classes, got 1"):
        head.init_from(torch.ones(2, 3), [(torch.ones(2, 3), torch.tensor([0, 1]))])
    x, y = torch.ones(4, 3), torch.ones(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"expected weight of shape \(2, 3\), got \(3, 3\)"):
        head.init_from(torch.ones(3, 3), [(x, y)])
    for wrong in (x[:, :1], x[0]):  # which would be everywhere
        with pytest.raises(ValueError, match=r"expected finite features of shape \(4, 3\), got"):
            head.init_from(torch.ones(2, 3), [(wrong, y)])
    with pytest.raises(ValueError, match="not all finite"):
        head.init_from(torch.ones(2, 3), [(x * torch.nan, y)])


def test_what_is_generated_from_is_checked():
    head, x, group = FSLwFHead(4, [30, 30, 2]), torch.randn(6, 4), torch.arange(6) % 3
    with pytest.raises(ValueError, match=r"generate: expected features .*4\), got \(6, 5\)"):
        head.generate(torch.randn(6, 5), group, 3)
    with pytest.raises(ValueError, match=r"generate: expected hidden of shape \(2,\), got \(3,\)"):
        head.generate(x, group, 3, torch.ones(3, dtype=torch.bool))
