"""The routes of the page, behind a token that is the first part of every address."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from oltr_ext.desk import views
from oltr_ext.desk.desk import Desk
from oltr_ext.desk.export import zipped
from oltr_ext.desk.folder import NotThereError
from oltr_ext.desk.meaning import Conflict
from oltr_ext.desk.state import Refused

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard", "make_app"]

HOSTS = ("127.0.0.1", "localhost", "[::1]")
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
LARGEST = 4 << 20
"""Bytes of a decision; one about 100,000 images is as large."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Lets through what comes from this machine's own page, and takes the token off its path.

    A request needs the token as the first part of its path; a name of this machine as its host,
    so that no other name can be made to lead here; and if a browser sends it on behalf of a page,
    that page must be ours.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close"})
        status = self._refused(scope)
        if status:
            await send({"type": "http.response.start", "status": status, "headers": _headers()})
            return await send({"type": "http.response.body", "body": b""})
        path = "/" + scope["path"].split("/", 2)[2]
        inner = {**scope, "path": path, "raw_path": path.encode()}

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_headers()]}
            await send(message)

        return await self._app(inner, receive, guarded)

    def _refused(self, scope: Scope) -> int:
        """A status, 0 for none."""
        sent: dict[bytes, list[bytes]] = {}
        for key, value in scope["headers"]:
            sent.setdefault(key.lower(), []).append(value)
        parts = scope["path"].split("/", 2)
        given = parts[1] if len(parts) == 3 else ""
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token):
            return 404
        host = (sent.get(b"host") or [b""])[0].decode("latin-1")
        if len(sent.get(b"host", [])) != 1 or host.rpartition(":")[0] not in HOSTS:
            return 421
        origins = sent.get(b"origin", [])
        if any(each.decode("latin-1") != f"http://{host}" for each in origins):
            return 403
        if any(s not in (b"same-origin", b"none") for s in sent.get(b"sec-fetch-site", [])):
            return 403
        if scope["method"] == "POST":
            (kind, *more) = sent.get(b"content-type", [b""])
            if more or kind.split(b";")[0].strip().lower() != b"application/json":
                return 415  # what a form or a simple request of another page could send
        return 0


def _headers() -> list[tuple[bytes, bytes]]:
    return [(key.lower().encode(), value.encode()) for key, value in HEADERS.items()]


def make_app(desk: Desk, token: str) -> ASGIApp:
    """The application of a desk, for whoever serves it on this machine alone.

    Raises:
        ImportError: Starlette is missing.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response
    from starlette.routing import Route

    def answer(held: Any, status: int = 200) -> Response:
        body = json.dumps(held).encode()  # in ASCII, whatever the names are
        kept = {"Cache-Control": "no-store"}
        return Response(body, status, kept, media_type="application/json")

    def told(make: Callable[[Request], Any]) -> Callable[[Request], Response]:
        def run(request: Request) -> Response:
            try:
                found = make(request)
            except Conflict as error:
                return answer({"error": str(error), "version": desk.log.version}, 409)
            except Refused as error:
                return answer({"error": views.text(str(error))}, 400)
            return found if isinstance(found, Response) else answer(found)

        return run

    def page(request: Request) -> int:
        asked = request.query_params.get("page", "0")
        if not (asked.isascii() and asked.isdigit()) or len(asked) > 9:
            raise Refused(f"page: expected a number, got {asked[:40]!r}")
        return int(asked)

    def groups(request: Request) -> Any:
        return views.groups(desk, request.path_params["which"], page(request))

    def images(request: Request) -> Any:
        return views.images(desk, request.path_params["which"], page(request))

    def names(request: Request) -> Any:
        return views.names(desk, request.query_params.get("q", "")[:200])

    def history(request: Request) -> Any:
        return views.history(desk, page(request))

    def picture(make: Callable[[str, list[str]], bytes]) -> Callable[[Request], Any]:
        def run(request: Request) -> Any:
            image = request.path_params["image"]
            paths = desk.contents.paths.get(image)
            if paths is None:
                return Response(status_code=404)
            try:
                made = make(image, paths)
            except NotThereError:
                return Response(status_code=410)
            kept = {"Cache-Control": "private, max-age=31536000, immutable"}
            return Response(made, headers=kept, media_type="image/jpeg")

        return run

    def lists(request: Request) -> Any:
        kept = {"Content-Disposition": 'attachment; filename="decisions.zip"'}
        kept["Cache-Control"] = "no-store"
        return Response(zipped(desk), headers=kept, media_type="application/zip")

    def static(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        suffix = f".{name.rpartition('.')[2]}"
        if name not in shipped or suffix not in TYPES:
            return Response(status_code=404)
        kept = {"Cache-Control": "no-store"}
        return Response(shipped[name], headers=kept, media_type=TYPES[suffix])

    async def decide(request: Request) -> Response:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > LARGEST:
                return answer({"error": f"a decision is at most {LARGEST:,} bytes"}, 413)

        def run(_: Request) -> Any:
            try:
                asked = json.loads(body)
            except (ValueError, RecursionError):
                raise Refused("expected JSON") from None
            if not isinstance(asked, dict):
                raise Refused(f"expected a JSON object, got {type(asked).__name__}")
            act = request.path_params["act"]
            if act == "do":
                return {"version": desk.decide(asked)}
            backs = {"undo": desk.undo, "redo": desk.redo, "enroll": desk.enroll}
            if act not in backs:
                return Response(status_code=404)
            return {"version": backs[act](asked.get("version"))}

        return await run_in_threadpool(told(run), request)

    shipped = {
        each.name: each.read_bytes()
        for each in files("oltr_ext.desk").joinpath("page").iterdir()
        if each.is_file()
    }
    routes = [
        Route("/", static),
        Route("/api/status", told(lambda _: views.status(desk))),
        Route("/api/groups/{which}", told(groups)),
        Route("/api/images/{which}", told(images)),
        Route("/api/names", told(names)),
        Route("/api/history", told(history)),
        Route("/api/export.zip", told(lists)),
        Route("/api/{act}", decide, methods=["POST"]),
        Route("/small/{image}", told(picture(desk.thumbs.small))),
        Route("/large/{image}", told(picture(desk.thumbs.large))),
        Route("/{name}", static),
    ]
    return Guard(Starlette(routes=routes), token)
