"""A service from its start to its end."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import uvicorn

from oltr_ext._words import counted
from oltr_ext.serve.until import run_until_asked
from oltr_ext.service.app import Service, make_app
from oltr_ext.service.model import Asked, Question, Watched, answer
from oltr_ext.service.room import Limits

__all__ = ["serve"]

LOOPBACK = ["localhost", "127.0.0.1", "::1", "[::1]"]


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    batch: int = 32,
    wait: float = 0.005,
    limits: Limits | None = None,
    token: str | None = None,
    device: str = "auto",
    access_log: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Answer over HTTP until SIGTERM or SIGINT, and then what was asked before.

    Args:
        run: folder of a run, or its model.
        host: an address to listen on; any but loopback's is told by a warning.
        port: 0 takes a free one, which is said.
        batch: images of a batch at most. wait: seconds that the first of them waits for others.
        token: of those who may change classes, 16 characters at least; None: nobody may.
        access_log: a line for each request.
        say: gets a line of text now and then.

    Raises:
        CheckpointError: no such run. OSError: the address is taken, or none of this machine's.
        ValueError: a limit or token that does not hold.
    """
    watched = Watched(Path(run), device)
    limits = limits or Limits()
    service = Service(watched, limits=limits, batch=batch, wait=wait, token=token)
    _warm(watched)
    listening = _listening(host, port)
    address, port = listening.getsockname()[:2]
    local = ipaddress.ip_address(address).is_loopback
    app = make_app(service, hosts=LOOPBACK if local else None)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level=logging.INFO if access_log else logging.WARNING,
            access_log=access_log,
            server_header=False,
            timeout_graceful_shutdown=int(limits.seconds) + 1,
        )
    )
    trained = watched.served.trained
    shown = f"[{address}]" if ":" in address else address
    say(
        f"http://{shown}:{port} answers by {trained.path}, "
        f"{counted(len(trained.roster.living), 'class')}"
    )
    if not local:
        say(
            f"warning: {shown} may be reached from other machines, and whoever reaches it is "
            "answered, unencrypted; put a proxy with TLS and passwords before it"
        )

    run_until_asked(server, listening)
    say("all that was asked is answered")


def _warm(watched: Watched) -> None:
    """Ask once, so that a model that cannot answer is known before it is served."""
    served = watched.served
    asked = [Asked(served, ["row"], Question(), rows=np.zeros((1, served.width), np.float32))]
    if served.images is not None:
        pixels = torch.zeros(served.images[1], dtype=torch.uint8)
        asked.append(Asked(served, ["image"], Question(), pixels=pixels))
    answer(asked)


def _listening(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
