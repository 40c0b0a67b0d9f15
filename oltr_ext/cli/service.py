"""`oltr serve`: a trained model over HTTP."""

from __future__ import annotations

import argparse
import logging
import os
import secrets
from collections.abc import Callable
from typing import Any

from oltr_ext.cli.arguments import add_device, add_run
from oltr_ext.cli.saying import tell
from oltr_ext.cli.values import port, positive

TOKEN = "OLTR_SERVE_TOKEN"


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`oltr serve`, made by the parser's `command`."""
    sub = command(
        "serve",
        run_serve,
        "answer over HTTP by a trained run: pip install oltr_ext[web]",
        "  oltr serve runs/demo/oltr-plus\n"
        "  curl -s -F a=@cat.png -F b=@house.png http://127.0.0.1:8000/predict\n"
        "  OLTR_SERVE_TOKEN=... oltr serve runs/mine --enroll --port 8080",
    )
    add_run(sub)
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; default: %(default)s, this machine alone",
    )
    sub.add_argument(
        "--port", type=port, default=8000, metavar="N", help="0: any; default: %(default)s"
    )
    sub.add_argument(
        "--batch",
        type=positive,
        default=32,
        metavar="N",
        help="images of a batch; default: %(default)s",
    )
    sub.add_argument(
        "--wait-ms",
        type=_wait,
        default=5.0,
        metavar="MS",
        help="how long the first image of a batch waits for others; default: %(default)s",
    )
    sub.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="body, held (bytes of a request, of all at once), images, queue (images of a request, "
        "of all at once), pixels (of an image) or seconds (to an answer); may be repeated",
    )
    sub.add_argument(
        "--enroll",
        action="store_true",
        help=f"let classes join and leave, for who has the token: ${TOKEN}, or one that is made "
        "and said",
    )
    sub.add_argument("--access-log", action="store_true", help="a line for each request")
    add_device(sub)


def run_serve(args: argparse.Namespace) -> int:
    try:
        from oltr_ext.service.room import Limits
        from oltr_ext.service.run import serve
    except ModuleNotFoundError as error:
        raise RuntimeError(f"oltr serve wants {error.name}: pip install oltr_ext[web]") from None

    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    token = None
    if args.enroll:
        token = os.environ.get(TOKEN)
        if token is None:
            token = secrets.token_urlsafe(24)
            tell(f"token for changing classes: {token}")
    serve(
        args.checkpoint,
        host=args.host,
        port=args.port,
        batch=args.batch,
        wait=args.wait_ms / 1000,
        limits=Limits(**dict(map(_limit, args.limit))),
        token=token,
        device=args.device,
        access_log=args.access_log,
        say=tell,
    )
    return 0


def _wait(text: str) -> float:
    value = float(text)
    if not 0 <= value < 60_000:
        raise argparse.ArgumentTypeError(f"must be from 0 to a minute, got {text}")
    return value


def _limit(text: str) -> tuple[str, Any]:
    from oltr_ext.service.room import Limits

    name, _, number = text.partition("=")
    if name not in vars(Limits()):
        raise ValueError(f"--limit {text}: expected one of {', '.join(vars(Limits()))}, and =N")
    try:
        return name, float(number) if name == "seconds" else int(number)
    except ValueError:
        raise ValueError(f"--limit {text}: expected a number after =") from None
