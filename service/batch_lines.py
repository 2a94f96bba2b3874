"""A batch as it is uploaded: a JSON list, an object with defaults, or JSON lines. What a line asks for stands on the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from service.error_answers import from_validation
from service.errors import BadRequest, InvalidJson, InvalidValue, NotSupported, UnknownField, UnsupportedMediaType, shown
from service.generate_request import GenerateRequest
from service.strict_json import parse

JSON = "application/json"
JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
DEFAULTS: Mapping[str, Any] = {"service_class": "batch"}


@dataclass(frozen=True, slots=True)
class Upload:
    """`lines` are (number from 1, what it says or what is wrong with it)."""

    defaults: Mapping[str, Any]
    lines: Iterator[tuple[int, Any]]

    def request(self, said: Any) -> GenerateRequest:
        """What a line asks for. Raises BadRequest and its kin."""
        if isinstance(said, BadRequest):
            raise said
        if isinstance(said, str):
            said = {"prompt": said}
        if not isinstance(said, dict):
            raise InvalidValue("A line is a JSON object, or a prompt as a string.")
        request = _request({**self.defaults, **said})
        if request.deadline_s is not None:
            raise NotSupported("A line of a batch has no deadline.", param="deadline_s")
        return request


def read(body: bytes, content_type: str) -> Upload:
    """Raises InvalidJson, InvalidValue, UnknownField, UnsupportedMediaType: of the whole, or of its defaults."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON:
        defaults, lines = _of_json(parse(body))
    elif media_type in JSON_LINES:
        defaults, lines = _of_lines(body)
    else:
        raise UnsupportedMediaType(f"The body must be sent as {JSON}, or as JSON lines: {JSON_LINES[0]} or {JSON_LINES[1]}.")
    if not isinstance(defaults, dict):
        raise InvalidValue("defaults must be an object.", param="defaults")
    try:
        _request({"prompt": "", **defaults})
    except BadRequest as error:
        raise type(error)(error.message, param=f"defaults.{error.param}" if error.param else "defaults") from None
    return Upload({**DEFAULTS, **defaults}, lines)


def _request(fields: Mapping[str, Any]) -> GenerateRequest:
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise from_validation([{**fault, "loc": ("body", *fault["loc"])} for fault in faults]) from None


def _of_json(said: Any) -> tuple[Any, Iterator[tuple[int, Any]]]:
    if isinstance(said, list):
        return {}, enumerate(said, 1)
    if not isinstance(said, dict) or not isinstance(said.get("lines"), list):
        raise InvalidValue("A batch is a list of lines, or an object with `lines` and `defaults`.", param="lines")
    if unknown := sorted(said.keys() - {"lines", "defaults"}):
        raise UnknownField(f"There is no field {shown(unknown[0])!r}.", param=unknown[0])
    return said.get("defaults", {}), enumerate(said["lines"], 1)


def _of_lines(body: bytes) -> tuple[Any, Iterator[tuple[int, Any]]]:
    """Empty lines count but say nothing; a first one that holds `defaults` alone is no job."""
    lines = ((number, _value(line)) for number, line in enumerate(body.split(b"\n"), 1) if line.strip())
    first = next(lines, None)
    if first and isinstance(first[1], dict) and first[1].keys() == {"defaults"}:
        return first[1]["defaults"], lines
    return {}, _behind(first, lines)


def _behind(first: tuple[int, Any] | None, lines: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    if first:
        yield first
    yield from lines


def _value(line: bytes) -> Any:
    try:
        return parse(line)
    except InvalidJson as error:
        return InvalidJson(error.message.replace("The body", "The line"))
