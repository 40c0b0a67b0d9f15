"""Heads: what they promise, cast and moved, saved and loaded."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from head_cases import heads_of_every_kind
from torch import nn

from oltr_ext import ops, use_backend
from oltr_ext.nn import LinearHead, OLTRHead, OpenMaxHead, heads, open_score


@pytest.mark.parametrize("backend", ["native", "reference"])
class TestOLTRHead:
    def make(self, **options):
        torch.manual_seed(3)
        head = OLTRHead(6, 5, **options)
        x = torch.rand(40, 6)
        y = torch.arange(40) % 5
        x += F.one_hot(y, 6) * 2.0
        head.init_from(None, x, y, classifier="means", selector="zero")
        return head, x, y

    def test_loss_is_the_sum_of_its_parts(self, backend):
        prior = torch.tensor([5.0, 4, 3, 2, 1])
        head, x, y = self.make(class_prior=prior, label_smoothing=0.1, feature_loss_weight=0.3)
        with use_backend(backend):
            logits = head(x)
            want = F.cross_entropy(logits + prior.log(), y, label_smoothing=0.1)
            want = want + 0.3 * ops.disc_centroids_loss(x, y, head.memory.centroids)
            loss = head.loss(x, y)
        torch.testing.assert_close(loss, want)
        for a, b in zip(
            torch.autograd.grad(loss, list(head.parameters())),
            torch.autograd.grad(want, list(head.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)

    def test_prior_share_is_added_to_what_it_says_and_not_to_the_loss(self, backend):
        prior = torch.tensor([5.0, 4, 3, 2, 0])
        head, x, y = self.make(class_prior=prior)
        with use_backend(backend):
            logits, loss = head(x), head.loss(x[y < 4], y[y < 4])
            assert logits.isfinite().all()  # also for the class that is never expected
            head.prior_share.fill_(0.5)
            shifted = head(x)
            torch.testing.assert_close(shifted[:, :4], logits[:, :4] + 0.5 * prior[:4].log())
            assert torch.equal(head.loss(x[y < 4], y[y < 4]), loss)
            label, confidence = head.predict(x)
            torch.testing.assert_close(confidence, shifted.double().softmax(1).amax(1))
            assert (label != 4).all()
            assert head.bfloat16()(x.bfloat16()).dtype == torch.bfloat16

    def test_learns(self, backend):
        head, x, y = self.make()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        with use_backend(backend):
            start = head.loss(x, y).item()
            for _ in range(20):
                optimizer.zero_grad()
                head.loss(x, y).backward()
                optimizer.step()
            assert head.loss(x, y).item() < start
            assert (head.predict(x)[0] == y).float().mean() > 0.9

    def test_predict_rejects_below_the_threshold(self, backend):
        head, x, _ = self.make()
        with use_backend(backend):
            for score in ("max_softmax", "max_logit", "energy", "nearest_distance", "reachability"):
                head.set_threshold(float("-inf"), score)
                closed, confidence = head.predict(x)
                assert (closed == head(x).argmax(1)).all()
                middle = confidence.median().item()
                head.set_threshold(middle, score)
                label, again = head.predict(x)
                assert torch.equal(confidence, again)
                assert torch.equal(label == -1, confidence < middle)
                assert torch.equal(label[label >= 0], closed[label >= 0])

    def test_predict_holds_a_bounded_number_of_logits(self, backend, monkeypatch):
        head, x, _ = self.make()
        x = x[:39]
        with use_backend(backend):
            head.set_threshold(head.predict(x)[1].median().item(), "max_softmax")
            whole, rows, outputs = head.predict(x), [], head.outputs
            monkeypatch.setattr(heads, "LOGITS", 2 * head.num_classes + 1)
            monkeypatch.setattr(head, "outputs", lambda x: rows.append(len(x)) or outputs(x))
            label, confidence = head.predict(x)
            assert rows == [2] * 19 + [1]
            torch.testing.assert_close(confidence, whole[1])
            far = (confidence - head.threshold).abs() > 1e-5
            assert torch.equal(label[far], whole[0][far]) and far.sum() >= 38
            assert [len(part) for part in head.predict(x[:0])] == [0, 0]

    def test_nan_is_unknown(self, backend):
        head, x, _ = self.make()
        x[4, 2] = float("nan")
        head.set_threshold(float("-inf"), "max_softmax")
        with use_backend(backend):
            label, _ = head.predict(x)
        assert label[4] == -1 and (label[[0, 1, 2, 3]] >= 0).all()

    def test_state_dict_holds_the_calibrated_head(self, backend):
        head, x, _ = self.make()
        head.set_threshold(-1.25, "nearest_distance")
        other = OLTRHead(6, 5)
        other.load_state_dict(head.state_dict())
        assert other.score == "nearest_distance" and other.threshold.item() == -1.25
        with use_backend(backend):
            for a, b in zip(head.predict(x), other.predict(x), strict=True):
                assert torch.equal(a, b)

    def test_functional_call_and_compile(self, backend):
        head, x, y = self.make()
        parameters = {k: v * 1.5 for k, v in head.named_parameters()}
        with use_backend(backend):
            changed = torch.func.functional_call(head, parameters, (x,))
            assert not torch.equal(changed, head(x))
            compiled = torch.compile(head.loss, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x, y), head.loss(x, y))

    @pytest.mark.parametrize("without", [(), ("selector",)])
    def test_a_class_without_images_changes_nothing_for_the_others(self, backend, without):
        """All but the logits of the classes without images is that of a head without them."""
        small, x, y = self.make(without=without, feature_loss_weight=0, memory_grad=True)
        names = torch.tensor([1, 2, 3, 5, 7])  # classes 0, 4 and 6 have no images
        torch.manual_seed(3)
        head = OLTRHead(6, 8, without=without, feature_loss_weight=0, memory_grad=True)
        head.init_from(None, x, names[y], classifier="means", selector="zero")
        assert (head.memory.counts == 0).nonzero()[:, 0].tolist() == [0, 4, 6]
        for each in (head, small):  # a bias, so that attention would look at the others
            torch.nn.init.constant_(each.classifier.fc_hallucinator.bias, 1.0)
            torch.nn.init.constant_(each.classifier.fc_selector.bias, 0.3)
        rows = torch.cat([x, torch.zeros(3, 6), -x])  # the origin is where zero centroids are
        with use_backend(backend):
            out, want = head.outputs(rows), small.outputs(rows)
            assert torch.equal(out.nearest, names[want.nearest])
            assert torch.equal(out.distance, want.distance)
            assert torch.equal(out.embedding, want.embedding)
            torch.testing.assert_close(out.logits[:, names], want.logits)
            recalled = head.recall(rows)
            torch.testing.assert_close(recalled[:, names], small.recall(rows))
            assert (recalled.sum(dim=1) - 1).abs().max() < 1e-6
            head.loss(x, names[y]).backward()
            compiled = torch.compile(head.loss, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x, names[y]), head.loss(x, names[y]))
        keys, centroids = head.classifier.fc_hallucinator.weight.grad, head.memory.centroids.grad
        assert (keys[[0, 4, 6]] == 0).all() and (centroids[[0, 4, 6]] == 0).all()
        assert (centroids[names] != 0).any(dim=1).all()

    def test_outputs(self, backend):
        head, x, _ = self.make()
        with use_backend(backend):
            out = head.outputs(x)
            assert torch.equal(out.logits, head(x))
        assert out.distance.shape == out.nearest.shape == (40,)
        assert (out.selector == 0).all()  # selector started at zero
        assert head.recall(x).sum(1).sub(1).abs().max() < 1e-5


def test_a_state_dict_from_before_the_prior_s_share_loads():
    old = OLTRHead(6, 5).state_dict()
    del old["prior_share"]
    head = OLTRHead(6, 5)
    head.prior_share.fill_(0.5)
    head.load_state_dict(old)
    assert head.prior_share == 0 and "prior_share" not in old
    head.prior_share.fill_(0.5)
    head.load_state_dict({"memory.counts": torch.ones(5, dtype=torch.int64)}, strict=False)
    assert head.prior_share == 0.5  # parts of a head leave the rest as it was
    model = nn.Sequential(OLTRHead(6, 5))
    model.load_state_dict({f"0.{name}": value for name, value in old.items()})
    del old["memory.counts"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"memory.counts"'):
        head.load_state_dict(old)


def test_init_from_a_linear_stage_one():
    linear, head = nn.Linear(6, 5), OLTRHead(6, 5)
    x, y = torch.rand(20, 6), torch.arange(20) % 5
    head.init_from(linear, x, y)
    assert torch.equal(head.classifier.fc_hallucinator.weight, linear.weight)
    assert torch.equal(head.classifier.fc_hallucinator.bias, linear.bias)
    torch.testing.assert_close(head.memory.centroids, ops.class_means(x, y, 5).means)
    with pytest.raises(ValueError, match="expected classifier to be one of random, means"):
        head.init_from(linear, x, y, classifier="zeros")
    with pytest.raises(ValueError, match=r"shape \(5, 6\), got \(4, 6\)"):
        head.init_from(nn.Linear(6, 4), x + 1, y)
    torch.testing.assert_close(head.memory.centroids, ops.class_means(x, y, 5).means)  # untouched
    head.init_from(nn.Linear(6, 5, bias=False), x, y)
    assert (head.classifier.fc_hallucinator.bias == 0).all()


def test_linear_head():
    prior = torch.tensor([3.0, 1, 0.5])
    head = LinearHead(4, 3, class_prior=prior)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(head.loss(x, y), F.cross_entropy(head.linear(x) + prior.log(), y))
    assert head.score == "max_softmax" and head.threshold == 0.1
    head.set_threshold(0.0, "nearest_distance")
    with pytest.raises(ValueError, match="LinearHead has no score nearest_distance; it has"):
        head.predict(x)
    with pytest.raises(ValueError, match=r"LinearHead.predict: expected features \(B, D\), got"):
        head.predict(x[None])
    with pytest.raises(ValueError, match="class_prior: expected shape"):
        LinearHead(4, 3, class_prior=torch.ones(2))
    with pytest.raises(ValueError, match="not negative"):
        LinearHead(4, 3, class_prior=torch.tensor([1.0, -1, 1]))


@pytest.mark.parametrize("score", ["max_logit", "energy", "max_softmax"])
def test_a_row_that_overflowed_is_unknown(score):
    head = LinearHead(2, 3)
    head.set_threshold(0.0, score)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[2.0, 2], [1, 0], [0, 1]]))
    x = torch.tensor([[1.0, 0], [3e38, 3e38], [torch.nan, 0]])
    for predict in (head.predict, torch.export.export(Predict(head), (x,)).module()):
        assert predict(x)[0].tolist() == [0, -1, -1]
    assert [int(head.predict(row[None])[0]) for row in x] == [0, -1, -1]


def test_scores_by_hand():
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    distance = torch.tensor([4.0, 0.0], dtype=torch.float64)
    assert open_score("max_softmax", logits)[0] == pytest.approx(0.5)
    assert open_score("max_logit", logits).tolist() == [0, 2]
    assert open_score("energy", logits)[0] == pytest.approx(0.6931471805599453)
    assert open_score("nearest_distance", logits, distance).tolist() == [-4, 0]
    assert open_score("reachability", logits, distance, eps=0.1).tolist() == [2.5, 100]
    with pytest.raises(ValueError, match="expected one of"):
        open_score("softmax", logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_heads_can_be_cast(dtype):
    digits = {torch.float16: 2e-2, torch.bfloat16: 2e-1, torch.float64: 1e-4}[dtype]
    for head, x, y in heads_of_every_kind():
        head.set_threshold(0.123456789, "max_softmax")
        names = list(head.state_dict())
        torch.manual_seed(0)  # of an episode
        want, loss = head.outputs(x), head.loss(x, y)
        head.to(dtype)
        out = head.outputs(x.to(dtype))
        torch.testing.assert_close(out.logits, want.logits, rtol=digits, atol=8 * digits,
                                   check_dtype=False)  # fmt: skip
        assert (head.predict(x.to(dtype))[0] >= 0).any()
        torch.manual_seed(0)
        got = head.loss(x.to(dtype), y)
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert got.item() == pytest.approx(loss.item(), rel=digits, abs=digits)
        got.backward()
        assert head.threshold.item() == 0.123456789 and list(head.state_dict()) == names
        if isinstance(head, OpenMaxHead):
            torch.testing.assert_close(out.unknown, want.unknown, rtol=0, atol=digits)
        if getattr(head, "class_prior", None) is not None:
            assert head.class_prior.tolist() == [70_000, 300, 2, 0]


class Predict(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x):
        return self.head.predict(x)


def test_predict_is_one_graph_for_any_number_of_rows():
    rows = ({0: torch.export.Dim("rows")},)
    for head, x, _ in heads_of_every_kind():
        head.eval().requires_grad_(False)
        score = "openmax" if isinstance(head, OpenMaxHead) else "max_softmax"
        middle = head.score_of(head.outputs(x), score).median().item()
        other = copy.deepcopy(head)
        head.set_threshold(middle, score)
        other.load_state_dict(head.state_dict())  # the score too
        with torch.no_grad():
            program = torch.export.export(Predict(other), (x[:2],), dynamic_shapes=rows).module()
        for part in (x, x[:1], x[:7]):
            want, got = head.predict(part), program(part)
            torch.testing.assert_close(got[1], want[1])
            clear = (want[1] - middle).abs() > 1e-5
            assert torch.equal(got[0][clear], want[0][clear])
        assert 0 < (head.predict(x)[0] == -1).sum() < len(x)


def test_a_device_without_float64_gets_float32():
    def to_mps(t):  # a stand-in: t.to("mps") refuses likewise
        if t.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return t.clone()

    for head, x, _ in heads_of_every_kind():
        double = {name for name, b in head.named_buffers() if b.dtype == torch.float64}
        there = {name for name in head.EXACT if getattr(head, name) is not None}
        assert double == {name for name in there if head.EXACT[name] == torch.float64}
        want = head.outputs(x)
        head._apply(to_mps)
        assert all(t.dtype != torch.float64 for t in head.state_dict().values())
        assert torch.equal(head.outputs(x).logits, want.logits)
        if isinstance(head, OpenMaxHead):
            torch.testing.assert_close(
                head.unknown(want.logits), want.unknown.float(), rtol=0, atol=5e-3
            )
        head.predict(x)
        head.cpu()
        assert all(head.get_buffer(name).dtype == torch.float64 for name in double)


def test_a_move_that_fails_leaves_the_head_whole():
    def out_of_memory(t):
        raise RuntimeError("out of memory")

    head = OLTRHead(6, 4, class_prior=torch.ones(4))
    names = list(head.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"):
        head._apply(out_of_memory)
    assert list(head.state_dict()) == names and head.threshold == 0.1
