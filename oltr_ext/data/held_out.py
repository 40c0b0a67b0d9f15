"""Validation images taken from the training list, where there is no list of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from oltr_ext.data.samplers import mix

__all__ = ["hold_out"]


def hold_out(
    paths: Sequence[str],
    labels: ArrayLike,
    how: float | Literal["one_per_class"],
    seed: int,
) -> NDArray[np.bool_]:
    """Which images of a list are held out: a pure function of its paths, their labels and the seed.

    Which images of a class go depends on their paths alone, not on their order in the list. The
    last image of a class never goes, and an image that is listed twice goes as one.

    Args:
        paths, labels: of N >= 1 images, labels (N,) from 0.
        how: a share of all images, within 0 and 1: as near to it as can be, each class giving its
            own share rounded down or up. Or "one_per_class": one of each class that has two.

    Returns:
        bool (N,).

    Raises:
        ValueError: no image, another number of labels, or no share between 0 and 1.
    """
    if not len(paths) == np.size(labels) > 0:
        raise ValueError(
            f"hold_out: expected a path or more and a label for each, got {len(paths)} and "
            f"{np.size(labels)}"
        )
    if how != "one_per_class" and not (isinstance(how, float) and 0 < how < 1):
        raise ValueError(f"hold_out: how: expected a share in (0, 1) or one_per_class, got {how!r}")
    places: dict[str, int] = {}
    image = np.array([places.setdefault(path, len(places)) for path in paths])
    first = np.unique(image, return_index=True)[1]
    classes, label = np.unique(np.asarray(labels)[first], return_inverse=True)
    count = np.bincount(label)
    if how == "one_per_class":
        given = np.minimum(count - 1, 1)
    else:
        quota = np.where(count > 1, how * count, 0.0)
        turn = np.argsort(mix(seed, classes))
        start = float(mix(seed) >> np.uint64(11)) * 2.0**-53
        given = np.empty_like(count)
        # counted along the classes, so that both each class and all together are within one
        given[turn] = np.diff(np.floor(start + np.cumsum(quota[turn])), prepend=0)
        given = np.minimum(given, count - 1)
    hashes = [hashlib.blake2b(f"{seed} {path}".encode(), digest_size=8).digest() for path in places]
    order = np.lexsort((np.frombuffer(b"".join(hashes), ">u8"), label))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - (np.cumsum(count) - count)[label[order]]
    held: NDArray[np.bool_] = (rank < given[label])[image]
    return held
