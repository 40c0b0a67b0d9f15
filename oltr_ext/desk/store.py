"""The log of decisions in SQLite: whole after a kill, for one writer."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from oltr_ext.desk.state import Event

__all__ = ["KnownFile", "Store"]

FORMAT = 1
SCHEMA = """
CREATE TABLE events (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, kind TEXT NOT NULL, said TEXT NOT NULL);
CREATE TABLE files (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, changed INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE models (digest TEXT PRIMARY KEY, held BLOB NOT NULL);
CREATE TABLE written (one INTEGER PRIMARY KEY CHECK (one = 1), event INTEGER NOT NULL);
"""


class KnownFile(NamedTuple):
    """A file as it was when its contents were hashed."""

    size: int
    changed: int  # ns
    hash: str


class Store:
    """A file of decisions. What a call has returned from is on the disk.

    Threads take turns by a lock of the caller's; processes by one on the folder.

    Raises:
        ValueError: a file of another make.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            made = self._db.execute("PRAGMA user_version").fetchone()[0]
            if made == 0 and not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                self._db.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {FORMAT};COMMIT;")
            elif made != FORMAT:
                raise ValueError(f"{path}: expected decisions of format {FORMAT}, got {made}")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ValueError(f"{path} cannot be read as decisions: {error}") from None
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    def events(self) -> list[Event]:
        rows = self._db.execute("SELECT id, time, kind, said FROM events ORDER BY id")
        return [Event(id, time, kind, json.loads(said)) for id, time, kind, said in rows]

    def append(
        self,
        kind: str,
        said: Mapping[str, Any],
        *,
        after: int,
        models: Mapping[str, bytes] | None = None,
    ) -> Event:
        """Keep what follows entry `after`, with the models that it names, or nothing of both.

        Raises:
            sqlite3.IntegrityError: something else follows that one.
        """
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        event = Event(after + 1, now, kind, said)
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for digest, held in (models or {}).items():
                self._db.execute("INSERT OR IGNORE INTO models VALUES (?, ?)", (digest, held))
            self._db.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?)",
                (event.id, event.time, kind, json.dumps(said, ensure_ascii=True)),
            )
        return event

    def model(self, digest: str) -> bytes:
        """Raises KeyError where there is none."""
        row = self._db.execute("SELECT held FROM models WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise KeyError(digest)
        return bytes(row[0])

    @property
    def written(self) -> int:
        """The last entry whose model is known to be in the run's file; 0 for none."""
        row = self._db.execute("SELECT event FROM written").fetchone()
        return 0 if row is None else int(row[0])

    @written.setter
    def written(self, event: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO written VALUES (1, ?)", (event,))

    def files(self) -> dict[str, KnownFile]:
        """By path in the folder."""
        rows = self._db.execute("SELECT path, size, changed, hash FROM files")
        return {os.fsdecode(path): KnownFile(*rest) for path, *rest in rows}

    def remember(self, files: Iterable[tuple[str, KnownFile]]) -> None:
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
                [(os.fsencode(path), *known) for path, known in files],
            )
