"""POST /generate as most clients send it, without the framework: a body of JSON, no query, no preference.

What is unusual about a request, or wrong with it, goes the long way, through the route in `api/native.py`, which says what is wrong.
Both ways end in the same answer; the document describes the long one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.tracing import Tracing
from service.answers import from_job
from service.api import native
from service.doorkeeper import CLIENT
from service.error_answers import respond, translate
from service.errors import ApiError
from service.gateway import base_url
from service.generate_request import GenerateRequest
from service.headers import IDEMPOTENCY_KEY
from service.strict_json import parse

PATH = "/generate"
KEY = b"idempotency-key"
JSON = frozenset({b"application/json", b"application/json; charset=utf-8"})


class FastLane:
    """Innermost, before the framework's own routes; `route` is the long way, by whose name metrics and spans know the request."""

    def __init__(self, app: ASGIApp, *, route: BaseRoute, tracing: Tracing) -> None:
        self._app, self._route, self._tracing = app, route, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or not usual(scope):
            return await self._app(scope, receive, send)
        try:
            body = await _read(receive)
            request = _request(body)
            if request is None:
                return await self._app(scope, _replay(body, receive), send)
            scope["route"] = self._route
            self._tracing.name_request("POST", PATH)  # the span was begun outside of all this
            answer = await _submit(request, scope)
        except Exception as exc:
            if (error := translate(exc)) is None:
                raise
            return await respond(error, scope)(scope, receive, send)
        await answer(scope, receive, send)


def usual(scope: Scope) -> bool:
    """Whether everything beside the body is plain."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    said: Mapping[bytes, bytes] = dict(headers)
    if scope["query_string"] or b"prefer" in said or said.get(b"content-type") not in JSON:
        return False
    keys = [value for name, value in headers if name == KEY] if KEY in said else []
    return not keys or (len(keys) == 1 and IDEMPOTENCY_KEY.fullmatch(keys[0].decode("latin-1")) is not None)


def _request(body: bytes) -> GenerateRequest | None:
    """None for one that the long way refuses."""
    try:
        return GenerateRequest.model_validate(parse(body))
    except (ApiError, ValidationError):
        return None


async def _submit(request: GenerateRequest, scope: Scope) -> Response:
    gateway = scope["app"].state.gateway
    key = dict(scope["headers"]).get(KEY)
    base = base_url(scope, gateway.settings)
    submitted = await native.queued(request, gateway, scope[CLIENT], key.decode() if key else None)
    answer = await from_job(submitted.job, gateway, base, submitted.outlook)
    status = 200 if submitted.job.done else 202
    return Response(answer.model_dump_json(), status, native.headers_of(submitted, base), "application/json")


async def _read(receive: Receive) -> bytes:
    """Raises ClientDisconnect."""
    parts, more = list[bytes](), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that begins with the body that was read."""
    read = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(read, None) or await receive()

    return again
