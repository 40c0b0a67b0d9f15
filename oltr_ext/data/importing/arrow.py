"""Images in Arrow and Parquet files, as Hugging Face's datasets have them; by pyarrow alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oltr_ext._words import counted
from oltr_ext.data.importing.coco import Source
from oltr_ext.data.importing.records import Notes, Record, split_of, split_of_file
from oltr_ext.data.importing.table import LABELS, column_of, unused_labels

__all__ = ["read_arrow"]

IMAGES = ("image", "img", "picture", "photo", "jpg", "png")
ROWS = 64
PARQUET = (".parquet", ".pq")
SUFFIXES = (".parquet", ".arrow", ".pq")


def read_arrow(
    sources: Sequence[Source],
    notes: Notes,
    *,
    image: str | None = None,
    label: str | None = None,
    observation: str | None = None,
    group: str | None = None,
) -> Iterator[Record]:
    """A record for each row, file by file.

    An image is bytes, or a struct of `bytes` and `path` as `datasets.Image` is stored. A class is
    text, or a number: by the names of a `ClassLabel` where the files have them; -1 is none. A file
    that breaks off gives what it holds until there, and is named.

    Args:
        sources: a file; a folder of them, of which each is of the split that its name begins with
            (``train-00000-of-00002.parquet``), or else of that of its nearest folder that is called
            as one (``train/0000.parquet``); or a folder of `Dataset.save_to_disk` or
            `DatasetDict.save_to_disk`.
        image, label: columns; None takes the first of `IMAGES`, of the usual names of labels; of
            these one of names, if there is one, and a note names the others.
        observation, group: columns, if any.

    Raises:
        RuntimeError: pyarrow is not there. FileNotFoundError: no such file, or none in a folder.
        ValueError: a column that is not there (those that are get named), that holds no image, or
            that holds lists for labels.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise RuntimeError("from-arrow needs pyarrow: pip install oltr_ext[arrow]") from None
    files = [each for split, path in sources for each in _files(split, path)]
    for split, file, features in files:
        try:
            wanted = (image, label, observation, group)
            yield from _rows(file, split, features, wanted, notes)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            notes.broken.append((file.name, f"breaks off, or is damaged: {reason}"))


Found = tuple[str | None, Path, dict[str, Any]]
"""Split, file, and the features that a description beside it gives."""


def _files(split: str | None, path: Path) -> list[Found]:
    if path.is_file():
        return [(split, path, {})]
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder {path}")
    parts = _description(path / "dataset_dict.json").get("splits")
    if isinstance(parts, list):
        named = [str(part) for part in parts if str(part) == Path(str(part)).name]
        return [each for part in named for each in _files(split or split_of(part), path / part)]
    state = _description(path / "state.json")
    features = _description(path / "dataset_info.json").get("features") or {}
    if isinstance(state.get("_data_files"), list):
        names = [str(each.get("filename", "")) for each in state["_data_files"]]
        return [(split, path / Path(name).name, features) for name in names if name]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise FileNotFoundError(f"{path} has no file of {' or '.join(SUFFIXES)}")
    return [(split or split_of_file(file, path), file, features) for file in files]


def _description(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _rows(
    file: Path,
    split: str | None,
    features: dict[str, Any],
    wanted: tuple[str | None, ...],
    notes: Notes,
) -> Iterator[Record]:
    schema, batches = _opened(file)
    if wanted[1] is None:
        label, others = _label_of(schema, features)
        wanted = (wanted[0], label, *wanted[2:])
        if others and (line := unused_labels(file.name, others)) not in notes.said:
            notes.say(line)
    options = ("--image-column", "--label-column", "--observation-column", "--group-column")
    usual: tuple[tuple[str, ...], ...] = (IMAGES, LABELS, (), ())
    columns = [
        None if name is None and not known else
        schema.names[column_of(schema.names, name, known, option, str(file))]
        for name, known, option in zip(wanted, usual, options, strict=True)
    ]  # fmt: skip
    names = _class_names(schema, features, str(columns[1]))
    row = 0
    for batch in batches:
        values = [None if c is None else batch.column(schema.names.index(c)) for c in columns]
        for n in range(batch.num_rows):
            picture, label, seen, group = (
                None if column is None else column[n].as_py() for column in values
            )
            name = f"{file.name}[{row}]"
            row += 1
            yield Record(
                name,
                _label(label, names, name),
                _bytes(picture, file, columns[0]),
                None if seen is None else str(seen),
                None if group is None else str(group),
                split,
            )


def _opened(file: Path) -> tuple[Any, Iterator[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix in PARQUET:
        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, parquet.iter_batches(batch_size=ROWS)
    source = pa.memory_map(str(file))
    try:
        reader = pa.ipc.open_stream(source)  # what save_to_disk writes
        return reader.schema, (part for b in reader for part in _sliced(b))
    except pa.ArrowInvalid:
        source.seek(0)
        whole = pa.ipc.open_file(source)
        every = (whole.get_batch(n) for n in range(whole.num_record_batches))
        return whole.schema, (part for b in every for part in _sliced(b))


def _sliced(batch: Any) -> Iterator[Any]:
    for begin in range(0, batch.num_rows, ROWS):
        yield batch.slice(begin, ROWS)


def _class_names(schema: Any, features: dict[str, Any], column: str) -> list[str] | None:
    kept = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for given in (features, kept.get("info", {}).get("features") or {}):
        names = given.get(column, {}).get("names") if isinstance(given.get(column), dict) else None
        if isinstance(names, list):
            return [str(name) for name in names]
    return None


def _label_of(schema: Any, features: dict[str, Any]) -> tuple[str | None, list[str]]:
    """The column of `LABELS` to take where there are several, and the others."""
    import pyarrow.types as types

    lower = [name.casefold() for name in schema.names]
    known = [schema.names[lower.index(each)] for each in LABELS if lower.count(each) == 1]
    if len(known) < 2:
        return None, []

    def number(column: str) -> bool:
        kind = schema.field(column).type
        plain = types.is_integer(kind) or types.is_floating(kind)
        return plain and _class_names(schema, features, column) is None

    best = min(known, key=number)
    return best, [each for each in known if each != best]


def _label(value: Any, names: list[str] | None, row: str) -> str | None:
    if isinstance(value, list | dict):
        kind = "lists" if isinstance(value, list) else "structs"
        raise ValueError(f"{row}: label holds {kind}; expected one class an image")
    if value is None or value == -1 or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            there = counted(len(names), "class name")
            raise ValueError(f"{row}: label {value}, where the file has {there}")
        return names[value]
    return str(value)


def _bytes(value: Any, file: Path, column: str | None) -> bytes | Path:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value:
        return file.parent / value
    if value is None or isinstance(value, bytes):
        return value or b""
    raise ValueError(
        f"{file}: column {column} holds {type(value).__name__}; expected bytes of images, or "
        "structs of bytes and path"
    )
