"""One thread that answers what many requests ask, together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batcher", "ModelError"]

Q = TypeVar("Q")
A = TypeVar("A")
log = logging.getLogger("oltr_ext.service")


class ModelError(RuntimeError):
    """The model failed on one question; the log has the cause."""


class Batcher(Generic[Q, A]):
    """Answers questions in batches: as soon as `size` wait, or the first has for `wait` seconds.

    Where answering a batch fails each of its questions is asked alone, so that one which cannot be
    answered fails by itself, with a `ModelError`. How many wait is for the caller to bound.

    Args:
        answer: the answers to some questions, in order; called in the one thread.
        seen: gets the number of questions of each batch, and the seconds that it took.

    Attributes:
        pace: seconds that a question took of late.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Q]], Sequence[A]],
        *,
        size: int,
        wait: float,
        seen: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._answer, self._size, self._wait, self._seen = answer, size, wait, seen
        self._asked: deque[tuple[Q, asyncio.Future[A], float]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="oltr-model", daemon=True)
        self.pace = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Answer what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __len__(self) -> int:
        """Questions that wait."""
        return len(self._asked)

    def put(self, question: Q, future: asyncio.Future[A]) -> None:
        """From any thread; a future that is cancelled meanwhile is passed over."""
        with self._changed:
            self._asked.append((question, future, time.monotonic()))
            if len(self._asked) == 1 or len(self._asked) >= self._size:
                self._changed.notify()

    def _run(self) -> None:
        while batch := self._next():
            batch = [each for each in batch if not each[1].cancelled()]
            if not batch:
                continue
            begin = time.monotonic()
            found = self._answers([question for question, *_ in batch])
            took = time.monotonic() - begin
            self.pace += (took / len(batch) - self.pace) * (0.2 if self.pace else 1)
            self._seen(len(batch), took)
            deliver([future for _, future, _ in batch], found)

    def _next(self) -> list[tuple[Q, asyncio.Future[A], float]]:
        """The next batch; none at the end."""
        with self._changed:
            while not self._asked and not self._closing:
                self._changed.wait()
            if self._asked:
                due = self._asked[0][2] + self._wait
                while len(self._asked) < self._size and not self._closing:
                    left = due - time.monotonic()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            return [self._asked.popleft() for _ in range(min(self._size, len(self._asked)))]

    def _answers(self, questions: Sequence[Q]) -> list[A | Exception]:
        try:
            found = list(self._answer(questions))
            if len(found) != len(questions):
                raise RuntimeError(f"{len(found)} answers to {len(questions)} questions")
            return [*found]
        except Exception:
            if len(questions) == 1:
                log.exception("the model failed on a question")
                return [ModelError("the model failed on this one")]
            log.warning("a batch of %d failed; each is asked alone", len(questions))
            return [self._answers([each])[0] for each in questions]


def deliver(futures: Sequence[asyncio.Future[A]], found: Sequence[A | Exception]) -> None:
    """Give answers to futures of one loop, from another thread."""

    def give() -> None:
        for future, each in zip(futures, found, strict=True):
            if future.done():  # cancelled
                continue
            if isinstance(each, Exception):
                future.set_exception(each)
            else:
                future.set_result(each)

    try:
        futures[0].get_loop().call_soon_threadsafe(give)
    except RuntimeError:  # the loop was closed under a forced exit
        log.warning("%d answers came when nobody was there any more", len(futures))
