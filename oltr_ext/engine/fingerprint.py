"""Whether data are still those that a run began with."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from oltr_ext._words import counted
from oltr_ext.data import Embeddings, ImageList, TensorImages

__all__ = ["fingerprint_of", "what_changed"]


def fingerprint_of(images: ImageList | TensorImages | Embeddings) -> dict[str, Any]:
    """JSON-able: of list files it knows the paths, their labels and their order, not what is in
    the image files; of packs the pixels; of embeddings the checksum in their manifest.

    To be taken before images that cannot be read are left out.
    """
    content, lines = None, None
    if isinstance(images, ImageList):
        pairs = zip(images.paths, images.labels.tolist(), strict=True)
        content, lines = _digest(images.paths), _digest(sorted(f"{p} {y}" for p, y in pairs))
    elif isinstance(images, Embeddings):
        content = images.checksum
    else:
        content = f"{zlib.crc32(images.images.contiguous().numpy().data):08x}"
    return {
        "rows": len(images),
        "images": content,
        "labels": f"{zlib.crc32(images.labels.tobytes()):08x}",
        "any_order": lines,
    }


def what_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first difference between the fingerprints of the parts, in words; None where there is
    none.

    What one of the two does not know (embeddings from before their manifest had checksums of
    features) is not compared.
    """
    for part in dict.fromkeys([*old, *new]):
        before, now = old.get(part, {}), new.get(part, {})
        rows, others = now.get("rows", 0), before.get("rows", 0)
        if rows != others:
            return f"{part} has {counted(rows, 'image')}, and had {others:,}"
        differs = [
            key
            for key in ("images", "labels")
            if None not in (before[key], now[key]) and before[key] != now[key]
        ]
        if differs and before["any_order"] is not None and before["any_order"] == now["any_order"]:
            return f"{part} has its images in another order"
        if differs:
            return f"{part} has other {' and '.join(differs)}"
    return None


def _digest(lines: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
