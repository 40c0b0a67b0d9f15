"""A memory head whose banks pass by says what it says with them in memory."""

from __future__ import annotations

import copy
import operator

import pytest
import torch
from safetensors.torch import save_file

from oltr_ext.nn import OLTRHead
from oltr_ext.nn.scores import SCORES
from oltr_ext.nn.sets import set_members, set_sizes, true_log_probability
from oltr_ext.nn.streamed import STREAMED, StreamedLogits, stream
from oltr_ext.ops import StreamedBank

CLASSES, WIDTH = 300, 12


def _head(lacking=False, prior=True):
    torch.manual_seed(0)
    frequencies = torch.rand(CLASSES) + 0.1 if prior else None
    head = OLTRHead(WIDTH, CLASSES, class_prior=frequencies)
    means = torch.randn(CLASSES, WIDTH).relu()
    target = torch.arange(CLASSES).repeat(3)
    features = (means[target] + 0.3 * torch.randn(len(target), WIDTH)).relu()
    if lacking:
        there = target % 7 != 3
        features, target = features[there], target[there]
    head.init_from(None, features, target, classifier="means")
    head.fit_bank([(features, target)], target.bincount(minlength=CLASSES))
    held = (means[::5] + 0.3 * torch.randn(60, WIDTH)).relu()
    if not lacking:
        head.bank.standardise(head.scores(head.outputs(held)))
    if prior:
        head.prior_share.fill_(0.7)
    return head.eval(), held


def _streamed(head, folder, block=7):
    file = folder / "head.safetensors"
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, str(file))
    other = copy.deepcopy(head)
    stream(other, lambda name: StreamedBank(file, name, block=block))
    return other


@pytest.fixture(params=[(False, True), (True, False)], ids=["all there", "some lack"])
def pair(request, tmp_path):
    head, held = _head(*request.param)
    return head, _streamed(head, tmp_path), held


@torch.no_grad()
def test_outputs_scores_and_answers(pair):
    head, streamed, held = pair
    expected, found = head.outputs(held), streamed.outputs(held)
    assert isinstance(found.logits, StreamedLogits)
    for name in ("distance", "embedding", "memory_feature", "selector"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.nearest, expected.nearest)
    assert torch.equal(found.logits.argmax(dim=1), expected.logits.argmax(dim=1))
    scores, own = head.scores(expected), streamed.scores(found)
    assert {*own} == {*scores} and {"gen", "knn", "energy", "nearest_feature"} <= {*own} <= {
        *SCORES
    }
    for name, score in scores.items():
        torch.testing.assert_close(own[name], score, rtol=1e-5, atol=1e-5, msg=name)
    for score in ("max_softmax", "max_logit", "gen", "relative_mahalanobis"):
        for each in (head, streamed):
            each.set_threshold(float(scores[score].median()) + 1e-4, score)
        label, confidence = head.predict(held)
        again, sure = streamed.predict(held)
        assert torch.equal(again, label) and 0 < (label < 0).sum() < len(held)
        torch.testing.assert_close(sure, confidence, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_nearest_and_most_recalled(pair):
    head, streamed, held = pair
    for one, other in zip(
        streamed.memory.closest(held, 4), head.memory.closest(held, 4), strict=True
    ):
        torch.testing.assert_close(one, other)
    for one, other in zip(streamed.memory(held), head.memory(held), strict=True):
        torch.testing.assert_close(one, other)
    share, which = streamed.most_recalled(held, 3)
    recalled = head.recall(held)
    torch.testing.assert_close(share, recalled.topk(3).values)
    torch.testing.assert_close(recalled.gather(1, which), share)


@pytest.mark.parametrize("lacking", [False, True])
@torch.no_grad()
def test_of_classes_recalled_as_much_the_lower_and_of_absent_ones_nothing(tmp_path, lacking):
    head, held = _head(lacking, prior=False)
    layer = head.classifier.fc_hallucinator
    layer.weight.zero_()
    layer.bias.copy_(-(torch.arange(CLASSES) // 20).float())  # 20 classes as much each
    streamed = _streamed(head, tmp_path)
    lowest = [c for c in range(CLASSES) if not lacking or c % 7 != 3]
    lowest += [c for c in range(CLASSES) if c not in lowest]
    for count in (1, 3, 25, CLASSES - 1, CLASSES, CLASSES + 9):
        for each in (head, streamed):
            share, which = each.most_recalled(held, count)
            assert which.tolist() == [lowest[:count]] * len(held)
            torch.testing.assert_close(share, head.recall(held).gather(1, which))
            absent = head.memory.counts[which] == 0
            assert (share[absent] == 0).all() and (share[~absent] > 0).all()


def test_the_default_device_is_for_what_the_user_makes(tmp_path):
    head, held = _head(lacking=True)
    streamed = _streamed(head, tmp_path)
    streamed.feature_loss_weight = 0.0
    y = torch.zeros(len(held), dtype=torch.int64)
    with torch.no_grad():
        for maps in (True, False):  # blocks where they lie in the file, or copied from it
            for name in STREAMED:
                operator.attrgetter(name)(streamed)._maps &= maps
            said = []
            for device in ("cpu", "meta"):
                with torch.device(device):
                    recalled = streamed.most_recalled(held, 3)
                    said.append([*streamed.predict(held), *recalled, streamed.loss(held, y)])
            for one, other in zip(*said, strict=True):
                assert torch.equal(one, other)


@torch.no_grad()
def test_sets(pair):
    head, streamed, held = pair
    logits, passing = head.outputs(held).logits, streamed.outputs(held).logits
    target = torch.arange(len(held)) - 1  # the first is open
    torch.testing.assert_close(
        true_log_probability(passing, target), true_log_probability(logits, target)
    )
    thresholds = torch.stack([torch.full((CLASSES,), -3.0), -6 * torch.rand(CLASSES)])
    assert torch.equal(set_sizes(passing, thresholds), set_sizes(logits, thresholds))
    assert set_sizes(passing, thresholds[:0]).shape == (len(held), 0)
    for one, other in zip(
        set_members(passing, thresholds[1]), set_members(logits, thresholds[1]), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_one_pass_is_enough_for_all_scores(tmp_path, monkeypatch):
    head, held = _head()
    streamed = _streamed(head, tmp_path)
    out, passes = streamed.outputs(held), []
    plain = StreamedBank.blocks

    def counted(self, block=None):
        passes.append(self.key)
        return plain(self, block)

    monkeypatch.setattr(StreamedBank, "blocks", counted)
    streamed.own_scores(out)
    out.logits.argmax(dim=1)
    true_log_probability(out.logits, torch.zeros(len(held), dtype=torch.int64))
    assert passes == [STREAMED[2]]


def test_the_largest_are_in_order_whatever_the_blocks(tmp_path):
    weight = torch.randn(50, 4)
    weight[[3, 20, 41]] = weight[0].clone()  # ties
    v = torch.cat([weight[:3], torch.full((1, 4), torch.nan)])
    logits = StreamedLogits(v, StreamedBank(weight, block=6), 16.0, None, 50)
    whole = StreamedLogits(v, StreamedBank(weight), 16.0, None, 50)
    assert logits.largest(5)[1][0, :4].tolist() == [0, 3, 20, 41]
    assert torch.equal(logits.argmax(), whole.argmax()) and logits.argmax()[3] == 0
    assert torch.equal(logits.largest(50)[0][:3], whole.largest(50)[0][:3])
    torch.testing.assert_close(logits.log_rest, whole.log_rest, equal_nan=True)


def test_it_does_not_change(tmp_path):
    streamed = _streamed(_head()[0], tmp_path)
    with pytest.raises(ValueError, match="enroll: expected banks in memory, got streamed"):
        streamed.enroll(torch.rand(1, WIDTH), ["new"])
    with pytest.raises(ValueError, match="remove: expected banks in memory"):
        streamed.remove([1])
    with pytest.raises(ValueError, match=r"memory\.centroids of shape \(300, 12\), got \(3, 12\)"):
        stream(_head()[0], lambda name: StreamedBank(torch.zeros(3, WIDTH)))


def test_what_writes_or_wants_whole_banks_says_that_they_are_streamed(tmp_path):
    streamed = _streamed(_head()[0], tmp_path)
    x, y = torch.rand(2, WIDTH), torch.arange(2)
    memory, linear = streamed.memory, torch.nn.Linear(WIDTH, CLASSES)
    for where, call in {
        "CentroidMemory.update": lambda: memory.update(x, y),
        "CentroidMemory.initialise_from": lambda: memory.initialise(x, y),
        "CentroidMemory.save": lambda: memory.save(tmp_path / "memory"),
        "CentroidMemory.load": lambda: memory.load(tmp_path / "memory"),
        "OLTRHead.init_from": lambda: streamed.init_from(linear, x, y),
        "OLTRHead.recall": lambda: streamed.recall(x),
        "CosineClassifier.start_at": lambda: streamed.classifier.cosnorm_classifier.start_at(x),
    }.items():
        said = f"{where}: expected banks in memory, got streamed ones, which are read-only: load"
        with pytest.raises(ValueError, match=f"^{said}"):
            call()
    assert not (tmp_path / "memory").exists()


def test_its_loss_has_gradients_of_features_alone(tmp_path):
    head, held = _head()
    streamed = _streamed(head, tmp_path)
    head.requires_grad_(False)
    target = torch.arange(len(held))
    slopes = []
    for each in (head, streamed):
        each.requires_grad_(False).feature_loss_weight = 0.0
        x = held.clone().requires_grad_()
        slopes.append(torch.autograd.grad(each.loss(x, target), x)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-4, atol=1e-6)
