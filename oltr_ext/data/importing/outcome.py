"""The folder that an import makes: ours alone, and whole or unfinished."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oltr_ext._files import write_whole
from oltr_ext._tables import write_rows
from oltr_ext.data.folders import made_folder

__all__ = ["SEEN", "finish", "open_folder", "table"]

SEEN, DONE, BEGUN = ".seen.jsonl", "import.json", ".import.json.partial"


@contextmanager
def open_folder(out: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """See that a folder is ours to write to: missing, empty, or of the same import. A block that
    fails before its first image leaves no trace.

    An unfinished import of the same `source` may go on otherwise, as after a mistyped column: what
    it keeps of images is named by them.

    Raises:
        ValueError: it holds something else.
    """
    if (out / DONE).is_file():
        if _about(out / DONE) != about:
            raise ValueError(f"{out} holds another import: choose another folder for --out")
        yield
        return
    if (out / BEGUN).is_file():  # what was looked at is good for any plan
        if _kept(_about(out / BEGUN) or {}) != _kept(about):
            raise ValueError(
                f"{out} holds the unfinished import of something else: remove it, or choose "
                "another folder for --out"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there and not empty: choose another folder for --out")
    with made_folder(out):
        write_whole(out / BEGUN, json.dumps({"about": about}).encode())
        try:
            yield
        except (ValueError, OSError):
            if [path.name for path in out.iterdir()] == [BEGUN]:
                (out / BEGUN).unlink()
            raise


def _kept(about: Mapping[str, Any]) -> Any:
    """What decides which images a folder gets."""
    if "source" in about:
        return about.get("read"), about["source"]
    return {**about, "plan": None}


def _about(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))["about"]
    except (ValueError, KeyError, TypeError):
        return None


def finish(folder: Path, about: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write the texts of an import, each whole or not at all, and then that it is done.

    Raises:
        ValueError: it was done, and some would be others now; they stay as they are.
    """
    if (folder / DONE).is_file():
        (folder / SEEN).unlink(missing_ok=True)
        other = [
            name
            for name, text in files.items()
            if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
        ]
        if other:
            raise ValueError(
                f"{folder} is finished, and {', '.join(other)} would be others now: choose another "
                "folder for --out"
            )
        return
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    write_whole(folder / BEGUN, json.dumps({"about": about, "files": sorted(files)}).encode())
    os.replace(folder / BEGUN, folder / DONE)
    (folder / SEEN).unlink(missing_ok=True)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    write_rows(text, [columns])
    write_rows(text, rows)
    return text.getvalue()
