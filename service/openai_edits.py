"""The body of /v1/images/edits, a form with files, as the request of generations and its pictures. Facts: openai-python 3.52."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipelines.card import ModelCard
from service.drafts import Draft, fingerprint
from service.error_answers import from_validation
from service.errors import InvalidValue, MissingField, NotSupported, UnsupportedMediaType, shown
from service.openai_images import ImagesRequest

FIELDS, FILES = 40, 20
FILE_NAMES = ("image", "image[]", "mask")
NUMBERS = ("n", "output_compression", "partial_images")
TRUTH = {"true": True, "false": False}
NOT_DONE = ("input_fidelity", "markup", "frame_count", "frame_duration_ms", "complexity", "svg")
FORM: Mapping[str, Any] = {  # for the OpenAPI document
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image", "prompt"],
                "properties": {
                    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP"},
                    "mask": {"type": "string", "format": "binary", "description": "of the same size; transparent parts are drawn"},
                    **{
                        name: {"type": kind}
                        for kind, names in {
                            "string": ("prompt", "model", "size", "quality", "response_format", "output_format", "background", "user"),
                            "integer": NUMBERS,
                            "boolean": ("stream",),
                        }.items()
                        for name in names
                    },
                },
            }
        }
    },
}


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to be drawn, and from what. `said` is one value for equal forms."""

    body: ImagesRequest
    image: bytes
    mask: bytes | None
    said: str

    def to_draft(self, card: ModelCard) -> Draft:
        """Raises BadRequest and its kin."""
        return replace(self.body.to_draft(card), image=self.image, mask=self.mask)


async def read(request: Request) -> Edit:
    """Raises UnsupportedMediaType, MissingField, UnknownField, InvalidValue, NotSupported."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMediaType("The body must be sent as multipart/form-data.")
    try:
        async with request.form(max_files=FILES, max_fields=FIELDS) as form:
            files = {name: await _file(form, name) for name in ("image", "mask")}
            body = _body({name: value for name, value in form.multi_items() if name not in FILE_NAMES}, form)
    except HTTPException as error:
        if error.status_code != 400:
            raise  # too long
        raise InvalidValue("The form cannot be read, or has too many parts.") from None
    if files["image"] is None:
        raise MissingField("An edit begins with a picture: send image.", param="image")
    digests = [hashlib.sha256(data).hexdigest() if data else "" for data in files.values()]
    return Edit(body, files["image"], files["mask"], fingerprint({"form": body.model_dump(exclude_unset=True), "files": digests}))


async def _file(form: FormData, name: str) -> bytes | None:
    sent = [*form.getlist(name), *form.getlist(f"{name}[]")]
    if len(sent) > 1:
        raise NotSupported("One picture is taken; several are not put together here.", param=name)
    if not sent:
        return None
    if not isinstance(sent[0], UploadFile):
        raise InvalidValue(f"{name} must be a file of the form.", param=name)
    return await sent[0].read()


def _body(fields: Mapping[str, Any], form: FormData) -> ImagesRequest:
    for name, value in fields.items():
        if name in NOT_DONE:
            raise NotSupported(f"{name} is not done here.", param=name)
        if not isinstance(value, str) or len(form.getlist(name)) > 1:
            raise InvalidValue("A field of the form is a text, and is sent once.", param=shown(name))
    try:
        return ImagesRequest.model_validate({name: _value(name, value) for name, value in fields.items()})
    except ValidationError as error:
        raise from_validation([{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors()]) from None


def _value(name: str, text: str) -> object:
    """A form holds texts only. What is no number stays a text, and is refused as such."""
    if name in NUMBERS and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    return TRUTH.get(text.lower(), text) if name == "stream" else text
