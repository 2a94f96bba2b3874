"""What surrounds every request: its id, one line of log, its metrics, security headers, the body limit, the last catch."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.tracing import Tracing
from service.doorkeeper import CLIENT
from service.error_answers import respond
from service.errors import ApiError, BodyTooLarge
from service.keyring import ANYBODY
from service.metrics import Metrics
from service.request_ids import CURRENT, accepted

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # others would grow the metrics' labels

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds; their lines would bury the others

SECURITY_HEADERS = {  # as ASGI has them: lower case
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",  # answers hold signed URLs; who knows better sets it first
}


class Surroundings:
    """The outermost layer of ours. Nothing that is raised below leaves it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        log: FilteringBoundLogger,
        metrics: Metrics,
        tracing: Tracing,
        max_body_bytes: int,
        larger: Mapping[str, int],
    ) -> None:
        """`larger` limits are those of some paths."""
        self._app, self._log, self._metrics, self._tracing = app, log, metrics, tracing
        self._max_body_bytes, self._larger = max_body_bytes, larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.perf_counter()
        said = dict(scope["headers"])
        request_id = scope["request_id"] = accepted(said.get(b"x-request-id", b"").decode("latin-1"))
        before = CURRENT.set(request_id)
        self._tracing.note(request_id=request_id)
        status = 0

        async def send_dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*_dressed(message["headers"]), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._guarded(scope, receive, send_dressed, _number(said.get(b"content-length", b"")))
        except Exception as exc:
            self._log.error("unhandled", error=type(exc).__name__, where=_where(exc))
            if status:  # the head has left: cutting the connection is the only honest end
                raise ConnectionAbortedError(f"answer cut short; request {request_id}") from None
            await respond(ApiError(), scope)(scope, receive, send_dressed)
        finally:
            self._note(scope, status or 500, time.perf_counter() - started)
            CURRENT.reset(before)

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, announced: int) -> None:
        """Go on, but let no body in that is longer than the limit, announced or not."""
        limit = self._larger.get(scope["path"], self._max_body_bytes)
        if announced > limit:
            return await respond(BodyTooLarge(f"The request body is larger than {limit} bytes."), scope)(scope, receive, send)
        taken = 0

        async def receive_counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise HTTPException(413)  # the one kind that FastAPI lets through while it reads a body
            return message

        await self._app(scope, receive_counted, send)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        """The route's pattern, never the path: a path may hold anything, and image URLs hold their own permission."""
        method = scope["method"] if scope["method"] in METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.answered(method, route, status, seconds)
        note = self._log.debug if route in PROBES else self._log.info
        who = {"client": scope[CLIENT]} if scope.get(CLIENT, ANYBODY) != ANYBODY else {}
        note("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1), **who)


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() and len(text) < 20 else 0


def _dressed(headers: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """With those of ours that nobody has set before."""
    known = {name for name, _ in headers}
    yield from headers
    for name, value in SECURITY_HEADERS.items():
        if name not in known:
            yield name, value


def _where(exc: BaseException) -> str:
    """The innermost frames as file:line function, without values: those may hold prompts."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    frames = traceback.extract_tb(exc.__traceback__)[-4:]
    return " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
