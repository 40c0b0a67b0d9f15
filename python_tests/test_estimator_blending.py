"""What the nearest rows say in `OLTRClassifier`, and what its training measures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn_rows import DATA, KNOWN
from scipy.special import log_softmax

from oltr_ext import OLTRClassifier
from oltr_ext.estimator.blending import Blend, class_similarity
from oltr_ext.nn import OLTRHead


def test_similarity_is_the_cosine_to_the_nearest_row_of_each_class() -> None:
    draw = torch.Generator().manual_seed(0)
    x, bank = torch.randn(5, 6, generator=draw), torch.randn(9, 6, generator=draw)
    label = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3])
    cosine = 16 * F.normalize(x) @ F.normalize(bank).T
    expected = torch.stack([cosine[:, label == c].amax(1) for c in range(4)], 1)
    torch.testing.assert_close(class_similarity(x, bank, label), expected)


def judged(informed: int) -> tuple[Any, ...]:
    """Logits, similarity, shares, labels, weights, how many rows; one of the first two knows the
    label."""
    draw = np.random.default_rng(0)
    label = np.arange(120) % 6
    both = draw.normal(size=(2, 120, 6))
    both[informed, np.arange(120), label] += 3
    share = torch.arange(1.0, 7, dtype=torch.float64)
    weight = torch.from_numpy(draw.integers(1, 4, 120).astype(float))
    return *map(torch.from_numpy, both), share / share.sum(), torch.from_numpy(label), weight, 120


def test_rows_take_part_only_where_they_know_more() -> None:
    assert Blend.of(*judged(0)).rows == 0
    found = Blend.of(*judged(1))
    assert found.head < 0.6 < 1 < found.rows


def test_the_blend_is_the_most_likely_one() -> None:
    logits, similarity, share, label, weight, rows = judged(1)
    found = Blend.of(logits, similarity, share, label, weight, rows)
    worth = (weight / torch.bincount(label, weight)[label]).numpy()

    def loss(head: float, rows: float, count: float) -> float:
        answer = (head * logits + rows * similarity + count * share.log()).numpy()
        likely = log_softmax(answer, 1)[np.arange(len(label)), label.numpy()]
        off = (head - 1) ** 2 + rows**2 + count**2  # as much as one row of the 20 of a class
        return float(-(worth @ likely) + off / 20)

    best = (found.head, found.rows, found.count)
    for place in range(3):
        for step in (-0.05, 0.05):
            beside = [each + step * (at == place) for at, each in enumerate(best)]
            assert beside[0] < 0 or loss(*beside) > loss(*best)


def test_weight_does_what_repetition_does() -> None:
    logits, similarity, share, label, weight, rows = judged(1)
    again = torch.repeat_interleave(torch.arange(120), weight.long())
    ones = torch.ones(len(again))
    one = Blend.of(logits, similarity, share, label, weight, rows)
    two = Blend.of(logits[again], similarity[again], share, label[again], ones, rows)
    for name in ("head", "rows", "count"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=1e-6)


def test_the_prior_that_is_expected_stays_whole() -> None:
    logits, similarity, share, *_ = judged(0)
    blend, expected = Blend(0.5, 0.2, -0.3), 0.7 * share.log()
    found = blend(logits + expected, similarity, share, 0.7)
    torch.testing.assert_close(found, blend(logits, similarity, share, 0.0) + expected)
    assert Blend()(logits, None, share, 0.0).equal(logits)


def test_classes_of_several_kinds_go_by_their_rows() -> None:
    draw = np.random.default_rng(0)
    centre = draw.normal(size=(8, 5, 12))

    def part(number: int) -> tuple[Any, Any]:
        label = np.arange(number) % 8
        noise = draw.normal(scale=0.3, size=(number, 12))
        return centre[label, draw.integers(5, size=number)] + noise, label

    model, (rows, label) = OLTRClassifier(random_state=0).fit(*part(400)), part(400)
    found = (model.predict(rows) == label).mean()
    assert model._blend.rows > 0 and found > 0.95
    model._blend = Blend()
    assert (model.predict(rows) == label).mean() < found - 0.1


def test_the_more_rows_are_held_out_the_less_the_head_alone_says() -> None:
    draw = np.random.default_rng(0)

    def part(number: int) -> tuple[Any, Any]:  # two circles around the same middle
        label, angle = np.arange(number) % 2, draw.uniform(0, 2 * np.pi, number)
        rows = (1 + label)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return rows + draw.normal(scale=0.1, size=rows.shape), label

    (rows, label), asked = part(1000), part(400)
    model = OLTRClassifier(random_state=0).fit(rows, label)
    assert (model.predict(asked[0]) == asked[1]).mean() > 0.95
    again = OLTRClassifier(random_state=0).fit(rows, label, np.full(len(label), 3.0))
    twice = OLTRClassifier(random_state=0).fit(np.repeat(rows, 2, 0), np.repeat(label, 2))
    for other in (again, twice):
        assert abs(other._blend.rows / model._blend.rows - 1) < 0.1


def test_features_are_measured_once_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    measured, embed = [0], type(OLTRHead(2, 2).classifier).embed

    def counted(self: Any, x: Any, *rest: Any) -> Any:
        measured[0] += len(x)
        return embed(self, x, *rest)

    monkeypatch.setattr("oltr_ext.nn.classifiers.MetaEmbedding.embed", counted)
    numbers = []
    for epochs in (2, 30):
        measured[0] = 0
        model = OLTRClassifier(random_state=0, epochs=epochs, batch_size=32).fit(*DATA)
        numbers.append(measured[0])
    assert numbers[0] == numbers[1] < 3 * len(DATA[0])
    assert (model.predict(KNOWN[0]) == KNOWN[1]).mean() > 0.97
