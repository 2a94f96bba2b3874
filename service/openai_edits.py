"""The body of /v1/images/edits, a form with files, as the request of generations and its pictures. Facts: openai-python 3.52."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from starlette.requests import Request

from pipelines.card import ModelCard
from service.data_url import check_claim
from service.drafts import Draft, fingerprint
from service.error_answers import from_validation
from service.errors import InvalidValue, MissingField, NotSupported, UnknownField, shown
from service.forms import Part, parse
from service.openai_images import ImagesRequest

FILE_NAMES = ("image", "image[]", "mask")
NUMBERS = ("n", "output_compression", "partial_images")
TRUTH = {"true": True, "false": False}
NOT_DONE = ("input_fidelity", "markup", "frame_count", "frame_duration_ms", "complexity", "svg")
FILE = {"type": "string", "format": "binary"}


def _form(*only: str) -> dict[str, Any]:
    """The body for the OpenAPI document: files, and the fields of generations as the texts of a form; or a few of them."""
    fields = ImagesRequest.model_json_schema()["properties"]
    for field in fields.values():  # what may be null is left out of a form
        field.update(next((kind for kind in field.pop("anyOf", ()) if kind != {"type": "null"}), {}))
        field.pop("default", None)
    files = {"image": {**FILE, "description": "PNG, JPEG or WebP"}, "mask": {**FILE, "description": "its transparent parts are drawn"}}
    known = {name: field for name, field in {**files, **fields}.items() if name in only or not only}
    needed = [name for name in ("image", "prompt") if name in known]
    schema = {"type": "object", "required": needed, "properties": known, "additionalProperties": False}
    example = {"prompt": "a green apple", "image": "@picture.png", "size": "128x128"}
    example = {name: value for name, value in example.items() if name in known}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema, "example": example}}}


OF_VARIATIONS = ("image", "model", "n", "size", "response_format", "user")
FORM, VARIATION = _form(), _form(*OF_VARIATIONS)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be drawn, and from what. `said` is one value for equal forms."""

    body: ImagesRequest
    image: bytes
    mask: bytes | None
    said: str
    variation: bool = False

    def to_draft(self, card: ModelCard) -> Draft:
        """Raises BadRequest and its kin."""
        draft = self.body.to_draft(card)
        if self.variation:  # without a prompt there is nothing to be guided to
            return replace(draft, kind="variations", image=self.image, guidance=1.0)
        return replace(draft, image=self.image, mask=self.mask)


async def read_variation(request: Request) -> Edit:
    """Of a picture alone. Raises UnsupportedMediaType, MissingField, UnknownField, InvalidValue, InvalidPicture,
    NotSupported."""
    content_type = request.headers.get("content-type", "")
    parts = parse(await request.body() if content_type else b"", content_type)
    if unknown := next((part.name for part in parts if part.name not in OF_VARIATIONS), None):
        raise UnknownField(f"There is no field {shown(unknown)!r}.", param=shown(unknown))
    image = _file([part for part in parts if part.name == "image"], "image")
    body = _body([Part("prompt"), *(part for part in parts if part.name != "image")])
    if image is None:
        raise MissingField("A variation begins with a picture: send image.", param="image")
    said = {"variation": body.model_dump(exclude_unset=True), "files": [hashlib.sha256(image).hexdigest()]}
    return Edit(body, image, None, fingerprint(said), variation=True)


async def read(request: Request) -> Edit:
    """Of an edit. Raises UnsupportedMediaType, MissingField, UnknownField, InvalidValue, InvalidPicture,
    NotSupported."""
    content_type = request.headers.get("content-type", "")
    parts = parse(await request.body() if content_type else b"", content_type)
    files = {name: _file([part for part in parts if part.name in (name, f"{name}[]")], name) for name in ("image", "mask")}
    body = _body([part for part in parts if part.name not in FILE_NAMES])
    if files["image"] is None:
        raise MissingField("An edit begins with a picture: send image.", param="image")
    digests = [hashlib.sha256(data).hexdigest() if data else "" for data in files.values()]
    return Edit(body, files["image"], files["mask"], fingerprint({"form": body.model_dump(exclude_unset=True), "files": digests}))


def _file(sent: Sequence[Part], name: str) -> bytes | None:
    if len(sent) > 1:
        raise NotSupported("One picture is taken; several are not put together here.", param=name)
    if sent and not sent[0].file:
        raise InvalidValue(f"{name} must be a file of the form.", param=name)
    if not sent:
        return None
    check_claim(sent[0].media_type, name)
    return bytes(sent[0].data)


def _body(parts: Sequence[Part]) -> ImagesRequest:
    fields: dict[str, object] = {}
    for part in parts:
        if part.name in NOT_DONE:
            raise NotSupported(f"{part.name} is not done here.", param=part.name)
        if part.file or part.name in fields:
            raise InvalidValue("A field of the form is a text, and is sent once.", param=shown(part.name))
        fields[part.name] = _value(part.name, part.text)
    try:
        return ImagesRequest.model_validate(fields)
    except ValidationError as error:
        raise from_validation([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None


def _value(name: str, text: str) -> object:
    """A form holds texts only. What is no number stays a text, and is refused as such."""
    if name in NUMBERS and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return TRUTH.get(text.lower(), text) if name == "stream" else text
