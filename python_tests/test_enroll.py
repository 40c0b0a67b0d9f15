"""Classes that join a head and leave it: by whom they are answered, and what is left of them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from head_cases import heads_of_every_kind
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.nn import FSLwFHead, LinearHead, LWSHead, OLTRHead, OpenMaxHead
from oltr_ext.nn.feature_bank import FeatureBank

CLASSES, WIDTH = 12, 8
KINDS = ("oltr", "linear", "lws", "fslwf")


def clusters(seed: int, classes: int, each: int, spread: float = 0.3):
    """Features (classes * each, WIDTH) around centres, and labels."""
    rng = torch.Generator().manual_seed(seed)
    centres = 3 * F.normalize(torch.randn(classes, WIDTH, generator=rng), dim=1)
    label = torch.arange(classes).repeat_interleave(each)
    return centres[label] + spread * torch.randn(len(label), WIDTH, generator=rng), label


def trained(kind: str = "oltr"):
    """A head that tells `CLASSES` clusters, its training features and their labels."""
    x, y = clusters(0, CLASSES, 6)
    counts, means = torch.bincount(y), torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    torch.manual_seed(0)
    if kind == "oltr":
        head = OLTRHead(WIDTH, CLASSES, class_prior=counts.float())
        head.init_from(None, x, y, classifier="means", selector="zero")
    elif kind == "fslwf":
        head = FSLwFHead(WIDTH, [20] * 8 + [6] * 4)
        head.init_from(means, [(x, y)])
        head.phi_att.data.zero_()  # an untrained generator that recalls at random
    else:
        kinds = {"linear": LinearHead, "lws": LWSHead}
        head = kinds[kind](WIDTH, CLASSES, class_prior=counts.float())
        head.start_at(means, -means.square().sum(1) / 2 if kind == "linear" else None)
    head.bank.fit([(x, y)], counts)
    head.eval().requires_grad_(True)
    return head, x, y


def state(head):
    return {name: value.clone() for name, value in head.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def answers(head, x):
    with torch.no_grad():
        out = head.outputs(x)
        return [out.logits, *head.scores(out).values(), *head.predict(x)]


@pytest.mark.parametrize("kind", KINDS)
def test_new_classes_are_answered_and_old_ones_stay(kind: str) -> None:
    head, x, y = trained(kind)
    before = state(head)
    new, group = clusters(1, 5, 9)
    ids = head.enroll(new, [f"new {g}" for g in group])
    assert ids.tolist() == [*range(CLASSES, CLASSES + 5)] and ids.dtype == torch.int64
    fresh, label = clusters(1, 5, 9, spread=0.4)
    with torch.no_grad():
        found, old = head(fresh).argmax(1), head(x).argmax(1)
    assert (found == label + CLASSES).float().mean() > 0.9
    assert (old == y).float().mean() > 0.95
    for name, value in before.items():  # nothing trained has moved
        now = head.state_dict()[name]
        assert torch.equal(now[: len(value)] if value.dim() else now, value), name
    assert head.num_classes == CLASSES + 5 and head.num_trained == CLASSES
    assert head.roster[CLASSES].images == 9


@pytest.mark.parametrize("kind", KINDS)
def test_removing_the_newest_gives_back_the_same_bits(kind: str) -> None:
    head, x, _ = trained(kind)
    before, said = state(head), answers(head, x)
    new, group = clusters(1, 4, 3)
    head.enroll(new, [f"new {g}" for g in group])
    head.enroll(new[:2], ["more", "more"])
    head.remove([CLASSES + 1])
    head.remove([CLASSES + 4, CLASSES, CLASSES + 2, CLASSES + 3])
    assert same(before, state(head))
    assert all(torch.equal(a, b) for a, b in zip(said, answers(head, x), strict=True))
    assert len(head.roster) == CLASSES and head.removed is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_hole_is_no_answer_and_old_classes_stand_as_before(kind: str) -> None:
    head, x, _ = trained(kind)
    new, group = clusters(1, 3, 3)
    alone = copy.deepcopy(head)
    alone.enroll(new[group == 2], ["c"] * 3)
    head.enroll(new, [f"{'abc'[g]}" for g in group])
    head.remove([CLASSES])
    head.remove([CLASSES + 1])
    with torch.no_grad():
        logits, expected = head(new), alone(new)
    assert (logits[:, CLASSES : CLASSES + 2] == -torch.inf).all()
    kept = [*range(CLASSES), CLASSES + 2]
    torch.testing.assert_close(logits[:, kept], expected, rtol=1e-4, atol=1e-4)
    for name, score in head.scores(head.outputs(x)).items():
        torch.testing.assert_close(score, alone.scores(alone.outputs(x))[name], msg=name)
    if kind == "oltr":
        assert head.memory.present.tolist() == kept
    assert head.roster.removed == [CLASSES, CLASSES + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_bank_of_scores_knows_new_classes_too(kind: str) -> None:
    head, x, _ = trained(kind)
    new, group = clusters(1, 5, 6)
    before = head.scores(head.outputs(new))
    head.enroll(new, [f"new {g}" for g in group])
    now, old = head.scores(head.outputs(new)), head.scores(head.outputs(x))
    assert now["nearest_feature"].abs().max() < 1e-3 > before["nearest_feature"].max()
    assert now["mahalanobis"].median() > before["mahalanobis"].median()
    assert now["mahalanobis"].median() > 1.5 * old["mahalanobis"].median()  # both are negative
    fitted, (x, y) = FeatureBank(), clusters(0, CLASSES, 6)
    fitted.fit([(x, y)], torch.bincount(y))
    mean = F.normalize(new[group == 2], dim=1).mean(0) @ fitted.whitening.t()
    torch.testing.assert_close(head.bank.means[CLASSES + 2], mean, rtol=1e-4, atol=1e-4)
    approx = torch.stack([x[y == c].mean(0) for c in range(CLASSES)])
    assert F.cosine_similarity(fitted.trained_means(), approx).min() > 0.999


@pytest.mark.parametrize("kind", ["oltr", "linear"])
def test_of_many_trained_classes_some_stand_for_all(kind: str, monkeypatch) -> None:
    module = "oltr_head" if kind == "oltr" else "linear_classes"
    monkeypatch.setattr(f"oltr_ext.nn.{module}.RIVALS", 5)
    head, _, _ = trained(kind)
    new, group = clusters(1, 5, 9)
    head.enroll(new, [f"new {g}" for g in group])
    assert len(head.rivals().inputs) == 5
    with torch.no_grad():
        assert (head(new).argmax(1) == group + CLASSES).float().mean() > 0.9


def test_a_trained_class_may_go_too() -> None:
    head, x, y = trained()
    head.remove([3])
    with torch.no_grad():
        out = head.outputs(x)
    assert (out.logits[:, 3] == -torch.inf).all() and not (out.nearest == 3).any()
    assert head.num_classes == CLASSES
    ids = head.enroll(x[y == 3], ["class 3"] * 6)
    assert ids.tolist() == [CLASSES]
    with torch.no_grad():
        assert (head(x[y == 3]).argmax(1) == CLASSES).all()


@pytest.mark.parametrize("kind", KINDS)
def test_more_images_of_a_class_put_it_where_all_at_once_would(kind: str) -> None:
    one, x, _ = trained(kind)
    other, (new, group) = copy.deepcopy(one), clusters(1, 3, 4)
    names = [f"new {g}" for g in group]
    one.enroll(new, names)
    order = torch.arange(12).view(3, 4).t().reshape(-1)  # an image of each in turn
    for rows in order.split(6):
        other.enroll(new[rows], [names[i] for i in rows])
    a, b = one.state_dict(), other.state_dict()
    for name in a:
        if "rows" in name or "owners" in name or "support" in name:
            continue  # in order of arrival
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5, msg=name)
    for i, j in zip(answers(one, x), answers(other, x), strict=True):
        torch.testing.assert_close(i, j, rtol=1e-4, atol=1e-4)
    assert [e.images for e in one.roster] == [e.images for e in other.roster]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_groups_may_come_in_any_order(order, at_once) -> None:
    """Ids go by arrival; a class's numbers do not."""
    one, _, _ = trained()
    other, (new, group) = copy.deepcopy(one), clusters(1, 4, 3)
    one.enroll(new, [str(int(g)) for g in group])
    for some in (order[i : i + at_once] for i in range(0, 4, at_once)):
        rows = torch.cat([(group == g).nonzero()[:, 0] for g in some])
        other.enroll(new[rows], [str(int(g)) for g in group[rows]])
    place = [*range(CLASSES), *(other.roster.id_of(str(g)) for g in range(4))]
    for tensor, again in zip(one._class_tensors(""), other._class_tensors(""), strict=True):
        torch.testing.assert_close(tensor.value, again.value[place], rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=8), st.randoms())
def test_whatever_joined_and_left_the_head_is_what_it_was(steps, rng) -> None:
    head, x, _ = trained()
    before, said = state(head), answers(head, x)
    new, _ = clusters(1, 8, 1)
    for number, (name, join) in enumerate(steps):
        if join:
            head.enroll(new[number : number + 1], [name])
        elif name in head.roster:
            head.remove([head.roster.id_of(name)])
        assert head.num_classes == len(head.roster) == len(head.memory.counts)
    left = [id for id in head.roster.living if id >= CLASSES]
    rng.shuffle(left)
    if left:
        head.remove(left)
    assert same(before, state(head))
    assert all(torch.equal(a, b) for a, b in zip(said, answers(head, x), strict=True))


@pytest.mark.parametrize(
    ("features", "names", "says"),
    [
        (torch.zeros(2, WIDTH), ["a"], "name for each of 2 rows, got 1"),
        (torch.zeros(0, WIDTH), [], r"features \(N >= 1, 8\), got \(0, 8\)"),
        (torch.zeros(1, WIDTH + 1), ["a"], r"got \(1, 9\)"),
        (torch.zeros(WIDTH), ["a"], r"got \(8,\)"),
        (torch.tensor([[torch.nan] * WIDTH]), ["a"], "NaN or infinity in row 0"),
        (torch.full((1, WIDTH), torch.inf), ["a"], "NaN or infinity"),
        (torch.full((1, WIDTH), 1e300, dtype=torch.float64), ["a"], "within float32"),
        (torch.zeros(1, WIDTH, dtype=torch.int64), ["a"], "got torch.int64"),
        ([[0.0] * WIDTH], ["a"], "got list"),
        (torch.ones(2, WIDTH), ["a", "class 1"], "'class 1' is a trained class"),
        (torch.ones(2, WIDTH), ["a", ""], "expected a name, got ''"),
    ],
)
@pytest.mark.parametrize("kind", ["oltr", "linear"])
def test_an_error_leaves_the_head_as_it_was(kind, features, names, says) -> None:
    head, _, _ = trained(kind)
    before, roster = state(head), copy.deepcopy(head.roster)
    with pytest.raises(ValueError, match=says):
        head.enroll(features, names)
    assert same(before, state(head)) and head.roster == roster
    with pytest.raises(ValueError, match=r"Roster.remove: expected an id in \[0, 12\), got 12"):
        head.remove([0, 12])
    assert same(before, state(head)) and head.roster == roster


def test_heads_that_cannot_say_why() -> None:
    x, _ = clusters(0, CLASSES, 6)
    openmax = OpenMaxHead(WIDTH, CLASSES)
    with pytest.raises(ValueError, match=r"OpenMaxHead.enroll: .* the\s+logits of all"):
        openmax.enroll(x[:1], ["a"])
    with pytest.raises(ValueError, match=r"OpenMaxHead\.remove"):
        openmax.remove([0])
    with pytest.raises(ValueError, match=r"LinearHead.enroll: .*head.bank.fit"):
        LinearHead(WIDTH, CLASSES).enroll(x[:1], ["a"])
    with pytest.raises(ValueError, match=r"OLTRHead.enroll: .*init_from"):
        OLTRHead(WIDTH, CLASSES).enroll(x[:1], ["a"])
    assert isinstance(OpenMaxHead(WIDTH, CLASSES).bank, FeatureBank)


def test_every_kind_of_head_is_here() -> None:
    names = {type(head).__name__ for head, _, _ in heads_of_every_kind()}
    assert names == {type(trained(kind)[0]).__name__ for kind in KINDS} | {"OpenMaxHead"}


def test_named_and_renamed() -> None:
    head, x, _ = trained()
    head.enroll(x[:1], ["a"])
    head.rename(CLASSES, "b")
    assert head.roster.id_of("b") == CLASSES
    with pytest.raises(ValueError, match="expected names that differ"):
        head.rename(0, "b")
    other = copy.deepcopy(head.roster)
    other.add(["c"], [1])
    with pytest.raises(ValueError, match=r"OLTRHead.roster: expected 13 ids"):
        head.roster = other
