"""How much is let in at once: what does not fit is refused at the door, and told when to return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

from oltr_ext._words import counted

__all__ = ["FullError", "Limits", "Room", "Seat"]


@dataclass(frozen=True)
class Limits:
    """Of a request, and of all that are being answered."""

    body: int = 32 << 20
    """Bytes of a request."""
    held: int = 256 << 20
    """Bytes of all requests that are being answered."""
    images: int = 64
    """Of a request; 256 rows of features count as one."""
    pixels: int = 50_000_000
    """Of an image, before it is decoded."""
    queue: int = 128
    """Images of all requests that are being answered."""
    seconds: float = 30.0
    """From a request to its answer."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < float("inf"):
                raise ValueError(f"limits.{name}: expected a positive number, got {value}")
        if Image.MAX_IMAGE_PIXELS is not None and self.pixels > 2 * Image.MAX_IMAGE_PIXELS:
            raise ValueError(
                f"limits.pixels: expected at most {2 * Image.MAX_IMAGE_PIXELS:,}, beyond which "
                f"Pillow opens no image, got {self.pixels:,}"
            )
        if self.queue < self.images:
            raise ValueError(
                f"limits.queue: expected at least the {counted(self.images, 'image')} of one "
                f"request, got {self.queue}"
            )
        if self.held < self.body:
            raise ValueError(
                f"limits.held: expected at least the {self.body} bytes of one request, got "
                f"{self.held}"
            )


class FullError(RuntimeError):
    """There is no room now."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"too much is asked at once; try again in {seconds} s")
        self.seconds = seconds


@dataclass
class Seat:
    """What one request takes."""

    room: Room
    images: int = 0
    held: int = 0

    def take(self, images: int = 0, held: int = 0) -> None:
        """More of it.

        Raises:
            FullError: it does not fit; nothing more is taken.
        """
        room = self.room
        fits = room.images + images <= room.limits.queue and room.held + held <= room.limits.held
        if not fits:
            raise FullError(room.returns_in())
        room.images, room.held = room.images + images, room.held + held
        self.images, self.held = self.images + images, self.held + held


class Room:
    """What all requests take; for one thread.

    Args:
        pace: seconds that an image takes at present.
    """

    def __init__(self, limits: Limits, pace: Callable[[], float]) -> None:
        self.limits, self.images, self.held, self._pace = limits, 0, 0, pace

    @contextmanager
    def seat(self) -> Iterator[Seat]:
        seat = Seat(self)
        try:
            yield seat
        finally:
            self.images, self.held = self.images - seat.images, self.held - seat.held

    def returns_in(self) -> int:
        """Whole seconds until what is inside will be answered."""
        return min(60, max(1, math.ceil(self.images * self._pace())))
