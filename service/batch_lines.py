"""A batch as it is uploaded: a JSON list, an object with defaults, or JSON lines. What a line asks for stands on the defaults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from service.error_answers import from_validation
from service.errors import BadRequest, InvalidJson, InvalidValue, MissingField, UnknownField, UnsupportedMediaType, shown
from service.forms import FORM
from service.forms import parse as form_parts
from service.generate_request import GenerateRequest
from service.strict_json import parse

JSON = "application/json"
JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")
DEFAULTS: Mapping[str, Any] = {"service_class": "batch"}


@dataclass(frozen=True, slots=True)
class Upload:
    """`lines` are (number from 1, what it says or what is wrong with it); `said` is one value for equal uploads."""

    defaults: Mapping[str, Any]
    lines: Iterator[tuple[int, Any]]
    said: str

    def request(self, said: Any) -> GenerateRequest:
        """What a line asks for. Raises BadRequest and its kin."""
        if isinstance(said, BadRequest):
            raise said
        if isinstance(said, str):
            said = {"prompt": said}
        if not isinstance(said, dict):
            raise InvalidValue("A line is a JSON object, or a prompt as a string.")
        return _request({**self.defaults, **said})


def read(body: bytes, content_type: str) -> Upload:
    """Raises InvalidJson, InvalidValue, MissingField, UnknownField, UnsupportedMediaType: of the whole, or of its defaults."""
    beneath: Any = {}
    if content_type.partition(";")[0].strip().lower() == FORM:
        body, content_type, beneath = _of_form(body, content_type)
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == JSON:
        defaults, lines = _of_json(parse(body))
    elif media_type in JSON_LINES:
        defaults, lines = _of_lines(body)
    else:
        raise UnsupportedMediaType(f"The body must be sent as {JSON}, as JSON lines ({JSON_LINES[0]} or {JSON_LINES[1]}), or as {FORM}.")
    if not isinstance(defaults, dict) or not isinstance(beneath, dict):
        raise InvalidValue("defaults must be an object.", param="defaults")
    defaults = {**beneath, **defaults}
    try:
        _request({"prompt": "", **defaults})
    except BadRequest as error:
        raise type(error)(error.message, param=f"defaults.{error.param}" if error.param else "defaults") from None
    said = hashlib.sha256(f"{content_type}\n{json.dumps(beneath, sort_keys=True)}\n".encode() + body).hexdigest()
    return Upload({**DEFAULTS, **defaults}, lines, said)


def _of_form(body: bytes, content_type: str) -> tuple[bytes, str, Any]:
    """The file of lines, its kind (JSON lines unless it says JSON), and what the form says beneath the file's own defaults."""
    sent = form_parts(body, content_type)
    parts = {part.name: part for part in sent}
    if unknown := next((name for name in parts if name not in ("file", "defaults")), None):
        raise UnknownField(f"There is no field {shown(unknown)!r}.", param=shown(unknown))
    if len(parts) < len(sent):
        raise InvalidValue("A field of the form is sent once.")
    file, defaults = parts.get("file"), parts.get("defaults")
    if file is None or not file.file:
        raise MissingField("The lines come as a file of the form: send file.", param="file")
    kind = JSON if file.media_type == JSON else JSON_LINES[0]
    try:
        return bytes(file.data), kind, parse(bytes(defaults.data)) if defaults else {}
    except InvalidJson as error:
        raise InvalidValue("defaults must be a JSON object.", param="defaults") from error


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
