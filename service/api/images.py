"""Finished pictures: signed, expiring URLs; ranges, HEAD and ETag."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from jobs.image_store import BadSignature, Expired, NotFound
from pipelines.params import EXTENSIONS, MEDIA_TYPES
from service import errors
from service.error_answers import documented
from service.gateway import Current, Gateway

KEY = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,63}}/[0-9]{{1,9}}-[0-9]{{1,4}}\.({'|'.join(EXTENSIONS.values())})", re.ASCII)
RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,15})\s*-\s*([0-9]{0,15})\s*", re.IGNORECASE)
MEDIA_TYPE_OF = {EXTENSIONS[name]: media_type for name, media_type in MEDIA_TYPES.items()}
SENT_ON_S = 300  # for so long the store answers whom we send on

router = APIRouter(tags=["images"])

PICTURE = {"content": {media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {**PICTURE, "description": "the picture"},
    206: {**PICTURE, "description": "the part that Range asks for"},
    304: {"description": "the client has it already"},
    307: {"description": "where the picture is, for some minutes; with CELADON_IMAGE_DELIVERY=redirect only"},
    **documented(
        errors.BadSignature,
        errors.ImageNotFound,
        errors.LinkExpired,
        errors.ImageErased,
        errors.RangeNotSatisfiable,
        errors.StorageUnavailable,
        errors.QueueUnavailable,
    ),
}

Exp = Annotated[str, Query(description="when the URL expires, Unix seconds")]
Kid = Annotated[str, Query(description="which secret signed it")]
Sig = Annotated[str, Query(description="the signature")]
IfNoneMatch = Annotated[str, Header(description="ETags that the client has; if this picture is among them, 304")]
RangeHeader = Annotated[str, Header(alias="Range", description="one range of bytes, as in bytes=0-1023")]
IfRange = Annotated[str, Header(description="give the range only if the ETag is still this one, else everything")]


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes `first` to `last`, both included."""

    first: int
    last: int


@router.head("/images/{key:path}", summary="Size and type of a picture", responses=RESPONSES, response_class=Response)
@router.get("/images/{key:path}", summary="A picture", responses=RESPONSES, response_class=Response)
async def image(
    key: str,
    request: Request,
    gateway: Current,
    exp: Exp = "",
    kid: Kid = "",
    sig: Sig = "",
    asked: RangeHeader = "",
    if_none_match: IfNoneMatch = "",
    if_range: IfRange = "",
) -> Response:
    """The URL comes from a job's `images`; nothing else opens it. GET and HEAD share a signature. Where the service is told to, it
    sends on to the store, by a URL that is good for minutes."""
    if gateway.settings.image_delivery == "redirect":
        return await _sent_on(gateway, request.method, key, exp, kid, sig)
    data = await _read(gateway, key, exp, kid, sig)
    headers = _headers(key, int(exp))
    if _matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    media_type = MEDIA_TYPE_OF.get(key.rpartition(".")[2], "application/octet-stream")
    whole = request.method == "HEAD" or if_range not in ("", headers["ETag"])  # RFC 9110: ranges are for GET
    part = None if whole else _part(asked, len(data))
    if part is not None:
        headers["Content-Range"] = f"bytes {part.first}-{part.last}/{len(data)}"
        data = data[part.first : part.last + 1]
    if request.method == "GET":
        gateway.metrics.image_served(len(data))
    return Response(data, 200 if part is None else 206, headers, media_type)


async def _read(gateway: Gateway, key: str, exp: str, kid: str, sig: str) -> bytes:
    async with _opened(gateway, key, exp, kid, sig):
        return await gateway.store.read(key)


async def _sent_on(gateway: Gateway, method: str, key: str, exp: str, kid: str, sig: str) -> Response:
    """The store is asked first, so that a picture that was erased is told as one, and a store that is away as well."""
    async with _opened(gateway, key, exp, kid, sig):
        size = await gateway.store.size(key)
        seconds = max(1, min(SENT_ON_S, int(exp) - int(time.time())))
        place = await gateway.store.link(key, method, seconds)
    if place is None:
        raise errors.StorageUnavailable()
    if method == "GET":
        gateway.metrics.image_served(size)
    return Response(status_code=307, headers={"Location": place, "Cache-Control": f"private, max-age={seconds // 2}"})


@asynccontextmanager
async def _opened(gateway: Gateway, key: str, exp: str, kid: str, sig: str) -> AsyncIterator[None]:
    """Raises ImageNotFound for a key that nobody could have been given; then BadSignature, LinkExpired; ImageErased and
    StorageUnavailable for what the store raises within."""
    if not KEY.fullmatch(key):
        raise errors.ImageNotFound()
    try:
        await gateway.links.verify(key, exp, kid, sig)
        yield
    except BadSignature:
        raise errors.BadSignature() from None
    except Expired:
        raise errors.LinkExpired() from None
    except NotFound:  # it was there when the URL was signed
        raise errors.ImageErased() from None
    except OSError as error:
        raise errors.StorageUnavailable() from error


def _headers(key: str, expires: int) -> dict[str, str]:
    """A key is written once and never changed, so its name is as good a validator as its content."""
    return {
        "ETag": f'"{key.replace("/", "-")}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={max(0, expires - int(time.time()))}",
        "Content-Disposition": f'inline; filename="celadon-{key.replace("/", "-")}"',
    }


def _matches(if_none_match: str, etag: str) -> bool:
    """The weak comparison of RFC 9110, section 13.1.2."""
    return etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")) or if_none_match.strip() == "*"


def _part(asked: str, size: int) -> Part | None:
    """The one range asked for (RFC 9110, section 14); None sends all of it, as for several ranges or none that is valid."""
    match = RANGE.fullmatch(asked)
    if match is None:
        return None
    first, last = match.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    if not first:  # the last so many bytes
        part = Part(max(0, size - int(last)), size - 1)
        satisfiable = int(last) > 0
    else:
        part = Part(int(first), min(int(last), size - 1) if last else size - 1)
        satisfiable = part.first < size
    if not satisfiable:
        raise errors.RangeNotSatisfiable(headers={"Content-Range": f"bytes */{size}"}, param="Range")
    return part
