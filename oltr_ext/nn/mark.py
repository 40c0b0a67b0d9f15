"""Whether tensors that something was derived from are still what they were."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


def mark(tensors: Iterable[Tensor]) -> list[tuple[int, int, int]] | None:
    """Another one as soon as a tensor is another, lies elsewhere or was written in place.

    Not so for what is written through ``.data``, which leaves no trace, and only while the tensors
    live: keep them. None where torch does not say, as for those made in inference mode.
    """
    try:
        return [(id(t), t.data_ptr(), t._version) for t in tensors]
    except RuntimeError:
        return None
