"""Which split an image goes to: what stays together, what a class can spare, what a seed draws."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oltr_ext.data.importing.deal import Item, deal, deal_open, joined


def items(counts, **more):
    return [Item(c, f"{c}{n}", **more) for c, count in counts.items() for n in range(count)]


def dealt(some, **how):
    splits = deal(some, **{"val": 0.1, "test": 0.2, "seed": 0, **how})
    return Counter((item.label, split) for item, split in zip(some, splits, strict=True))


def test_shares_and_what_a_class_can_spare():
    found = dealt(items({"a": 100, "b": 10, "c": 3, "d": 2, "e": 1}))
    assert [found["a", part] for part in ("train", "val", "test")] == [70, 10, 20]
    assert [found["b", part] for part in ("train", "val", "test")] == [7, 1, 2]
    assert [found["c", part] for part in ("train", "val", "test")] == [1, 1, 1]
    assert [found["d", part] for part in ("train", "val", "test")] == [1, 1, 0]
    assert [found["e", part] for part in ("train", "val", "test")] == [1, 0, 0]


def test_numbers_in_place_of_shares():
    found = dealt(items({"a": 100, "b": 7}), val=2, test=5)
    assert [found["a", part] for part in ("train", "val", "test")] == [93, 2, 5]
    assert [found["b", part] for part in ("train", "val", "test")] == [1, 2, 4]
    assert dealt(items({"a": 10}), test=0) == {("a", "train"): 9, ("a", "val"): 1}


def test_the_seed_and_the_content_alone_decide():
    some = items({"a": 40, "b": 9})
    one = dict(zip(some, deal(some, val=0.1, test=0.2, seed=0), strict=True))
    turned = some[::-1]
    assert dict(zip(turned, deal(turned, val=0.1, test=0.2, seed=0), strict=True)) == one
    assert dict(zip(some, deal(some, val=0.1, test=0.2, seed=1), strict=True)) != one


def test_what_belongs_together_through_others():
    assert joined([("a",), ("b",), ("a", "c"), ("d",), ("b", "c"), ()]) == [0, 0, 0, 3, 0, 5]


GROUPED = st.lists(
    st.tuples(st.sampled_from("abcde"), st.integers(0, 12), st.integers(0, 60)), min_size=1
)


@settings(max_examples=60, deadline=None)
@given(GROUPED, st.integers(0, 3))
def test_laws(rows, seed):
    some = [Item(c, str(content), (f"group {g}",)) for c, g, content in rows]
    splits = deal(some, val=0.2, test=0.3, seed=seed)
    groups = joined([(item.content, *item.keys) for item in some])
    where, seen, of_class = defaultdict(set), defaultdict(set), defaultdict(set)
    for item, split, group in zip(some, splits, groups, strict=True):
        where[group].add(split)
        seen[item.label].add(split)
        of_class[item.label].add(group)
    assert all(len(parts) == 1 for parts in where.values())
    assert all("train" in parts for parts in seen.values())
    kept = Counter(c for c, own in of_class.items() for g in own if where[g] == {"train"})
    for label, parts in seen.items():
        if "val" not in parts:  # it had none to spare, or all that it had were others' last
            for g in of_class[label]:
                others = {c for c, own in of_class.items() if g in own}
                assert where[g] != {"train"} or any(kept[c] == 1 for c in others)


def test_given_splits_stay_and_draw_along_what_belongs_to_them():
    some = [
        *(Item("a", f"t{n}", split="train") for n in range(20)),
        *(Item("a", f"e{n}", split="test") for n in range(3)),
        Item("a", "e0"),
        Item("a", "x", ("group 1",), "test"),
        Item("a", "y", ("group 1",)),
    ]
    splits = deal(some, val=0.1, test=0.5, seed=0)
    assert Counter(splits[:20]) == {"train": 18, "val": 2}
    assert splits[20:] == ["test"] * 6


def test_one_strange_class_is_for_testing():
    assert deal_open(["a"], 0) == {"a": "open_test"}
    assert Counter(deal_open("abcde", 0).values()) == {"open_test": 3, "open_val": 2}
    with pytest.raises(ValueError, match="a share or number of images for val, got -1"):
        deal([], val=-1, test=0, seed=0)
