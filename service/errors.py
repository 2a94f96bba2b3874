"""Every error that the gateway answers with: one tree, one JSON shape, one place that makes it.

    ApiError                          500 internal_error
    ├── BadRequest                    400
    │   ├── InvalidJson               400 invalid_json
    │   ├── MissingField              400 missing_field
    │   ├── UnknownField              400 unknown_field
    │   ├── InvalidValue              400 invalid_value
    │   ├── InvalidSize               400 invalid_size
    │   ├── InvalidHeader             400 invalid_header
    │   ├── UnknownModel              400 unknown_model
    │   ├── UnknownSampler            400 unknown_sampler
    │   ├── UnknownSchedule           400 unknown_schedule
    │   └── UnknownOption             400 unknown_option
    ├── BadSignature                  403 bad_signature
    ├── NotFound                      404 not_found
    │   ├── JobNotFound               404 job_not_found
    │   └── ImageNotFound             404 image_not_found
    ├── MethodNotAllowed              405 method_not_allowed
    ├── JobNotFinished                409 job_not_finished
    ├── LinkExpired                   410 link_expired
    ├── ImageErased                   410 image_erased
    ├── BodyTooLarge                  413 body_too_large
    ├── UnsupportedMediaType          415 unsupported_media_type
    ├── RangeNotSatisfiable           416 range_not_satisfiable
    ├── KeyReused                     422 idempotency_key_reused
    ├── QueueIsFull                   429 queue_full
    ├── TooManyStreams                429 too_many_streams
    ├── QueueUnavailable              503 queue_unavailable
    ├── StorageUnavailable            503 storage_unavailable
    ├── NoModel                       503 no_model
    └── NotReady                      503 not_ready

A message says what is wrong and what would be right, in words that a client may show. It never holds a prompt, a
path of this machine, or a trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

RETRY_LATER = frozenset({429, 503})
SHOWN = 64  # characters of a client's own word that a message or `param` repeats at most


class ApiError(Exception):
    """The root. `param` names the field or header at fault, `headers` go with the answer."""

    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    about: ClassVar[str] = "Something broke in the service; the request id finds it in the log."

    def __init__(self, message: str = "", *, param: str | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.message = message or self.about
        self.param = shown(param) if param else None
        self.headers = dict(headers or {})
        super().__init__(self.message)


class BadRequest(ApiError):
    http_status = 400
    code = "bad_request"
    about = "The request cannot be understood."


class InvalidJson(BadRequest):
    code = "invalid_json"
    about = "The body is not strict JSON: one object in UTF-8, no NaN or Infinity, no repeated keys."


class MissingField(BadRequest):
    code = "missing_field"
    about = "A required field is missing."


class UnknownField(BadRequest):
    code = "unknown_field"
    about = "There is no such field. Nothing is accepted and ignored."


class InvalidValue(BadRequest):
    code = "invalid_value"
    about = "A value has the wrong type or lies outside its range."


class InvalidSize(BadRequest):
    code = "invalid_size"
    about = "The model cannot draw a picture of that width and height."


class InvalidHeader(BadRequest):
    code = "invalid_header"
    about = "A header has a value that is not understood."


class UnknownModel(BadRequest):
    code = "unknown_model"
    about = "No worker has announced that model."


class UnknownSampler(BadRequest):
    code = "unknown_sampler"
    about = "The model has no such sampler."


class UnknownSchedule(BadRequest):
    code = "unknown_schedule"
    about = "The model has no such schedule."


class UnknownOption(BadRequest):
    code = "unknown_option"
    about = "The sampler or schedule has no such option."


class BadSignature(ApiError):
    http_status = 403
    code = "bad_signature"
    about = "The image URL is not signed by this service. Ask for the job again: its image URLs are."


class NotFound(ApiError):
    http_status = 404
    code = "not_found"
    about = "There is nothing at this address."


class JobNotFound(NotFound):
    code = "job_not_found"
    about = "There is no job of that id. Finished jobs are kept for a limited time."


class ImageNotFound(NotFound):
    code = "image_not_found"
    about = "There is no image of that name."


class MethodNotAllowed(ApiError):
    http_status = 405
    code = "method_not_allowed"
    about = "This address does not know that method; the Allow header lists those it knows."


class JobNotFinished(ApiError):
    http_status = 409
    code = "job_not_finished"
    about = "The job is not finished. Cancel it, or wait for its end."


class LinkExpired(ApiError):
    http_status = 410
    code = "link_expired"
    about = "The image URL has expired. Ask for the job again: it answers with a fresh one."


class ImageErased(ApiError):
    http_status = 410
    code = "image_erased"
    about = "The image was erased, or its time of keeping is over."


class BodyTooLarge(ApiError):
    http_status = 413
    code = "body_too_large"
    about = "The request body is too large."


class UnsupportedMediaType(ApiError):
    http_status = 415
    code = "unsupported_media_type"
    about = "The body must be sent as application/json."


class RangeNotSatisfiable(ApiError):
    http_status = 416
    code = "range_not_satisfiable"
    about = "The range lies outside the image; Content-Range says how long it is."


class KeyReused(ApiError):
    http_status = 422  # not 409, which some clients repeat by themselves
    code = "idempotency_key_reused"
    about = "The Idempotency-Key was used before with another body."


class QueueIsFull(ApiError):
    http_status = 429
    code = "queue_full"
    about = "The queue is full. Come again after the seconds of Retry-After."


class TooManyStreams(ApiError):
    http_status = 429
    code = "too_many_streams"
    about = "Too many event streams are open. Come again, or ask for the job now and then."


class QueueUnavailable(ApiError):
    http_status = 503
    code = "queue_unavailable"
    about = "The queue cannot be reached at the moment. Try again, with an Idempotency-Key."


class StorageUnavailable(ApiError):
    http_status = 503
    code = "storage_unavailable"
    about = "The image store cannot be reached at the moment."


class NoModel(ApiError):
    http_status = 503
    code = "no_model"
    about = "No worker has announced a model yet. Start one, or come again soon."


class NotReady(ApiError):
    http_status = 503
    code = "not_ready"
    about = "The service would not take a job now; the message names what is missing."


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(extra="forbid")

    code: str = Field(description="stable, for programs; the list is in docs/api.md")
    message: str = Field(description="for people; may change")
    param: str | None = Field(description="the field, option, header or query parameter at fault")
    request_id: str = Field(description="as in the header X-Request-Id and in the log")


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 or above."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


def shown(text: str) -> str:
    """A client's own word, short and printable enough to be sent back."""
    short = text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
    return "".join(c if c.isprintable() else "�" for c in short)


def documented(*errors: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these errors, each code with an example."""
    responses: dict[int | str, dict[str, Any]] = {}
    every: tuple[type[ApiError], ...] = (*errors, ApiError)
    for error in every:
        response = responses.setdefault(error.http_status, {"model": ErrorBody, "content": {"application/json": {"examples": {}}}})
        example = {"error": {"code": error.code, "message": error.about, "param": None, "request_id": "0f8b…"}}
        response["content"]["application/json"]["examples"][error.code] = {"summary": error.about, "value": example}
        if error.http_status in RETRY_LATER:
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    for response in responses.values():
        codes = response["content"]["application/json"]["examples"]
        response["description"] = "Error: " + ", ".join(codes)
    return responses


def respond(error: ApiError, request_id: str) -> JSONResponse:
    """The one JSON shape."""
    detail = ErrorDetail(code=error.code, message=error.message, param=error.param, request_id=request_id)
    return JSONResponse(ErrorBody(error=detail).model_dump(), status_code=error.http_status, headers=error.headers)


def translate(exc: Exception) -> ApiError | None:
    """The ApiError that stands for an exception of the framework, of pydantic or of Redis; None for a fault of our own."""
    match exc:
        case ApiError():
            return exc
        case RequestValidationError():
            return _from_validation(exc.errors())
        case HTTPException():
            return _from_http(exc)
        case ClientDisconnect():  # nobody reads the answer; the log says 400 and not 500
            return BadRequest()
        case RedisConnectionError() | RedisTimeoutError() | OutOfMemoryError() | ReadOnlyError():
            return QueueUnavailable(headers={"Retry-After": "1"})
        case RedisError() if str(exc).startswith(("LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS")):
            return QueueUnavailable(headers={"Retry-After": "1"})
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


def _from_validation(faults: Sequence[Mapping[str, Any]]) -> ApiError:
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
