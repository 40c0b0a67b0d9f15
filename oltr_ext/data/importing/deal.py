"""Which split an image goes to: by group and class, the same for the same content and seed."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["RULE", "Item", "Share", "deal", "deal_open", "joined"]

Share = float | int
"""Below 1 a share of a class's images, else so many of them."""

RULE = (
    "images of one observation, one group or one content stay together; all begin in train, and "
    "class by class, the rarest first, they move to val and then to test, in an order drawn by "
    "the seed, until the class has its share there, one at least; none moves that would leave a "
    "class of its own without a training image"
)


@dataclass(frozen=True, slots=True)
class Item:
    """An image to deal.

    Args:
        label: its class.
        content: hash of its bytes.
        keys: names of what it must stay together with.
        split: where it is already; None leaves it to the deal.
    """

    label: str
    content: str
    keys: tuple[str, ...] = ()
    split: str | None = None


FIXED = ("val", "test")


def joined(keys: Sequence[Sequence[Hashable]]) -> list[int]:
    """A number for each of N: the same for those that share a key, with whatever lies between."""
    parent = list(range(len(keys)))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    first: dict[Hashable, int] = {}
    for n, own in enumerate(keys):
        for key in own:
            a, b = root(first.setdefault(key, n)), root(n)
            parent[max(a, b)] = min(a, b)
    return [root(n) for n in range(len(keys))]


def deal(items: Sequence[Item], *, val: Share, test: Share, seed: int) -> list[str]:
    """train, val or test for each item, by `RULE`.

    What is in val or test stays there, with what belongs to it and has no split. Where some are in
    val, or in test, that one gets nothing in addition.

    Args:
        val, test: how much of each class; 0 for none.

    Raises:
        ValueError: a share below 0.
    """
    for name, share in (("val", val), ("test", test)):
        if share < 0:
            raise ValueError(f"deal: expected a share or number of images for {name}, got {share}")
    group = joined([(("content", item.content), *item.keys) for item in items])
    pinned = {g: item.split for item, g in zip(items, group, strict=True) if item.split in FIXED}
    members: dict[int, list[int]] = defaultdict(list)
    for n, (item, g) in enumerate(zip(items, group, strict=True)):
        if item.split == "train" or (item.split is None and g not in pinned):
            members[g].append(n)
    given = {item.split for item in items}
    same: dict[tuple[str, ...], Counter[str]] = {}  # of a million groups few are of others
    classes = {}
    for g, rows in members.items():
        labels = tuple(items[n].label for n in rows)
        classes[g] = same.setdefault(labels, Counter(labels))
    order = {g: drawn(seed, min(items[n].content for n in rows)) for g, rows in members.items()}
    moved: dict[int, str] = {}
    for part, share in (("val", val), ("test", test)):
        if share and part not in given:
            _move(part, share, classes, order, moved)
    return [
        pinned[g]
        if item.split is None and g in pinned
        else item.split
        if item.split in FIXED
        else moved.get(g, "train")
        for item, g in zip(items, group, strict=True)
    ]


def _move(
    part: str,
    share: Share,
    classes: dict[int, Counter[str]],
    order: dict[int, str],
    moved: dict[int, str],
) -> None:
    """Move groups from train to `part`."""
    images: Counter[str] = Counter()
    groups: dict[str, list[int]] = defaultdict(list)
    left: Counter[str] = Counter()  # groups of a class that are in train
    for number in sorted(classes, key=order.__getitem__):
        for label, count in classes[number].items():
            images[label] += count
            groups[label].append(number)
            left[label] += number not in moved
    have: Counter[str] = Counter()

    def spare(number: int) -> bool:
        return number not in moved and all(left[label] > 1 for label in classes[number])

    def take(number: int) -> None:
        moved[number] = part
        for label, count in classes[number].items():
            left[label] -= 1
            have[label] += count

    for label in sorted(groups, key=lambda c: (len(groups[c]), images[c], c)):
        target = max(1, round(share * images[label]) if share < 1 else int(share))
        for number in groups[label]:
            missing = target - have[label]
            if missing <= 0:
                break
            if classes[number][label] <= 2 * missing and spare(number):  # it comes nearer
                take(number)
        if not have[label]:
            able = [number for number in groups[label] if spare(number)]
            if able:
                take(min(able, key=lambda n: (classes[n].total(), order[n])))


def deal_open(labels: Sequence[str], seed: int) -> dict[str, str]:
    """open_val or open_test for each class that is held out: in turn, in an order drawn by the
    seed; one alone is for testing."""
    turn = sorted(labels, key=lambda label: drawn(seed, label))
    return {label: ("open_test", "open_val")[n % 2] for n, label in enumerate(turn)}


def drawn(seed: int, word: str) -> str:
    """A place in an order that the seed draws."""
    return hashlib.sha256(f"{seed} {word}".encode()).hexdigest()


def half_of_the_images(counts: Sequence[int]) -> int:
    """How many of the largest classes hold half of all images."""
    total = np.cumsum(sorted(counts, reverse=True))
    return int(np.searchsorted(total, total[-1] / 2)) + 1 if len(total) else 0
