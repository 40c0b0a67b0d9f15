"""Which rows are held out, and which are kept: chosen by their content, whatever their order."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from oltr_ext.nn.bank_fits import largest_share

__all__ = ["held_out", "kept", "shuffled_order"]

Ints = NDArray[np.int64]
SHARE = 0.1
"""Of the distinct rows of a class that are held out, one at least."""
MOST = 4096
"""Distinct rows held out in all, but for one a class."""


def shuffled_order(rows: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """(N,) a number for each row, the same for equal rows, that orders them at random."""
    key = seed.to_bytes(8, "little")
    alike = (row + 0.0 for row in rows)  # -0 is 0; contiguous
    # A checksum would not do: of rows of one length another seed only flips the same bits of all.
    digests = b"".join(blake2b(row.data, digest_size=8, key=key).digest() for row in alike)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def held_out(order: NDArray[np.uint64], target: Ints, classes: int) -> NDArray[np.bool_]:
    """(N,) bool: rows to calibrate on, from each class that has another to be trained on.

    Equal rows of a class go together, so that none is trained on in one copy and judged in another,
    and a weight does what repetition does.
    """
    groups = [(each, np.unique(order[each])) for each in _by_class(target, classes)]
    share = min(1.0, MOST / max(1.0, SHARE * sum(len(distinct) for _, distinct in groups)))
    chosen = np.zeros(len(target), np.bool_)
    for members, distinct in groups:
        if len(distinct) > 1:
            number = max(1, round(SHARE * share * len(distinct)))
            chosen[members] = np.isin(order[members], distinct[:number])
    return chosen


def kept(order: NDArray[np.uint64], target: Ints, classes: int, most: int) -> Ints:
    """Places of at most `most` distinct rows, the largest classes with as many each as fit, one at
    least; in order of class."""
    groups = []
    for members in _by_class(target, classes):
        _, first = np.unique(order[members], return_index=True)
        groups.append(members[first])
    limit = largest_share(torch.tensor([len(group) for group in groups]), most)
    if limit is not None:
        groups = [group[: max(1, limit)] for group in groups]
    return np.concatenate(groups)


def _by_class(target: Ints, classes: int) -> list[Ints]:
    order = np.argsort(target, kind="stable")
    return np.split(order, np.cumsum(np.bincount(target, minlength=classes))[:-1])
