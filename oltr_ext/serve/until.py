"""How a server that a person started ends."""

from __future__ import annotations

import signal
import socket
from typing import Any

__all__ = ["run_until_asked"]


def run_until_asked(server: Any, listening: socket.socket) -> None:
    """Run a `uvicorn.Server` until SIGTERM or Ctrl-C, which end it in order and are no error.

    Its own handlers raise the signal again when they leave, into an event loop that may or may not
    still look at it.
    """

    def end(number: int, frame: object) -> None:
        server.should_exit = True  # before its handlers are there, and after

    before = {each: signal.signal(each, end) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
