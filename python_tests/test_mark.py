"""What heads keep of their tensors, after writes of every kind."""

from __future__ import annotations

import copy

import pytest
import torch
from test_enroll import CLASSES, clusters
from test_enroll import trained as trained_clusters
from test_heads_in_torch import trained

FUSED = [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW]


def train(head, x, y, optimizer=torch.optim.AdamW):
    """By a fused optimizer, which leaves no trace in the version of what it writes."""
    steps = optimizer(head.parameters(), lr=0.3, fused=True)
    for _ in range(3):
        steps.zero_grad()
        head.loss(x, y).backward()
        steps.step()


@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("kind", ["oltr", "fslwf"])
def test_after_a_fused_optimizer(kind, optimizer):
    head, x, y = trained(kind)
    head.eval()
    with torch.no_grad():
        before = head(x)
        train_on = torch.enable_grad()(train)
        train_on(head, x, y, optimizer)
        after = head(x)
        assert not torch.equal(before, after)
        assert torch.equal(after, copy.deepcopy(head)(x))


def test_a_class_is_set_against_what_a_fused_optimizer_made():
    head, x, y = trained_clusters()
    new, _ = clusters(1, 1, 3)
    head.enroll(new, ["new"] * 3)
    first = head.rivals()
    train(head, x, y)
    head.remove([CLASSES])  # which must not call the old ones up to date
    assert head.rivals() is not first
    other = copy.deepcopy(head)
    for one in (head, other):
        one.enroll(new, ["new"] * 3)
    rows = [one.classifier.cosnorm_classifier.weight for one in (head, other)]
    torch.testing.assert_close(*rows)


def test_a_score_and_counts_that_were_written_without_a_trace():
    """As by collectives, through memory that torch does not watch."""
    head, x, _ = trained("oltr")
    assert (head.score, head.memory.present.tolist()) == ("energy", [0, 1])
    head.predict(x)
    other = copy.deepcopy(head)
    other.set_threshold(0.5, "max_logit")
    other.memory.counts[2] = 3
    for mine, theirs in zip(head.buffers(), other.buffers(), strict=True):
        mine.numpy()[...] = theirs.numpy()
    assert (head.score, head.memory.present.tolist()) == ("max_logit", [0, 1, 2])
    for got, want in zip(head.predict(x), other.predict(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["oltr", "fslwf"])
def test_eval_looks_at_everything_anew(kind):
    head, x, _ = trained(kind)
    head.eval()
    with torch.no_grad():
        head(x)
        for p in head.parameters():
            p.data += 1
        assert torch.equal(head.eval()(x), copy.deepcopy(head)(x))
