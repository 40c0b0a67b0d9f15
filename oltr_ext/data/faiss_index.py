"""Embeddings to and from FAISS's indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["from_faiss", "to_faiss"]

ROWS = 65_536


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise RuntimeError("FAISS is not there: pip install faiss-cpu") from None
    return faiss


def to_faiss(
    features: ArrayLike, ids: ArrayLike | None = None, *, metric: Literal["l2", "cosine"] = "l2"
) -> Any:
    """An exact index of features, which `faiss.write_index` keeps.

    Args:
        features: (N, D) floats; a memory map, such as those of `read_embeddings`, is read in parts.
        ids: (N,) integers that a search answers with; None: places of the rows.
        metric: ``cosine`` holds the rows at length 1, and so must be what is asked for.

    Returns:
        `faiss.IndexFlat`, with ids in an `IndexIDMap`.

    Raises:
        RuntimeError: FAISS is not there. ValueError: other shapes, no such metric, or rows that are
            not finite.
    """
    faiss = _faiss()
    rows = np.asarray(features)
    if rows.ndim != 2 or 0 in rows.shape or rows.dtype.kind != "f":
        raise ValueError(
            f"to_faiss: expected features (N, D), floats, got {rows.shape} of {rows.dtype}"
        )
    if metric not in ("l2", "cosine"):
        raise ValueError(f"to_faiss: expected metric l2 or cosine, got {metric!r}")
    names = None if ids is None else np.asarray(ids)
    if names is not None and (names.shape != rows.shape[:1] or names.dtype.kind not in "iu"):
        raise ValueError(
            f"to_faiss: expected {len(rows)} integer ids, got {names.shape} of {names.dtype}"
        )
    flat = (faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP)(rows.shape[1])
    index = flat if names is None else faiss.IndexIDMap(flat)
    for begin in range(0, len(rows), ROWS):
        part = np.array(rows[begin : begin + ROWS], np.float32, order="C")
        if not np.isfinite(part).all():
            raise ValueError("to_faiss: expected finite features, got NaN or infinity")
        if metric == "cosine":
            faiss.normalize_L2(part)
        if names is None:
            index.add(part)
        else:
            index.add_with_ids(part, names[begin : begin + ROWS].astype(np.int64))
    return index


def from_faiss(index: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features (N, D) of an index, in the order they were added, and their ids (N,).

    Of an index that compresses them they are what it makes of them.

    Args:
        index: of FAISS, or the file of one.

    Raises:
        RuntimeError: FAISS is not there. ValueError: a file that is no index, or an index that does
            not give its vectors back.
    """
    faiss = _faiss()
    try:
        whole = faiss.read_index(str(index)) if isinstance(index, str | Path) else index
        held, ids = whole, np.arange(whole.ntotal)  # the whole one owns what it holds
        if isinstance(whole, faiss.IndexIDMap | faiss.IndexIDMap2):
            held, ids = whole.index, faiss.vector_to_array(whole.id_map).astype(np.int64)
        elif isinstance(whole, faiss.IndexIVF):
            whole.make_direct_map()
            if sorted(_listed(faiss, whole)) != ids.tolist():
                raise ValueError("from_faiss: expected ids from 0 on in an index of inverted lists")
        return np.asarray(held.reconstruct_n(0, held.ntotal), np.float32), ids
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"from_faiss: {type(index).__name__}: {reason}") from None


def _listed(faiss: Any, index: Any) -> list[int]:
    lists = index.invlists
    return [
        int(n)
        for k in range(lists.nlist)
        if lists.list_size(k)
        for n in faiss.rev_swig_ptr(lists.get_ids(k), lists.list_size(k))
    ]
