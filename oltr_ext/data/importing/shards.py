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
from oltr_ext.data.importing.records import NO_CLASS, Notes, Record, some, split_of_file

__all__ = ["read_shards"]

LABELS = ("cls", "label", "txt", "json")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LARGEST = 1 << 30
BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, LZMAError)


def read_shards(
    sources: Sequence[Source],
    notes: Notes,
    *,
    label: str | None = None,
    label_key: str = "label",
    observation: str | None = None,
    group: str | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Record]:
    """A record for each sample that has an image, shard by shard.

    A shard that breaks off gives what it holds until there, and is named. What the first sample
    without a class has is said.

    Args:
        sources: a shard, or a folder of them, each of the split that `split_of_file` says.
        label: suffix of the member that has the class; None takes the first of `LABELS`.
        label_key: of a member in JSON.
        observation, group: keys of the member in JSON.
        names: of classes that are numbers from 0.

    Raises:
        FileNotFoundError: no such shard, or none in a folder.
        ValueError: a number beyond the names.
    """
    suffixes = {suffix[1:] for suffix in image_endings()}
    missing = [str(path) for _, path in sources if not path.exists()]
    if missing:
        raise FileNotFoundError(f"no file {', '.join(missing)}")
    files = [each for split, path in sources for each in _shards(split, path)]
    lacking = None
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
            if word is None and lacking is None:
                inside = f", in its JSON {some(about)}" if about else ""
                lacking = f"{name} has no class: there are {some(parts)}{inside}"
                notes.say(f"{lacking}: see --label-part and --label-key")
            if names is not None and word is not None and word != NO_CLASS:
                if not word.isdecimal() or int(word) >= len(names):
                    raise ValueError(
                        f"{name}: expected a class from 0 to {len(names) - 1}, got {word}"
                    )
                word = names[int(word)]
            told = [about.get(k) if k else None for k in (observation, group)]
            seen, other = (None if value is None else str(value) for value in told)
            yield Record(f"{name}.{images[0]}", word, parts[images[0]], seen, other, split)


def _shards(split: str | None, path: Path) -> list[Source]:
    if not path.is_dir():
        return [(split, path)]
    files = sorted(file for file in path.rglob("*") if file.name.endswith(TARS) and file.is_file())
    if not files:
        raise FileNotFoundError(f"{path} has no file of {', '.join(TARS)}")
    return [(split or split_of_file(file, path), file) for file in files]


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
