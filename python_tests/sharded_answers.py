"""What processes that share the classes answer without whole logits, and what they send for it."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from oltr_ext.engine.evaluate import answers
from oltr_ext.nn import LinearHead, OLTRHead, entropy_score, logit_scores, shard_classes
from oltr_ext.nn.layout import Sharded
from oltr_ext.nn.parted import SharedLogits
from oltr_ext.nn.sets import set_members, set_sizes, true_log_probability
from oltr_ext.ops import Shard


@contextmanager
def none_whole():
    """Whole logits of shared classes are an error."""

    def refuse(*_):
        raise AssertionError("whole logits were asked for")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sharded, "whole", refuse)
        yield


def answer_alike(where, whole, parted, x, here):
    """`predict`, the best classes and evaluation, of all rows and of those that lie here."""
    names = ["max_softmax", "energy", "gen"]
    names += ["nearest_distance"] if isinstance(whole, OLTRHead) else []
    want = whole.best(x, 3, names)
    order = whole(x).detach().double().sort(dim=1, descending=True, stable=True)
    assert torch.equal(want.classes, order.indices[:, :3]), where
    assert torch.equal(want.logits, order.values[:, :3]), where
    with none_whole():
        (label, confidence), got = parted.predict(x[here]), parted.best(x[here], 3, names)
    labels, sure = whole.predict(x)
    assert torch.equal(label, labels[here]), where
    _close(confidence, sure[here], where)
    assert torch.equal(got.classes, want.classes[here]), where
    _close(got.logits, want.logits[here], where)
    for name in names:
        _close(got.scores[name], want.scores[name][here], (*where, name))
    if isinstance(whole, OLTRHead):
        recalled = whole.recall(x)[here]
        _close(parted.recall(x[here]), recalled, where)
        with none_whole():
            share, which = parted.most_recalled(x[here], 3)
        _close(share, recalled.topk(min(3, recalled.shape[1]), dim=1).values, where)
        _close(recalled.gather(1, which), share, where)


def recalled_alike(mesh):
    """Classes that are recalled as much as others, and some without a centroid."""
    torch.manual_seed(3)
    head, x = OLTRHead(4, 11), torch.randn(5, 4)
    kept = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9])
    head.init_from(None, torch.randn(8, 4), kept)
    with torch.no_grad():
        head.classifier.fc_hallucinator.weight.zero_()
        head.classifier.fc_hallucinator.bias.copy_(torch.tensor([0.0] * 6 + [1.0] * 5))
        parted = shard_classes(copy.deepcopy(head), mesh)
        for count in (1, 3, 10, 20):
            want = head.most_recalled(x, count)
            with none_whole():
                share, which = parted.most_recalled(x, count)
            assert which.tolist() == [[7, 8, 9, 0, 1, 2, 4, 5, 3, 6, 10][:count]] * 5
            assert torch.equal(which, want[1])
            torch.testing.assert_close(share, want[0])


def _close(got, want, what):
    torch.testing.assert_close(
        got, want, rtol=1e-11, atol=1e-11, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def logits_in_parts():
    """Every question to logits: ties, NaN and infinities too; and shards without a class."""
    torch.manual_seed(2)
    for classes in (1, 3, 10, 301):
        shard = Shard.of(classes)
        z = (torch.randn(12, classes, dtype=torch.float64) * 2).round()  # most are equals
        z[0, -1], z[1, 0], z[2, classes // 2] = torch.nan, -torch.inf, torch.inf
        z[3] = torch.nan
        target = torch.arange(12) % (classes + 1) - 1
        thresholds = torch.stack([torch.full((classes,), -1.5), -6 * torch.rand(classes)])
        for rows in (slice(0, 12), slice(4, 12), slice(0, 0)):
            whole, y = z[rows], target[rows]
            parts = SharedLogits(whole[:, shard.start : shard.stop], shard)
            order = whole.sort(dim=1, descending=True, stable=True)
            for count in (1, 4, classes + 2):
                value, which = parts.largest(count)
                assert torch.equal(which, order.indices[:, :count]), (classes, count)
                _close(value, order.values[:, :count], classes)
            assert torch.equal(parts.argmax(dim=1), whole.argmax(dim=1))
            _close(parts.amax(dim=1), whole.amax(dim=1), classes)
            _close(parts.at(y.clamp_min(0)), whole.gather(1, y.clamp_min(0)[:, None])[:, 0], "at")
            if len(whole) == 0:
                continue
            for name, score in logit_scores(whole).items():
                _close(logit_scores(parts)[name], score, (classes, name))
            if rows.start:  # one that is infinite has no entropy
                _close(entropy_score(parts), entropy_score(whole), (classes, "gen"))
            _close(true_log_probability(parts, y), true_log_probability(whole, y), classes)
            assert torch.equal(set_sizes(parts, thresholds), set_sizes(whole, thresholds))
            for one, other in zip(
                set_members(parts, thresholds[1]), set_members(whole, thresholds[1]), strict=True
            ):
                assert torch.equal(one, other)


def evaluated_alike(whole, mesh):
    """Evaluation, of rows that all have."""
    parted = shard_classes(copy.deepcopy(whole), mesh, batches="same")
    torch.manual_seed(6)
    x, y = torch.randn(9, whole.feat_dim).double(), torch.arange(9) % whole.num_classes
    y[0] = -1
    sets = torch.stack([torch.full((whole.num_classes,), t) for t in (-1.0, -3.0)])
    want = answers(whole, x, y, true=True, sets=sets)
    with none_whole():
        got = answers(parted, x, y, true=True, sets=sets)
    assert (got.pred == want.pred).all() and (got.sizes == want.sizes).all()
    np.testing.assert_allclose(got.true, want.true, rtol=1e-6)
    assert got.scores.keys() == want.scores.keys()
    for name, score in want.scores.items():
        np.testing.assert_allclose(got.scores[name], score, rtol=1e-9, atol=1e-9, err_msg=name)


class Sent(TorchDispatchMode):
    """Bytes that this process gives to collectives."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        sends = "all" in str(func) or "broadcast" in str(func)
        if func.namespace in ("c10d", "_c10d_functional") and sends:
            given = args[1] if "allgather_" in str(func) else args[0]
            for tensor in [given] if isinstance(given, torch.Tensor) else given:
                self.total += tensor.nbytes
        return func(*args, **(kwargs or {}))


def bytes_do_not_grow_with_the_classes(mesh):
    """Of B rows of D numbers in each process, and what else they come to."""
    rows, width, processes = 5, 8, dist.get_world_size()
    x, every = torch.randn(rows, width), rows * processes
    for make in (LinearHead, OLTRHead):
        sent = {}
        for classes in (10, 1001):
            head = make(width, classes)
            if make is OLTRHead:
                head.init_from(None, torch.randn(classes, width), torch.arange(classes))
            parted = shard_classes(head, mesh)
            for name, ask in {
                "predict": parted.predict,
                "best": lambda x, head=parted: head.best(x, 3),
            }.items():
                with Sent() as counted, torch.no_grad():
                    ask(x)
                sent[name, classes] = counted.total
        gathered = 16 + rows * width * 4  # how many rows there are, and they
        memory = 0 if make is LinearHead else every * (4 * (width + 2) + 8 + 8)
        for name, largest in (("predict", 1), ("best", 3)):
            expected = gathered + memory + every * 8 * (2 * largest + 2)
            assert sent[name, 10] == sent[name, 1001] == expected, (make, name, sent, expected)
