"""Errors as HTTP tells them: the one JSON shape, the OpenAPI of it, and what stands for the exceptions of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import Scope

from jobs.job_queue import ServerUnfit
from service.errors import (
    ApiError,
    BadRequest,
    BodyTooLarge,
    InvalidBatch,
    InvalidHeader,
    InvalidJson,
    InvalidValue,
    MethodNotAllowed,
    MissingField,
    NotFound,
    QueueOutOfMemory,
    QueueReadOnly,
    QueueUnavailable,
    UnknownField,
    UnsupportedMediaType,
    shown,
)

PASSING = frozenset({429, 503, 504})  # what passes: a repeat may do better
SOON_S = 60  # what passes later than that is not worth the repeats of a client, which come within seconds
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
BOUND_HEADERS = {
    "RateLimit-Policy": {"description": "the bound that was met: name, quota `q`, window `w` in seconds", "schema": {"type": "string"}},
    "RateLimit": {"description": "what is left `r`, and in how many seconds `t` there may be more", "schema": {"type": "string"}},
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(description="stable, for programs; the list is in docs/api.md")
    message: str = Field(description="for people; may change")
    param: str | None = Field(description="the field, option, header or query parameter at fault")
    request_id: str = Field(description="as in the header X-Request-Id and in the log")
    type: str = Field(default="", description="behind /v1 only: OpenAI's kind of error")


class LineFault(BaseModel):
    """Why a line of a batch cannot be drawn; as in an error of its own."""

    code: str
    message: str
    param: str | None


class BadLineAnswer(BaseModel):
    """A line of a batch that was not queued."""

    line: int = Field(description="from 1, as in the file")
    error: LineFault


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or above."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail
    lines: list[BadLineAnswer] = Field(default=[], description="of `invalid_batch` only: the lines at fault")
    detail: str = Field(default="", description="behind /sdapi only: the message, where A1111's clients look")


def documented(*errors: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors, each code with an example."""
    responses: dict[int | str, dict[str, Any]] = {}
    every: tuple[type[ApiError], ...] = (*errors, ApiError)
    for error in every:
        response = responses.setdefault(error.http_status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        example = {"error": {"code": error.code, "message": error.about, "param": None, "request_id": "0f8b…"}}
        response["content"]["application/json"]["examples"][error.code] = {"summary": error.about, "value": example}
        if error.retry_after_s:
            response.setdefault("headers", {})["Retry-After"] = {"description": "seconds", "schema": {"type": "integer"}}
        if error.names_bound:
            response["headers"] |= BOUND_HEADERS
    for response in responses.values():
        codes = response["content"]["application/json"]["examples"]
        response["description"] = "Error: " + ", ".join(codes)
    return responses


def respond(error: ApiError, scope: Scope) -> JSONResponse:
    """The one JSON shape; behind /v1 and /sdapi it also has what the clients of those look for."""
    body, headers = error_body(error, scope["request_id"]), error.headers
    if isinstance(error, InvalidBatch):
        body["lines"] = [*error.lines]
    if scope["path"].startswith("/v1/"):
        body = openai_error(error, scope["request_id"])
        passes = error.http_status in PASSING and int(headers.get("Retry-After", 0)) <= SOON_S
        headers = headers | {"x-should-retry": "true" if passes else "false"}  # their SDK repeats 409 and 500
    if scope["path"].startswith("/sdapi/"):
        body["detail"] = error.message
    return JSONResponse(body, status_code=error.http_status, headers=headers)


def error_body(error: ApiError, request_id: str, **more: str) -> dict[str, Any]:
    detail = ErrorDetail(code=error.code, message=error.message, param=error.param, request_id=request_id, **more)
    return ErrorBody(error=detail).model_dump(exclude_unset=True)


def openai_error(error: ApiError, request_id: str) -> dict[str, Any]:
    """The same four fields, and `type`."""
    kind = OPENAI_TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "server_error")
    return error_body(error, request_id, type=kind)


def translate(exc: Exception) -> ApiError | None:
    """The ApiError that stands for an exception of the framework, of pydantic or of Redis; None for a fault of our own."""
    match exc:
        case ApiError():
            return exc
        case RequestValidationError():
            return from_validation(exc.errors())
        case HTTPException():
            return _from_http(exc)
        case ClientDisconnect():  # nobody reads the answer; the log says 400 and not 500
            return BadRequest()
        case OutOfMemoryError():
            return QueueOutOfMemory()
        case ReadOnlyError():
            return QueueReadOnly()
        case RedisError() if str(exc).startswith(("NOREPLICAS", "MISCONF")):  # too few replicas; the disk is full or broken
            return QueueReadOnly()
        case ServerUnfit():  # it came after the start: /readyz and the log of the next start say why
            return QueueUnavailable()
        case RedisConnectionError() | RedisTimeoutError() | ClusterDownError():  # loading and master down are among them
            return QueueUnavailable()
    return None


BY_STATUS: Mapping[int, type[ApiError]] = {
    400: InvalidJson,  # of FastAPI: "There was an error parsing the body"
    404: NotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
    415: UnsupportedMediaType,
}


def _from_http(exc: HTTPException) -> ApiError:
    return BY_STATUS.get(exc.status_code, BadRequest if exc.status_code < 500 else ApiError)(headers=exc.headers)


def from_validation(faults: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first fault pydantic found, in our words. Its own message never repeats the value."""
    fault = faults[0]
    place, *path = fault["loc"] or ("body",)
    param = ".".join(map(str, path)) or None
    match fault["type"], place:
        case "json_invalid", _:
            return InvalidJson()
        case "extra_forbidden", _:
            return UnknownField(f"There is no field {shown(param or '')!r}.", param=param)
        case _, "header":
            return InvalidHeader(param=param)
        case "missing", _ if param:
            return MissingField(f"The field {shown(param)!r} is required.", param=param)
    if param is None:
        return InvalidValue("The body must be a JSON object.")
    return InvalidValue(f"{shown(param)}: {fault['msg'].removeprefix('Value error, ')}", param=param)
