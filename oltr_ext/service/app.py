"""The application: what is asked at which address, and how it is answered."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from oltr_ext._version import __version__
from oltr_ext._words import counted
from oltr_ext.metrics import json_ready
from oltr_ext.nn.sets import SET_METHODS
from oltr_ext.serve.enroll import classes
from oltr_ext.service import classes as changes
from oltr_ext.service.batches import Batcher, ModelError
from oltr_ext.service.bodies import Body, RefusedError, opened, read_body, readable, rows_of
from oltr_ext.service.metrics import CONTENT_TYPE, Metrics
from oltr_ext.service.model import ROWS, Answer, Asked, Question, Served, Watched, answer
from oltr_ext.service.room import FullError, Limits, Room, Seat

__all__ = ["Service", "make_app"]

NEAREST = 100  # most classes to name
DECODERS = 4
EVERY = 1.0  # seconds between looks at the run's file
TOKEN = 16  # characters at least

Endpoint = Callable[[Request], Awaitable[Response]]
log = logging.getLogger("oltr_ext.service")


class Service:
    """What the addresses share.

    Args:
        batch: images of a batch at most. wait: seconds to wait for a batch to fill.
        token: of those who may change classes; None: nobody may.
    """

    def __init__(
        self,
        watched: Watched,
        *,
        limits: Limits,
        batch: int = 32,
        wait: float = 0.005,
        token: str | None = None,
    ) -> None:
        if token is not None and len(token) < TOKEN:
            raise ValueError(
                f"token (OLTR_SERVE_TOKEN): expected at least {TOKEN} characters, got {len(token)}"
            )
        self.watched, self.limits, self.token = watched, limits, token
        self.ready = False
        self.batcher: Batcher[Asked, Answer] = Batcher(
            answer, size=batch, wait=wait, seen=lambda n, seconds: self.metrics.batch(n, seconds)
        )
        self.room = Room(limits, lambda: self.batcher.pace)
        self.decoders = ThreadPoolExecutor(DECODERS, "oltr-decode")
        self.writer = ThreadPoolExecutor(1, "oltr-write")  # reads the run anew, and changes it
        self.metrics = Metrics(
            {
                "queue_length": ("Images that wait for the model.", lambda: len(self.batcher)),
                "images_in_flight": ("Images let in, unanswered.", lambda: self.room.images),
                "classes": ("Classes that are answers.", lambda: len(self._roster.living)),
                "up": ("1 while it is ready.", lambda: int(self.ready)),
            }
        )

    @property
    def _roster(self) -> Any:
        return self.watched.served.trained.roster

    @asynccontextmanager
    async def running(self, app: Starlette) -> AsyncIterator[None]:
        self.batcher.start()
        watching = asyncio.create_task(self._watch())
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            watching.cancel()
            await asyncio.to_thread(self.batcher.stop)
            self.decoders.shutdown(cancel_futures=True)
            self.writer.shutdown()

    async def _watch(self) -> None:
        """Serve what others write into the run."""
        lost = False
        while True:
            await asyncio.sleep(EVERY)
            try:
                if await self._in(self.writer, self.watched.refresh):
                    self.metrics.count("reloads")
                    log.info("the run was changed: %d classes now", len(self._roster.living))
                lost = False
            except Exception as error:
                if not lost:
                    self.metrics.count("reload_failures")
                    log.error("the run cannot be read again, and stays as it was: %s", error)
                lost = True

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *args)

    # what is asked

    async def about(self, request: Request) -> Response:
        served, limits = self.watched.served, self.limits
        threshold = served.trained.threshold
        return JSONResponse(
            {
                "oltr_ext": __version__,
                "classes": len(self._roster.living),
                "images": None if served.images is None else readable(),
                "features": served.width,
                "score": threshold["score"],
                "threshold": json_ready(threshold["value"]),
                "sets": served.trained.calibration is not None,
                "enrolment": self.token is not None,
                "limits": vars(limits),
            }
        )

    async def predict(self, request: Request) -> Response:
        question, served = _question(request), self.watched.served
        if question.alpha is not None:
            await self._good(served.check, question)
        with self.room.seat() as seat:
            body = await read_body(request, self.limits, seat)
            pending = (
                self._ask_images(served, body.images, question)
                if body.rows is None
                else await self._ask_rows(served, body.rows, question, seat)
            )
            found = await asyncio.gather(*pending, return_exceptions=True)
        names = [[name] for name, _ in body.images] or [[]] * len(found)
        rows: Answer = []
        for called, each in zip(names, found, strict=True):
            if isinstance(each, BaseException):
                self.metrics.image("failed" if isinstance(each, ModelError) else "unreadable")
                rows.append({**({"path": called[0]} if called else {}), "error": _said(each)})
            else:
                strange = sum(one["unknown"] for one in each)
                self.metrics.image("unknown", strange)
                self.metrics.image("answered", len(each) - strange)
                rows += each
        status = 200
        if all(isinstance(each, BaseException) for each in found):
            status = 500 if any(isinstance(each, ModelError) for each in found) else 422
        return JSONResponse({"answers": rows}, status)

    def _ask_images(
        self, served: Served, images: list[tuple[str, bytes]], question: Question
    ) -> list[asyncio.Future[Answer]]:
        loop = asyncio.get_running_loop()
        pending = []
        for name, blob in images:
            future: asyncio.Future[Answer] = loop.create_future()
            self.decoders.submit(self._decode, served, name, blob, question, future)
            pending.append(future)
        return pending

    def _decode(
        self,
        served: Served,
        name: str,
        blob: bytes,
        question: Question,
        future: asyncio.Future[Answer],
    ) -> None:
        """In a thread: an image on its way to the model, or an error of its own."""
        if future.cancelled():
            return
        try:
            pixels = _pixels(served, name, blob, self.limits)
            self.batcher.put(Asked(served, [name], question, pixels=pixels), future)
        except Exception as error:
            if not isinstance(error, ValueError):
                log.exception("an image could not be read")
                error = ValueError(f"cannot read image {name}")
            future.get_loop().call_soon_threadsafe(_fail, future, error)

    async def _ask_rows(
        self, served: Served, blob: bytes, question: Question, seat: Seat
    ) -> list[asyncio.Future[Answer]]:
        pieces = await self._good(lambda: served.rows(rows_of(blob)))
        if len(pieces) > self.limits.images:
            raise RefusedError(
                413, f"at most {counted(ROWS * self.limits.images, 'row')} in one request"
            )
        seat.take(images=len(pieces) - 1)
        pending, begin = [], 0
        for piece in pieces:
            names = [f"row[{begin + n}]" for n in range(len(piece))]
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self.batcher.put(Asked(served, names, question, rows=piece), future)
            pending.append(future)
            begin += len(piece)
        return pending

    async def _good(self, work: Callable[..., Any], *args: Any) -> Any:
        """What a thread makes of what was asked; its ValueError is for who asked."""
        try:
            return await self._in(self.decoders, work, *args)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None

    async def classes(self, request: Request) -> Response:
        return JSONResponse({"classes": [vars(each) for each in classes(self._roster)]})

    async def enroll(self, request: Request) -> Response:
        self._may(request, "name", "more", "dry_run")
        name = request.query_params.get("name", "").strip()
        if not name:
            raise RefusedError(400, "expected ?name=, of the class that is to join")
        if name in (".", ".."):
            raise RefusedError(400, f"name: {name} is no part of an address, by which to remove it")
        served = self.watched.served
        with self.room.seat() as seat:
            body = await read_body(request, self.limits, seat)
            images, rows = await self._good(self._given, served, body)
            dry = _flag(request, "dry_run")
            join = partial(changes.enrolled, more=_flag(request, "more"), dry=dry)
            found = await self._changed(join, self.watched, served, name, images, rows)
        if not found["dry_run"]:
            log.info("%r was enrolled from %d images", name, found["images"])
        return JSONResponse(found)

    def _given(self, served: Served, body: Body) -> tuple[list[tuple[str, Any]], Any]:
        """Pixels of all images, or rows. Raises ValueError: one cannot be read."""
        if body.rows is not None:
            rows = rows_of(body.rows)
            served.rows(rows)
            return [], rows
        return [(n, _pixels(served, n, blob, self.limits)) for n, blob in body.images], None

    async def remove(self, request: Request) -> Response:
        self._may(request)
        await self._changed(changes.removed, self.watched, request.path_params["name"])
        return await self.classes(request)

    async def undo(self, request: Request) -> Response:
        self._may(request)
        await self._changed(changes.undone, self.watched)
        return await self.classes(request)

    async def _changed(self, change: Callable[..., Any], *args: Any) -> Any:
        """It is carried out, however long it takes and whoever hangs up, and answered: who is told
        to ask again would change it twice."""
        with anyio.CancelScope(shield=True):
            return await asyncio.shield(self._in(self.writer, change, *args))

    def _may(self, request: Request, *keys: str) -> None:
        if self.token is None:
            raise RefusedError(403, "classes cannot be changed here: oltr serve --enroll lets them")
        given = request.headers.get("authorization", "").encode("latin-1")  # bytes as they came
        wanted = f"Bearer {self.token}".encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, wanted):
            raise RefusedError(
                401, "expected Authorization: Bearer TOKEN", WWW_Authenticate="Bearer"
            )
        _check_keys(request, *keys)

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": self.batcher.alive}, 200 if self.batcher.alive else 503)

    async def is_ready(self, request: Request) -> Response:
        ready = self.ready and self.batcher.alive
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def measured(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    def told(self, route: str, endpoint: Endpoint) -> Endpoint:
        """The endpoint of a route, whose errors are told in JSON, within its time, and counted."""

        async def answered(request: Request) -> Response:
            begin = time.monotonic()
            try:
                with anyio.fail_after(self.limits.seconds):
                    response = await endpoint(request)
            except RefusedError as error:
                response = _error(error.status, str(error), error.headers)
            except FullError as error:
                self.metrics.count("rejected")
                response = _error(503, str(error), {"Retry-After": str(error.seconds)})
            except TimeoutError:
                message = f"not done within {self.limits.seconds:g} s"
                response = _error(503, message, {"Retry-After": str(self.room.returns_in())})
            except ClientDisconnect:
                response = _error(400, "the request ended early")
            except Exception:
                id = secrets.token_hex(4)
                log.exception("request %s failed", id)
                response = _error(500, f"it failed; the log has the cause under {id}")
            self.metrics.request(route, response.status_code, time.monotonic() - begin)
            return response

        return answered


def make_app(service: Service, *, hosts: list[str] | None = None) -> Starlette:
    """The application of a service, which runs as long as it does.

    Args:
        hosts: names that requests may call it by; None: any.
    """
    s = service
    routes = [
        ("/", s.about, "GET"),
        ("/predict", s.predict, "POST"),
        ("/classes", s.classes, "GET"),
        ("/classes", s.enroll, "POST"),
        ("/classes/undo", s.undo, "POST"),
        ("/classes/{name:path}", s.remove, "DELETE"),
        ("/health/live", s.live, "GET"),
        ("/health/ready", s.is_ready, "GET"),
        ("/metrics", s.measured, "GET"),
    ]
    return Starlette(
        routes=[Route(path, s.told(path, endpoint), methods=[m]) for path, endpoint, m in routes],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)] if hosts else [],
        exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
        lifespan=service.running,
    )


def _pixels(served: Served, name: str, blob: bytes, limits: Limits) -> Any:
    if served.images is None:
        raise ValueError(f"{name}: this model takes features, {served.width} numbers, no images")
    return opened(name, blob, served.images, limits)


def _question(request: Request) -> Question:
    _check_keys(request, "nearest", "set", "set_method")
    asked = request.query_params
    try:
        nearest = int(asked.get("nearest", 3))
        alpha = None if "set" not in asked else float(asked["set"])
    except ValueError:
        raise RefusedError(400, "expected ?nearest= a whole number and ?set= a share") from None
    method = asked.get("set_method", Question.method)
    if not 1 <= nearest <= NEAREST:
        raise RefusedError(400, f"nearest: expected 1 to {NEAREST}, got {nearest}")
    if alpha is not None and not 0 < alpha < 1:
        raise RefusedError(400, f"set: expected a share in (0, 1), got {alpha:g}")
    if method not in SET_METHODS:
        raise RefusedError(400, f"set_method: expected one of {', '.join(SET_METHODS)}")
    return Question(nearest, alpha, method)


def _check_keys(request: Request, *known: str) -> None:
    for key in request.query_params:
        if key not in known:
            raise RefusedError(400, f"unknown ?{key}=; there are {', '.join(known) or 'none'}")


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "0")
    if text not in ("0", "1"):
        raise RefusedError(400, f"{name}: expected 0 or 1")
    return text == "1"


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _said(error: BaseException) -> str:
    if isinstance(error, ValueError | ModelError):
        return str(error)
    raise error


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status, headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
