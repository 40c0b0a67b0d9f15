"""Serve a desk on this machine, to whoever has its address."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from oltr_ext.desk import PORT
from oltr_ext.desk.app import make_app
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.export import check_free, export
from oltr_ext.desk.folder import Folder
from oltr_ext.engine.lock import locked
from oltr_ext.serve.trained import Trained, load_trained
from oltr_ext.serve.until import run_until_asked

__all__ = ["export_decisions", "run_desk"]


def run_desk(
    run: Path,
    folder: Path,
    *,
    out: Path | None = None,
    port: int = PORT,
    browser: bool = True,
    nearest: int = 3,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> None:
    """Serve until it is interrupted.

    Args:
        out: folder of decisions; default: ``desk`` in the run's folder.
        port: on 127.0.0.1; 0 for any that is free.
        browser: open the page.
        say: gets the address, and other lines.

    Raises:
        RuntimeError: Starlette or uvicorn is missing; the message names the extra.
        OSError: the port is taken. BusyError: another desk has the folder of decisions.
        ValueError, CheckpointError: see `Desk` and `load_trained`.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise RuntimeError(
            f"desk: {error.name} is missing: run `pip install oltr_ext[web]`"
        ) from None
    with (
        _held(run, folder, out, device, say) as held,
        _listening(port) as listening,
        closing(Desk(*held, nearest=nearest)) as desk,
    ):
        token = secrets.token_urlsafe(32)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/"
        config = uvicorn.Config(
            make_app(desk, token),
            access_log=False,  # it would show the token
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=3,
        )
        server = uvicorn.Server(config)
        preparing = threading.Thread(target=_prepare, args=(desk, say), daemon=True)
        preparing.start()
        say(f"desk  {address}")
        say("(whoever has this address can decide; Ctrl-C ends it, and nothing is lost)")
        if browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        run_until_asked(server, listening)
        say("ended; the same command goes on from here")


def export_decisions(
    run: Path,
    folder: Path,
    to: Path,
    *,
    out: Path | None = None,
    nearest: int = 3,
    device: str = "auto",
) -> list[Path]:
    """Write what was decided as lists into a folder, see `export`; their paths.

    Raises:
        BusyError: a desk is open, whose page exports too. ValueError: `to` holds other lists. Else
            as `run_desk`.
    """
    check_free(to)  # before all images are read
    with (
        _held(run, folder, out, device, lambda _: None) as held,
        closing(Desk(*held, nearest=nearest)) as desk,
    ):
        desk.prepare()
        return export(desk, to)


@contextmanager
def _held(
    run: Path, folder: Path, out: Path | None, device: str, say: Callable[[str], None]
) -> Iterator[tuple[Trained, Folder, Path]]:
    """What a desk is made of, and the folder of decisions for this process alone."""
    Folder(folder)  # is there one? A model takes longer to read
    trained = load_trained(run, device=device)
    out = out or trained.path.resolve().parent / "desk"
    images = Folder(folder, without=out)
    with locked(out, "a desk", say):
        yield trained, images, out


def _prepare(desk: Desk, say: Callable[[str], None]) -> None:
    try:
        desk.prepare()
    except Exception as error:  # the page says so too; what was decided can still be had
        say(f"oltr: {error}")


def _listening(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        made.listen()  # whoever comes before all is ready waits
    except OSError as error:
        made.close()
        raise OSError(
            f"desk: port {port} of 127.0.0.1 cannot be had ({error.strerror}): choose another "
            "with --port, or 0 for any"
        ) from None
    return made
