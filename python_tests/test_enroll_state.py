"""Heads with enrolled classes: copied, cast, loaded, compiled, and read while others join."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from test_enroll import CLASSES, KINDS, WIDTH, answers, clusters, same, state, trained
from torch import nn

from oltr_ext.nn.room import Gate, Rooms


def grown(kind: str, hole: bool = True):
    head, x, _ = trained(kind)
    new, group = clusters(1, 4, 3)
    head.enroll(new, [f"new {g}" for g in group])
    if hole:
        head.remove([CLASSES + 1])
    return head, torch.cat([x, new])


@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_state_dict_loads_into_a_head_of_the_trained_classes(kind: str) -> None:
    head, x = grown(kind)
    fresh, _, _ = trained(kind)
    base, held = state(fresh), head.state_dict()
    file = io.BytesIO()
    torch.save(held, file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file), strict=True)
    assert (fresh.num_classes, fresh.num_trained) == (CLASSES + 4, CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(answers(head, x), answers(fresh, x), strict=True))
    assert fresh.roster.removed == [CLASSES + 1] and fresh.roster[CLASSES + 2].images == 3
    fresh.roster = type(head.roster).from_json(head.roster.to_json())
    assert fresh.roster.id_of("new 3") == CLASSES + 3
    more, _ = clusters(2, 1, 3)
    for one in (head, fresh):
        one.enroll(more, ["more", "new 3", "new 0"])
    assert same(state(head), state(fresh))
    fresh.load_state_dict(base, strict=True)  # and back
    assert fresh.num_classes == CLASSES and same(base, state(fresh))
    assert fresh.roster.num_trained == CLASSES


def test_a_state_dict_of_other_classes_is_an_error_still() -> None:
    head, _ = grown("linear")
    state = head.state_dict()
    state["linear.weight"] = state["linear.weight"][1:]
    with pytest.raises(RuntimeError, match="size mismatch"):
        trained("linear")[0].load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_alike_and_grow_apart(kind: str) -> None:
    head, x = grown(kind)
    before, said = state(head), answers(head, x)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert same(before, state(other)) and other.roster == head.roster
        more, _ = clusters(3, 1, 2)
        other.enroll(more, ["more", "new 2"])
        other.remove([CLASSES])
        assert same(before, state(head))
        assert all(torch.equal(a, b) for a, b in zip(said, answers(head, x), strict=True))
    assert head.roster.living == [*range(CLASSES + 1), CLASSES + 2, CLASSES + 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_in_other_precisions(kind: str, dtype: torch.dtype) -> None:
    head, _, _ = trained(kind)
    head = head.to(dtype)
    before, (new, group) = state(head), clusters(1, 4, 3)
    names = [f"new {g}" for g in group]
    head.enroll(new.half()[:6], names[:6])  # whatever the features come in
    head.enroll(new.double()[6:], names[6:])
    assert all(p.dtype == dtype for p in head.parameters())
    assert head.enrolled_means.dtype == torch.float32
    label, score = head.predict(new.to(dtype))
    assert (label == group + CLASSES).float().mean() > 0.8 and score.dtype == torch.float64
    head.remove([CLASSES, CLASSES + 1, CLASSES + 2, CLASSES + 3])
    assert same(before, state(head))


def test_parameters_train_on() -> None:
    head, x = grown("oltr")
    assert all(isinstance(p, nn.Parameter) and p.is_leaf for p in head.parameters())
    named = dict(head.named_parameters())
    assert named["classifier.cosnorm_classifier.weight"].shape == (CLASSES + 4, WIDTH)
    sgd = torch.optim.SGD(head.parameters(), lr=0.1)
    target = torch.full((len(x),), CLASSES + 2)
    losses = []
    for _ in range(5):
        sgd.zero_grad()
        loss = head.loss(x, target)
        loss.backward()
        sgd.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_class_enrolled_after_training_on_is_set_against_what_is_there_now() -> None:
    head, _ = grown("oltr")
    first = head.rivals()
    assert head.rivals() is first
    with torch.no_grad():
        head.classifier.cosnorm_classifier.weight[0] *= -1
    assert head.rivals() is not first


@pytest.mark.parametrize("kind", ["oltr", "linear"])
def test_compiled(kind: str) -> None:
    head, x, _ = trained(kind)
    predict = torch.compile(head.predict, backend="eager", fullgraph=True)
    for step in range(3):
        if step == 1:
            new, group = clusters(1, 4, 3)
            head.enroll(new, [f"new {g}" for g in group])
        if step == 2:
            head.remove([CLASSES + 1])
        with torch.no_grad():
            label, score = predict(x)
        want = head.predict(x)
        assert torch.equal(label, want[0])
        torch.testing.assert_close(score, want[1])
    torch._dynamo.reset()


def test_exported_with_a_hole() -> None:
    class Predict(nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head.predict(x)

    head, x = grown("oltr")
    with torch.no_grad():
        program = torch.export.export(Predict(head.requires_grad_(False)), (x,)).module()
    assert torch.equal(program(x)[0], head.predict(x)[0])


def test_the_bank_is_not_copied_for_each_class() -> None:
    head, _, _ = trained()
    places, new = set(), torch.randn(100, WIDTH)
    for n in range(100):
        head.enroll(new[n : n + 1], [f"new {n}"])
        places.add(head.memory.centroids.data_ptr())
        assert len(head.memory.centroids) == CLASSES + n + 1
    assert len(places) <= 5  # 12, 24, 48, 96, 192
    head.remove(range(CLASSES, CLASSES + 100))
    assert len(head.state_dict()["memory.centroids"]) == CLASSES


def test_what_is_there_beside_holes_is_copied_once() -> None:
    head, x = grown("oltr")
    head.predict(x)
    there = head._rooms.kept["there"][2]
    head.predict(x)
    assert head._rooms.kept["there"][2] is there
    with torch.no_grad():
        head.memory.centroids[0] += 1
    head.predict(x)
    assert head._rooms.kept["there"][2] is not there


def test_rooms_keep_what_is_there_and_give_no_other_tensor_away() -> None:
    rooms, whole = Rooms(), torch.arange(6.0).view(3, 2)
    one = rooms.grown("a", whole, torch.ones(1, 2))
    two = rooms.grown("a", one, torch.zeros(1, 2))
    assert two.data_ptr() == one.data_ptr() and torch.equal(two[:3], whole)
    part = torch.arange(8.0).view(4, 2)  # a view that is nobody's buffer
    three = rooms.grown("a", part[:3], torch.ones(1, 2))
    assert torch.equal(part[3], torch.tensor([6.0, 7.0])) and torch.equal(three[3], torch.ones(2))


@pytest.mark.parametrize("kind", KINDS)
def test_readers_see_the_old_or_the_new_bank(kind: str) -> None:
    head, x, _ = trained(kind)
    new, group = clusters(1, 40, 2)
    asked = torch.cat([x, new[:8]]).requires_grad_(False)
    # what may be seen: the head with so many new classes
    other, allowed = copy.deepcopy(head), []
    names = [f"new {g}" for g in group]
    for n in range(0, 80, 16):
        allowed.append(answers(other, asked)[-2:])
        other.enroll(new[n : n + 16], names[n : n + 16])
    allowed.append(answers(other, asked)[-2:])
    wrong, stop, seen = [], threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            label, score = head.predict(asked)
            fits = [
                n
                for n, (want, value) in enumerate(allowed)
                if torch.equal(label, want) and torch.allclose(score, value)
            ]
            if not fits:
                wrong.append((label, score))
            seen.update(fits)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(3):
            for n in range(0, 80, 16):
                head.enroll(new[n : n + 16], names[n : n + 16])
            head.remove(range(CLASSES, CLASSES + 40))
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert not wrong and len(seen) > 1


def test_the_gate_lets_readers_read_within_reading_and_change_outside_alone() -> None:
    gate, done = Gate(), []
    with gate.reading():
        swapper = threading.Thread(target=lambda: done.append(_swap(gate)))
        swapper.start()
        while not gate._waiting:
            pass
        with gate.reading():  # though one waits
            assert not done
        with pytest.raises(RuntimeError, match="outside of reading"), gate.changing():
            pass
    swapper.join(10)
    assert done == [True]


def _swap(gate: Gate) -> bool:
    with gate.swapping():
        return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_of_less_than_a_head_leaves_its_classes(kind: str) -> None:
    head, x = grown(kind)
    before, prior = state(head), getattr(head, "prior_share", None)
    if prior is not None:
        prior.fill_(0.5)
        before["prior_share"] = prior.clone()
    threshold = torch.tensor(0.3, dtype=torch.float64)
    head.load_state_dict({"threshold": threshold}, strict=False)
    assert same({**before, "threshold": threshold}, state(head))
    other = trained(kind)[0].state_dict()
    name = next(name for name, _ in head.named_parameters())
    other[name] = torch.zeros(CLASSES + 1, WIDTH + 1)
    with pytest.raises(RuntimeError, match="size mismatch"):
        head.load_state_dict(other)
    assert head.num_classes == CLASSES + 4 and head.roster.removed == [CLASSES + 1]
    assert torch.equal(head.enrolled_means, before["enrolled_means"])
    head.predict(x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_head_holds_nothing_of_what_was_removed(kind: str) -> None:
    def written(head) -> bytes:
        file = io.BytesIO()
        torch.save(head.state_dict(), file)
        return file.getvalue()

    head, _, _ = trained(kind)
    before, (new, group) = len(written(head)), clusters(1, 3, 3)
    head.enroll(new, [f"new {g}" for g in group])
    head.remove([CLASSES + 2])
    mean = new[group == 2].double().mean(dim=0).float().numpy().tobytes()
    rows = [mean, *(row.numpy().tobytes() for row in new[group == 2])]
    assert not any(row in written(head) for row in rows)
    head.remove([CLASSES, CLASSES + 1])
    assert len(written(head)) <= before + 64  # a few bytes of padding
