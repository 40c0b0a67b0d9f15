"""Sample streams: which image comes at which position, as a pure function of (seed, position).

A stream has no end and no hidden state. Its whole state is a position, so resuming is to ask
for the positions that follow, and the same positions always give the same images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BalancedSampler", "ClassAwareSampler", "Sampler", "ShuffleSampler", "batch_for", "mix"]

Ints = NDArray[np.int64]
_MASK = (1 << 64) - 1


def mix(*keys: ArrayLike) -> NDArray[np.uint64]:
    """Hash broadcast integer keys to uniform uint64 (SplitMix64's finaliser over each key)."""
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            word = np.asarray(key).astype(np.uint64)
            state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def batch_for(images: int) -> int:
    """A batch for so many training images where nobody said one: 128, and of fewer than 512 the
    largest power of two of which they make four batches."""
    return min(128, images, 1 << max(images // 4, 2).bit_length() - 1)


class Sampler(ABC):
    """Base of the streams. `at` is the stream itself; `batches` walks along it.

    Args:
        labels: (N,) int, class of each image.
        seed: any int; two seeds give unrelated streams.

    Raises:
        ValueError: no images, a negative label, or labels that are not one row of integers.
    """

    def __init__(self, labels: ArrayLike, *, seed: int = 0) -> None:
        name = type(self).__name__
        array = np.asarray(labels)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(
                f"{name}: expected labels (N,) of integers, got {array.dtype} {array.shape}"
            )
        if array.size == 0:
            raise ValueError(f"{name}: the data set is empty")
        if array.min() < 0:
            raise ValueError(f"{name}: labels must be at least 0, got {array.min()}")
        self.labels: Ints = array.astype(np.int64)
        self.seed = int(seed) & _MASK
        self.position = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def at(self, start: int, count: int) -> Ints:
        """(count,) image indices at positions start, start + 1, ..."""

    def batches(self, batch_size: int, steps: int) -> Iterator[Ints]:
        """The next `steps` batches as (batch_size, 2) rows of (position, index).

        `position` of the sampler moves on as each batch is handed out.
        """
        start = self.position
        rows = np.stack(
            [
                np.arange(start, start + steps * batch_size, dtype=np.int64),
                self.at(start, steps * batch_size),
            ],
            axis=1,
        )
        for step in range(steps):
            self.position = start + (step + 1) * batch_size
            yield rows[step * batch_size : (step + 1) * batch_size]

    def state_dict(self) -> dict[str, int]:
        """Where the walk stands, as a position of the stream; the stream itself needs no state."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            KeyError: there is no ``position``.
        """
        self.position = int(state["position"])


class ShuffleSampler(Sampler):
    """Every image once a pass, each pass in its own order: the natural distribution."""

    def at(self, start: int, count: int) -> Ints:
        size = len(self)
        first, last = start // size, (start + count - 1) // size
        passes = [
            np.argsort(mix(self.seed, 1, n, np.arange(size)), kind="stable")
            for n in range(first, last + 1)
        ]
        offset = start - first * size
        return np.concatenate([*passes, np.empty(0, np.int64)])[offset : offset + count]


class _ByClass(Sampler):
    """Shared by the class-wise streams: images grouped by class, empty classes left out."""

    def __init__(self, labels: ArrayLike, *, seed: int = 0) -> None:
        super().__init__(labels, seed=seed)
        self.classes, counts = np.unique(self.labels, return_counts=True)
        self.counts: Ints = counts.astype(np.int64)
        self.offsets: Ints = np.cumsum(self.counts) - self.counts
        self.members: Ints = np.argsort(self.labels, kind="stable").astype(np.int64)


class ClassAwareSampler(_ByClass):
    """The paper's stage-2 stream: cycle a shuffled list of classes, some images of each in a row.

    Each cycle visits every non-empty class once, in a fresh order. A visit takes the next
    `samples_per_class` images of that class's own shuffled cycle, which continues from visit to
    visit and is reshuffled each time it has been used up.
    """

    def __init__(self, labels: ArrayLike, *, samples_per_class: int = 4, seed: int = 0) -> None:
        super().__init__(labels, seed=seed)
        if samples_per_class < 1:
            raise ValueError(
                f"ClassAwareSampler: samples_per_class must be at least 1, got {samples_per_class}"
            )
        self.samples_per_class = int(samples_per_class)

    def at(self, start: int, count: int) -> Ints:
        position = np.arange(start, start + count, dtype=np.int64)
        visit, within = np.divmod(position, self.samples_per_class)
        cycle, slot = np.divmod(visit, len(self.classes))
        if count == 0:
            return position
        # a class is visited once a cycle, so its draw number follows from the position alone
        cycles = np.arange(cycle[0], cycle[-1] + 1)
        order = np.argsort(
            mix(self.seed, 2, cycles[:, None], np.arange(len(self.classes))), axis=1, kind="stable"
        )
        which = order[cycle - cycle[0], slot]
        turn, place = np.divmod(cycle * self.samples_per_class + within, self.counts[which])
        return self._in_turn(which, turn, place)

    def _in_turn(self, which: Ints, turn: Ints, place: Ints) -> Ints:
        """Element `place` of shuffle number `turn` of class `which`, row by row."""
        turns, group = np.unique(np.stack([which, turn], axis=1), axis=0, return_inverse=True)
        group = group.reshape(-1)
        sizes = self.counts[turns[:, 0]]
        begin = np.cumsum(sizes) - sizes
        # one ragged shuffle of all needed (class, turn) groups: sort by group, then by hash
        row = np.repeat(np.arange(len(turns)), sizes)
        local = np.arange(len(row)) - begin[row]
        key = mix(self.seed, 3, turns[row, 0], turns[row, 1], local)
        shuffled = local[np.lexsort((key, row))]
        return self.members[self.offsets[which] + shuffled[begin[group] + place]]


class BalancedSampler(_ByClass):
    """Independent draws: a class uniformly among the non-empty ones, then an image of it."""

    def at(self, start: int, count: int) -> Ints:
        position = np.arange(start, start + count, dtype=np.int64)
        which = _below(mix(self.seed, 4, position), np.int64(len(self.classes)))
        place = _below(mix(self.seed, 5, position), self.counts[which])
        return self.members[self.offsets[which] + place]


def _below(word: NDArray[np.uint64], bound: np.int64 | Ints) -> Ints:
    """Uniform in 0 .. bound-1 from the upper 53 bits (bias below 2**-53 * bound)."""
    unit = (word >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (unit * bound).astype(np.int64)
