"""Who takes part in a run of several processes, and where each was last seen.

A collective that fails says that a peer is gone, never which. So every process leaves a note in the
store in which torchrun had them meet, and renews it: its machine and number, what it is doing, and
that it is there. Whoever misses another looks for the process itself where that is on the same
machine, and elsewhere for a note that is renewed no more.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["Attendance", "in_collective"]

BEAT = 2.0
"""Seconds between two notes, or fewer: a twentieth of what processes wait for each other."""
SILENT = 3
"""Beats without a new note, after which a process is silent."""
HELPERS = ("oltr_ext._", "oltr_ext.engine.distributed")
"""Modules that say nothing of what a process was doing: who called them does."""

Note = Mapping[str, Any]
T = TypeVar("T")


class Attendance:
    """This process's notes, and what it finds in those of the others.

    Args:
        store: in which the processes meet.
        rank, world: of this process, and how many there are.
        patience: seconds for which processes wait for each other.
    """

    def __init__(self, store: dist.Store, rank: int, world: int, patience: float) -> None:
        self._rank, self._world, self._patience = rank, world, patience
        self._beat = min(BEAT, patience / 20)
        # connections of their own: who waits in one keeps all others out of it
        self._writes, self._reads = store.clone(), store.clone()
        for own in (self._writes, self._reads):
            own.set_timeout(timedelta(seconds=patience))
        self._note = {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid()}
        self._beats, self._over = 0, threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._keep_writing, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more notes."""
        self._over.set()
        self._thread.join(self._beat)

    def first_to_fail(self) -> bool:
        """Whether no other failed before. The others wait until the first has had its time to look
        around: whoever started them ends all as soon as it sees one end."""
        self.close()

        def ask() -> bool:
            first = bool(self._reads.add(_key("failed"), 1) == 1)
            self._write(left=True)
            if not first:
                self._reads.wait([_key("told")], timedelta(seconds=self._look))
            return first

        # a store may go down with the process that held it, or be out of reach: each then tells
        return _within(2 * self._look, ask, True)

    def told(self) -> None:
        """Let the others go."""
        _within(self._look, lambda: self._reads.set(_key("told"), "1"), None)

    def missing(self, error: BaseException, *, wait: bool = True) -> str | None:
        """Who is gone, or late where an error says that one was waited for in vain, in words; None
        where nobody is found to be.

        Args:
            wait: for as long as a silence takes; False sees who ended on this machine alone.
        """
        waited = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        return _within(2 * self._look, lambda: self._missing(waited, wait), None)

    @property
    def _look(self) -> float:
        return 2 * SILENT * self._beat

    def _missing(self, waited: bool, wait: bool) -> str | None:
        before = self._read()
        absent = [r for r, note in before.items() if note is None]
        if absent and waited:
            return f"{self._named(absent, before)} did not join within {self._patience:g} s"
        for _ in range(SILENT):
            gone = [r for r, note in before.items() if note and self._ended(note)]
            if gone:
                return f"{self._named(gone, before)} ended without a word"
            if not wait:
                return None
            time.sleep(self._beat)  # connections end before the process does
        after = self._read()
        there = {r: note for r, note in after.items() if note and not note["left"]}
        beats = {r: note["beats"] for r, note in before.items() if note}
        silent = [r for r, note in there.items() if note["beats"] == beats.get(r)]
        if silent:
            return f"{self._named(silent, after)} went silent"
        late = [r for r, note in there.items() if not note["waits"]]
        if late and waited:
            return f"{self._named(late, after)} did not come within {self._patience:g} s"
        return None

    def _read(self) -> dict[int, Note | None]:
        """Of the others."""
        others = (r for r in range(self._world) if r != self._rank)
        return {r: self._note_of(r) for r in others}

    def _note_of(self, rank: int) -> Note | None:
        key = _key(str(rank))
        return json.loads(self._reads.get(key)) if self._reads.check([key]) else None

    def _ended(self, note: Note) -> bool:
        here = note["machine"] == self._note["machine"]
        return here and not note["left"] and not _runs(note["pid"])

    def _named(self, ranks: Sequence[int], notes: Mapping[int, Note | None]) -> str:
        kind = "process" if len(ranks) == 1 else "processes"
        words = [f"{kind} {', '.join(map(str, ranks))} of {self._world}"]
        for note in (notes[r] for r in ranks):
            if note is not None:
                words.append(f"pid {note['pid']} on {note['host']}, last seen in {note['at']}")
        return words[0] if len(words) == 1 else f"{words[0]} ({'; '.join(words[1:])})"

    def _keep_writing(self) -> None:
        with suppress(RuntimeError):  # the store is gone, and no one reads there
            while not self._over.wait(self._beat):
                self._write()

    def _write(self, *, left: bool = False) -> None:
        self._beats += 1
        seen = {"beats": self._beats, "left": left, **_where()}
        self._writes.set(_key(str(self._rank)), json.dumps({**self._note, **seen}))


def in_collective(error: BaseException) -> bool:
    """Whether an error came from where processes meet, and so may be another's fault."""
    trace = error.__traceback__
    while trace is not None:
        if _meets(trace.tb_frame):
            return True
        trace = trace.tb_next
    return False


def _key(name: str) -> str:
    return f"oltr_ext/attendance/{name}"


def _where() -> dict[str, Any]:
    """What the main thread is doing, and whether it waits for others there."""
    frames = list(_frames(sys._current_frames().get(threading.main_thread().ident or 0)))
    names = (
        f"{module.removeprefix('oltr_ext.')}.{frame.f_code.co_name}"
        for frame in frames
        if (module := _module(frame)).startswith("oltr_ext.")
        and not module.startswith((*HELPERS, __name__))
        and not frame.f_code.co_name.startswith("<")
    )
    return {"at": next(names, "the start"), "waits": any(map(_meets, frames))}


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _meets(frame: FrameType) -> bool:
    return _module(frame).startswith("torch.distributed")


def _machine() -> str:
    """What numbers of processes are unique in: machines and containers may have one host name."""
    parts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:  # no Linux
            continue
    return " ".join(parts)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")  # who ended and was not asked for yet is there still
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except PermissionError:  # another user's
        return True
    except OSError:
        return False


def _within(seconds: float, call: Callable[[], T], otherwise: T) -> T:
    """What a call gives, unless it fails or takes longer: a store whose machine is lost answers
    neither yes nor no."""
    found = [otherwise]

    def run() -> None:
        with suppress(RuntimeError):
            found[0] = call()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]
