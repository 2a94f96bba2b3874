"""Pictures that jobs to come begin with: POST /uploads, and what one may do with them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from pipelines.params import MEDIA_TYPES
from service import errors, picture_errors
from service.answers import utc
from service.error_answers import documented
from service.forms import FORM, Part, parse
from service.gateway import BaseUrl, Client, Current

TYPES = frozenset(MEDIA_TYPES.values())

router = APIRouter(prefix="/uploads", tags=["uploads"])


class UploadAnswer(BaseModel):
    """A picture as it is kept: a PNG of pixels alone."""

    key: str = Field(description="for `image` and `mask` of a job")
    url: str = Field(description="where the picture is, for its client")
    width: int
    height: int
    transparent: bool = Field(description="whether it has an alpha channel")
    size: int = Field(description="of the PNG, in bytes")
    expires_at: datetime = Field(description="until then it is kept; sent again, it is kept for longer")


FILE = {"type": "string", "format": "binary"}
BODY = {
    "required": True,
    "content": {
        FORM: {
            "schema": {"type": "object", "required": ["file"], "additionalProperties": False, "properties": {"file": FILE}},
            "example": {"file": "@picture.png"},
        },
        **{media_type: {"schema": FILE} for media_type in sorted(TYPES)},
    },
}
NO_PICTURE = (picture_errors.PictureNotFound, errors.StorageUnavailable, errors.QueueUnavailable)
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {"schema": FILE}}, "description": "the picture"}}


@router.post(
    "",
    status_code=201,
    summary="Leave a picture for jobs to come",
    response_description="kept",
    openapi_extra={"requestBody": BODY},
    responses={
        201: {"headers": {"Location": {"description": "the picture", "schema": {"type": "string"}}}},
        **documented(
            picture_errors.InvalidPicture, picture_errors.PictureTruncated, picture_errors.PictureMoves, picture_errors.PictureTooLarge,
            picture_errors.PictureTrailingData, errors.InvalidValue, errors.BodyTooLarge, errors.UnsupportedMediaType,
            errors.RateLimited, picture_errors.TooManyUploads, picture_errors.UploadsBusy, errors.StorageUnavailable,
            errors.QueueUnavailable, errors.QueueOutOfMemory, errors.QueueReadOnly,
        ),
    },
)  # fmt: skip
async def upload(request: Request, response: Response, gateway: Current, client: Client, base: BaseUrl) -> UploadAnswer:
    """A PNG, JPEG or WebP as the body, or as `file` of a form. It is turned as the camera says; everything but its pixels is dropped."""
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != FORM and media_type not in TYPES:
        raise errors.UnsupportedMediaType("Send the picture as image/png, image/jpeg or image/webp, or in multipart/form-data.")
    await gateway.uploads.admit(client)
    data = await request.body()
    if media_type == FORM:
        data, media_type = _of_form(data, content_type)
    kept = await gateway.uploads.take(data, media_type, client)
    gateway.log.info("uploaded", width=kept.width, height=kept.height, bytes=kept.size)
    url = response.headers["Location"] = f"{base}/uploads/{kept.key}"
    return UploadAnswer(
        key=kept.key, url=url, width=kept.width, height=kept.height, transparent=kept.transparent, size=kept.size,
        expires_at=utc(kept.expires_at),
    )  # fmt: skip


@router.get("/{key:path}", summary="A picture that you left here", response_class=Response, responses={**PNG, **documented(*NO_PICTURE)})
async def get_upload(key: str, gateway: Current, client: Client) -> Response:
    """For its client alone."""
    return Response(await gateway.uploads.read(key, client), media_type="image/png")


@router.delete(
    "/{key:path}", status_code=204, summary="Delete a picture that you left here",
    responses={204: {"description": "deleted"}, **documented(*NO_PICTURE, errors.QueueReadOnly)},
)  # fmt: skip
async def delete_upload(key: str, gateway: Current, client: Client) -> None:
    """Jobs that have not begun with it yet fail with `upload_expired`."""
    await gateway.uploads.delete(key, client)


def _of_form(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The one file, and what it is said to be. Raises InvalidValue."""
    match parse(body, content_type):
        case [Part(name="file", file=True) as part]:
            return bytes(part.data), part.media_type
    raise errors.InvalidValue("The form must hold one file, named file, and nothing else.", param="file")
