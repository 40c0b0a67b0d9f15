"""The desk: images, what a run says of them, and what a person decides."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oltr_ext._defaults import own_defaults
from oltr_ext.data.decode import image_endings
from oltr_ext.desk.answers import Answers, Change, held, unheld
from oltr_ext.desk.folder import THUMBS, Contents, Folder
from oltr_ext.desk.meaning import Conflict, meaning, placed, version_of
from oltr_ext.desk.state import Event, Refused, replay
from oltr_ext.desk.store import Store
from oltr_ext.desk.thumbs import Thumbs
from oltr_ext.engine.checkpoint import CheckpointError
from oltr_ext.engine.lock import BusyError
from oltr_ext.serve.discover_parts import embedded, split
from oltr_ext.serve.enroll import ChangedError, editing, refresh, restore
from oltr_ext.serve.trained import Trained

__all__ = ["FILE", "Desk", "Progress"]

FILE = "desk.sqlite"
WAIT = 5.0
"""Seconds to wait for another process that changes the classes of the run."""


@dataclass
class Progress:
    """How far the desk is, at its start.

    Attributes:
        phase: ``reading``, ``embedding``, ``grouping``, ``ready`` or ``failed``.
        done, total: images; total 0 as long as it is not known.
        words: what failed.
    """

    phase: str = "reading"
    done: int = 0
    total: int = 0
    words: str = ""


class Desk:
    """One for each folder of decisions; threads may call any method.

    Args:
        trained: the run, whose classes change. folder: the images.
        out: folder of the decisions, of what was embedded, and of small pictures.
        nearest: how many known classes to name for a group.

    Raises:
        ValueError: decisions of another make in `out`.
    """

    def __init__(self, trained: Trained, folder: Folder, out: Path, *, nearest: int = 3) -> None:
        self.trained, self.folder, self.out, self.nearest = trained, folder, out, nearest
        self.store = Store(out / FILE)
        self.thumbs = Thumbs(out / THUMBS, folder)
        self.log = replay(self.store.events())
        self.lock = threading.RLock()
        self.progress = Progress()
        self.contents = Contents()
        self.bad: list[tuple[str, str]] = []
        self.answers: Answers | None = None
        self.trouble = ""
        self.stamp = 0
        """Counts whatever changes what is shown, also what is no entry of the log."""
        self._between: dict[str, tuple[int, Any]] = {}
        self._file = self._signature()

    def between(self, key: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once between two changes of the stamp; under the lock."""
        kept = self._between.get(key)
        if kept is None or kept[0] != self.stamp:
            kept = self._between[key] = (self.stamp, make())
        return kept[1]

    def close(self) -> None:
        with self.lock:
            self.store.close()

    # --- start ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read, embed and group; what a killed call has embedded is not asked again."""
        try:
            self._prepare()
        except Exception as error:  # whoever looks at the page is told
            self.progress = Progress("failed", words=str(error) or type(error).__name__)
            raise

    @own_defaults()
    def _prepare(self) -> None:
        def step(count: int) -> None:
            self.progress.done += count

        contents = self.folder.read(image_endings(), self.store.files(), step)
        self.store.remember(contents.files.items())
        images = list(contents.paths)
        self.progress = Progress("embedding", total=len(images))
        files = [self.folder.root / contents.paths[image][0] for image in images]
        parts = list(split(files, lambda line: None))
        whole, _, where = embedded(self.trained, parts, self.out, step=step)
        rows = [part.first + place for part, place in where]
        bad = list(contents.bad)
        unread = np.setdiff1d(np.arange(len(images)), rows).tolist()
        for row, line in zip(unread, whole.bad, strict=True):  # both in order of the images
            why = line.replace(f"{self.folder.root}{os.sep}", "")
            bad += [(path, why) for path in contents.paths[images[row]]]
        self.progress = Progress("grouping", len(rows), len(images))
        answers = Answers(self.trained, [images[n] for n in rows], whole.features, whole.pixels)
        with self.lock:
            self.contents, self.bad, self.answers = contents, bad, answers
            self._reconcile()
            self._find()
            self.progress = Progress("ready", len(rows), len(images))
            self.stamp += 1

    def ready(self) -> Answers:
        """Raises Refused before all images are embedded."""
        if self.answers is None or self.progress.phase != "ready":
            raise Refused("the images are still being looked at")
        return self.answers

    # --- decisions ------------------------------------------------------------------------------

    def decide(self, asked: Mapping[str, Any]) -> int:
        """Take a decision about what the page showed at a version; the version after it.

        Args:
            asked: see `meaning`.

        Raises:
            Conflict: others decided about the same since. Refused: it cannot be.
        """
        with self.lock:
            answers = self.ready()
            self.notice()
            kind, said = meaning(asked, self.log, answers)
            self._append(kind, said)
            return self.log.version

    def undo(self, seen: object) -> int:
        """Take back the last decision.

        Raises:
            Conflict: anything was decided since. Refused: there is none; an enrolment in a model
                whose classes were changed since.
        """
        return self._back(seen, "undo", self.log.done)

    def redo(self, seen: object) -> int:
        """Take the last decision again that was taken back; see `undo`."""
        return self._back(seen, "redo", self.log.undone)

    def enroll(self, seen: object) -> int:
        """Let the model have the classes that groups are named as, and ask it of all images anew.

        Raises:
            Conflict: anything was decided since. Refused: nothing to do; a head that cannot take
                classes in; another process changes them.
        """
        with self.lock:
            answers = self.ready()
            self.notice()
            self._nothing_since(seen)
            with self._writing():
                wanted, ours = self._wanted(), self.log.state.enrolled
                plan = answers.plan(wanted, ours)
                if not plan:
                    raise Refused("the model has all that is named; name a group first")
                before, old = held(self.trained.enrolment)
                answers.carry_out(plan, wanted, ours)
                after, new = held(self.trained.enrolment)
                known = answers.trained_names
                classes = {name: i for name, i in wanted.items() if name not in known}
                about = [image for images in classes.values() for image in images]
                state = self.log.state
                said = {
                    "images": about,
                    "groups": sorted({state.place[image] for image in about}),
                    "classes": classes,
                    "before": before,
                    "after": after,
                    "changes": answers.ask(),
                }
                self._append("enroll", said, {before: old, after: new})
            self._written()
            return self.log.version

    def plan(self) -> dict[str, int]:
        """How many images `enroll` would give to each class, negative for one that goes."""
        answers = self.ready()
        plan = answers.plan(self._wanted(), self.log.state.enrolled)
        named = self.log.state.named()
        counts = {name: len(images) for name, images in {**plan.new, **plan.more}.items()}
        counts |= {name: len(named.get(name, ())) for name in plan.anew}
        return {**counts, **dict.fromkeys(plan.gone, -1)}

    def _wanted(self) -> dict[str, list[str]]:
        """Images that are here, by the name of their groups."""
        row = self.ready().row
        named = self.log.state.named()
        found = {name: [i for i in images if i in row] for name, images in named.items()}
        return {name: images for name, images in found.items() if images}

    # --- order ----------------------------------------------------------------------------------

    def _nothing_since(self, seen: object) -> None:
        since = [e for e in self.log.events[version_of(seen, self.log) :] if e.kind != "found"]
        if since:
            raise Conflict(f"meanwhile another decision was taken ({since[-1].kind}): look again")

    def _append(
        self, kind: str, said: Mapping[str, Any], models: Mapping[str, bytes] | None = None
    ) -> Event:
        event = self.store.append(kind, said, after=self.log.version, models=models)
        self.log.take(event)
        self.stamp += 1
        return event

    def _back(self, seen: object, kind: str, stack: Sequence[int]) -> int:
        with self.lock:
            self.ready()
            self.notice()
            self._nothing_since(seen)
            if not stack:
                raise Refused(f"there is nothing to {kind}")
            of = self.log[stack[-1]]
            if of.kind != "enroll":
                self._append(kind, {"of": of.id})
                return self.log.version
            return self._model_back(kind, of)

    # --- the model ------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Change the model, which is written at the end; before that the log says so."""
        version = self.log.version
        try:
            with editing(self.trained, wait=WAIT):
                yield
        except BaseException as error:
            self._unwritten(version)
            if isinstance(error, BusyError | ChangedError | CheckpointError):
                raise Refused(str(error)) from None
            if isinstance(error, ValueError | OSError) and not isinstance(error, Refused):
                raise Refused(f"the model stays as it was: {error}") from None
            raise

    def _unwritten(self, version: int) -> None:
        """Take back an entry whose model could not be written, and what is in memory."""
        if self.log.version > version:
            event = self.log.events[-1]
            undo = event.kind in ("enroll", "redo")
            of = event.id if event.kind == "enroll" else event.said["of"]
            self._append("undo" if undo else "redo", {"of": of})
            self.store.written = self.log.version
        if self.trained.enrolment is not self.trained.kept:
            with own_defaults():
                restore(self.trained, self.trained.kept)
                self.trained.enrolment = self.trained.kept
        if self.answers is not None:
            self.answers.ask()

    def _written(self) -> None:
        self.store.written = self.log.version
        self._file = self._signature()
        self._find()

    def _model_back(self, kind: str, of: Event) -> int:
        answers = self.ready()
        there, back = ("after", "before")[:: 1 if kind == "undo" else -1]
        with self._writing():
            if held(self.trained.enrolment)[0] != of.said[there]:
                raise Refused("the model's classes were changed elsewhere since")
            restore(self.trained, unheld(self.store.model(of.said[back])))
            self._append(kind, {"of": of.id, "changes": answers.ask()})
        self._written()
        return self.log.version

    def _expected(self) -> tuple[Event, str, str] | None:
        """The last entry that says what classes the model has: them, and those before."""
        for event in reversed(self.log.events):
            of = self.log[event.said["of"]] if event.kind in ("undo", "redo") else event
            if of.kind == "enroll":
                before, after = of.said["before"], of.said["after"]
                return (event, before, after) if event.kind == "undo" else (event, after, before)
            if of.kind == "outside":
                return event, of.said["after"], of.said["after"]
        return None

    def _reconcile(self) -> None:
        """At the start: the model as the log has it, or the log as the model is."""
        expected = self._expected()
        if expected is None:
            return
        event, digest, before = expected
        now = held(self.trained.enrolment)[0]
        if now == before != digest and self.store.written < event.id:  # a kill came between
            with self._writing():
                restore(self.trained, unheld(self.store.model(digest)))
            self._answers().ask()
        elif now != digest:
            self._outside([])
        self.store.written = self.log.version

    def _answers(self) -> Answers:
        assert self.answers is not None
        return self.answers

    def notice(self) -> None:
        """Take up what others have changed in the run's classes."""
        with self.lock:
            now = self._signature()
            if now == self._file or self.progress.phase != "ready":
                return
            before = held(self.trained.enrolment)[0]
            try:
                refresh(self.trained)
            except (ChangedError, CheckpointError, OSError) as error:
                self.trouble = f"{error}: start the desk again"
                self.stamp += 1
            else:
                self.trouble = ""
                changes = self._answers().ask()
                if held(self.trained.enrolment)[0] != before:
                    self._outside(changes)
                    self._find()
            self._file = now

    def _outside(self, changes: list[Change]) -> None:
        digest, blob = held(self.trained.enrolment)
        said = {"images": [], "groups": [], "after": digest, "changes": changes}
        self._append("outside", said, {digest: blob})

    def _find(self) -> None:
        """Put what is unknown and has no place into groups."""
        answers, place = self._answers(), self.log.state.place
        rows = zip(answers.images, answers.label, strict=True)
        fresh = [image for image, label in rows if label is None and image not in place]
        if fresh:
            groups = placed(answers.group(fresh), self.log)
            self._append("found", {"images": [], "groups": [], "placed": groups})

    def _signature(self) -> tuple[int, ...]:
        try:
            at = os.stat(self.trained.path)
        except OSError:
            return ()
        return at.st_ino, at.st_size, at.st_mtime_ns
