"""A service of the tests: a real uvicorn on a free port, in a thread."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from oltr_ext.service.app import Service, make_app
from oltr_ext.service.model import Watched
from oltr_ext.service.room import Limits

TOKEN = "a token of the tests"


@contextlib.contextmanager
def serving(run: Path, **changes: Any) -> Iterator[tuple[httpx.Client, Service]]:
    """A client of a service of `run`, and the service; `changes` are its own, and its limits'."""
    own = {k: changes.pop(k) for k in ("batch", "wait", "token") if k in changes}
    service = Service(Watched(run, "cpu"), limits=Limits(**changes), **own)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(make_app(service, hosts=["127.0.0.1"]), log_config=None)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until(lambda: server.started)
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
                yield client, service
        finally:
            server.should_exit = True
            thread.join()


def until(holds: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def png(size: tuple[int, int] = (20, 20), seed: int = 0) -> bytes:
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def npy(rows: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, rows, allow_pickle=True)
    return file.getvalue()
