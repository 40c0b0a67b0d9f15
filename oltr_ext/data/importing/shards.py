"""Images in tar files, as WebDataset has them: members of one name up to the first dot are a
sample, `0001.jpg` with `0001.cls`. Nothing is unpacked under a name that an archive gives."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from lzma import LZMAError
from pathlib import Path
from typing import Any

from oltr_ext.data.decode import image_endings
from oltr_ext.data.importing.coco import Source
from oltr_ext.data.importing.records import Notes, Record

__all__ = ["read_shards"]

LABELS = ("cls", "label", "txt", "json")
LARGEST = 1 << 30
BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError)


def read_shards(
    files: Sequence[Source],
    notes: Notes,
    *,
    label: str | None = None,
    label_key: str = "label",
    observation: str | None = None,
    group: str | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Record]:
    """A record for each sample that has an image, shard by shard.

    A shard that breaks off gives what it holds until there, and is named.

    Args:
        label: suffix of the member that has the class; None takes the first of `LABELS`.
        label_key: of a member in JSON.
        observation, group: keys of the member in JSON.
        names: of classes that are numbers from 0.

    Raises:
        FileNotFoundError: no such shard. ValueError: a number beyond the names.
    """
    suffixes = {suffix[1:] for suffix in image_endings()}
    missing = [str(file) for _, file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"no file {', '.join(missing)}")
    for split, file in files:
        for key, parts in _samples(file, notes):
            images = [part for part in parts if part.rpartition(".")[2] in suffixes]
            name = f"{file.name}:{key}"
            if len(images) != 1:
                what = "several images" if images else "no image"
                notes.add(f"samples of {what}", name)
                continue
            about = _json(parts.get("json"), notes, name)
            word = _label(parts, about, label, label_key)
            if word is not None and names is not None:
                if not word.isdecimal() or int(word) >= len(names):
                    raise ValueError(
                        f"{name}: expected a class from 0 to {len(names) - 1}, got {word}"
                    )
                word = names[int(word)]
            told = [about.get(k) if k else None for k in (observation, group)]
            seen, other = (None if value is None else str(value) for value in told)
            yield Record(f"{name}.{images[0]}", word, parts[images[0]], seen, other, split)


def _samples(file: Path, notes: Notes) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Key, and bytes by suffix."""
    key, parts = "", dict[str, bytes]()
    try:
        with tarfile.open(file) as tar:
            for member in tar:
                name = f"{file.name}:{member.name}"
                if not member.isreg():
                    if not member.isdir():
                        notes.add("members that are no files (links, devices)", name)
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not stem or not suffix:
                    notes.add("members without a name or suffix", name)
                    continue
                if member.size > LARGEST:
                    notes.add("members of more than 1 GiB", name)
                    continue
                content = tar.extractfile(member)
                assert content is not None
                data = content.read()
                own = f"{folder}/{stem}" if folder else stem
                if own != key or suffix.lower() in parts:
                    if parts:
                        yield key, parts
                    key, parts = own, {}
                parts[suffix.lower()] = data
            # tarfile takes a file that ends between two members for whole
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                notes.broken.append((file.name, "breaks off, or is damaged: it has no end"))
    except BROKEN as error:
        notes.broken.append((file.name, f"breaks off, or is damaged: {error}"))
    if parts:
        yield key, parts


def _json(content: bytes | None, notes: Notes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        notes.add("members that are not JSON", name)
        return {}
    return found if isinstance(found, dict) else {}


def _label(
    parts: dict[str, bytes], about: dict[str, Any], part: str | None, key: str
) -> str | None:
    for each in LABELS if part is None else (part.lstrip(".").lower(),):
        if each.rpartition(".")[2] == "json":
            if about.get(key) is not None:
                return str(about[key])
        elif each in parts:
            return parts[each].decode("utf-8", "replace").strip() or None
    return None
