"""JSON as it is written down in RFC 8259, and no more: what Python's reader forgives is refused here.

Python takes NaN and Infinity, keeps the last of two equal keys, and reads halves of surrogate pairs that no answer
could repeat. Each of them would be accepted and silently become something else.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import InvalidJson, UnsupportedMediaType

MAX_DEPTH = 32


class StrictJsonRequest(Request):
    """A request whose JSON body is strict."""

    async def json(self) -> object:
        """The body, parsed once. Raises InvalidJson, as FastAPI's own error when it asks."""
        if not hasattr(self, "_json"):
            self._json: object = parse(await self.body())
        return self._json


class StrictJsonRoute(APIRoute):
    """A route that takes a body as strict JSON, or none at all."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            if takes_body:
                _check_media_type(request.headers.get("content-type", ""))
                request = StrictJsonRequest(request.scope, request.receive)
                await request.json()  # here, where its error is ours and not FastAPI's
            return await handle(request)

        return strict


def parse(body: bytes) -> object:
    """Raises InvalidJson."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidJson(f"The body is not UTF-8: byte {error.start} is wrong.") from None
    try:
        value = _decoder().decode(text)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except ValueError:  # an int of thousands of digits
        raise InvalidJson("The body holds a number that is too long.") from None
    except RecursionError:
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} deep.") from None
    _check_depth(value)
    if "\\u" in text:
        _refuse_half_pairs(value)
    return value


def _check_media_type(content_type: str) -> None:
    media_type, _, parameters = content_type.partition(";")
    charset = parameters.strip().lower().replace('"', "").replace(" ", "")
    if media_type.strip().lower() != "application/json" or charset not in ("", "charset=utf-8"):
        raise UnsupportedMediaType()


@functools.cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidJson("An object of the body has the same key twice.")
    return fields


def _no_constant(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is no JSON number.")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise InvalidJson("The body holds a number that is too large.")
    return value


def _check_depth(value: object, left: int = MAX_DEPTH) -> None:
    if not isinstance(value, (dict, list)):
        return
    if not left:
        raise InvalidJson(f"The body is nested more than {MAX_DEPTH} deep.")
    for child in value.values() if isinstance(value, dict) else value:
        _check_depth(child, left - 1)


def _refuse_half_pairs(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidJson("A string of the body holds half of a surrogate pair.") from None
