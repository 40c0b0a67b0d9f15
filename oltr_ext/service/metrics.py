"""Counters and histograms, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        found, total = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum!r}", f"{name}_count {total}"]


class Metrics:
    """What the service counts, from any thread.

    Args:
        gauges: what to ask at each reading: name, without prefix, to help and value.
    """

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]]) -> None:
        self._lock, self._gauges = threading.Lock(), gauges
        self._requests: dict[tuple[str, int], int] = {}
        self._images = {"answered": 0, "unknown": 0, "unreadable": 0, "failed": 0}
        self._counts = {"rejected": 0, "reloads": 0, "reload_failures": 0}
        self._seconds, self._sizes, self._model = (
            Histogram(SECONDS),
            Histogram(SIZES),
            Histogram(SECONDS),
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """One that was answered; those to ``/predict`` are timed."""
        with self._lock:
            self._requests[route, status] = self._requests.get((route, status), 0) + 1
            if route == "/predict":
                self._seconds.add(seconds)

    def image(self, outcome: str, count: int = 1) -> None:
        with self._lock:
            self._images[outcome] += count

    def count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def batch(self, size: int, seconds: float) -> None:
        with self._lock:
            self._sizes.add(size)
            self._model.add(seconds)

    def text(self) -> str:
        found: list[str] = []

        def put(name: str, kind: str, about: str, lines: list[str]) -> None:
            found.extend([f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines])

        with self._lock:
            name = "oltr_requests_total"
            rows = sorted(self._requests.items())
            lines = [f'{name}{{route="{r}",status="{s}"}} {n}' for (r, s), n in rows]
            put(name, "counter", "Requests, by route and status.", lines)
            name = "oltr_images_total"
            lines = [f'{name}{{outcome="{o}"}} {n}' for o, n in self._images.items()]
            put(name, "counter", "Images and rows of features, by what became of them.", lines)
            for what, about in (
                ("rejected", "Requests that were refused as there was no room."),
                ("reloads", "Times that the model was read again."),
                ("reload_failures", "Times that it could not be, and the one before stayed."),
            ):
                name = f"oltr_{what}_total"
                put(name, "counter", about, [f"{name} {self._counts[what]}"])
            for name, histogram, about in (
                ("oltr_request_seconds", self._seconds, "From a request to its answer."),
                ("oltr_batch_images", self._sizes, "Images of a batch."),
                ("oltr_batch_seconds", self._model, "Seconds of the model for a batch."),
            ):
                put(name, "histogram", about, histogram.lines(name))
        for what, (about, value) in self._gauges.items():
            put(f"oltr_{what}", "gauge", about, [f"oltr_{what} {value()}"])
        return "\n".join(found) + "\n"
