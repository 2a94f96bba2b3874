"""Pictures that a request brings or names: what they are is seen before anything is queued, and they are stored when it is.

A picture that comes with a request is made plain as an upload is, and kept under a key made of its pixels and its client, for as long as
jobs are kept; sent again, it is the same one. A key opens for the client that it was made for, and for nobody else. Pictures of a client's
own jobs may be named too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from jobs.image_store import BadKey, ImageStore, NotFound
from jobs.job import Job
from service import errors
from service.data_url import decoded, is_data_url
from service.picture_errors import InvalidPicture, PictureNotFound, PictureTooLarge
from service.picture_head import Head, head
from service.plain_pictures import PlainPictures

BROUGHT = "in-"  # what keys of pictures begin with that came with a request; ids of jobs never do
MOST_PIXELS = 16_777_216
CONTROL = "controlnet.image"
URLS = ("https://", "http://")
KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}/[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Given:
    """One picture. `data` is what is not stored yet."""

    key: str
    head: Head
    data: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.head.width, self.head.height


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a request begins with; a mask only beside an image. `control` is what a ControlNet is shown."""

    image: Given | None = None
    mask: Given | None = None
    control: Given | None = None

    @property
    def brought(self) -> dict[str, bytes]:
        """Those that came along, by the keys under which they are to be stored."""
        return {given.key: given.data for given in (self.image, self.mask, self.control) if given and given.data is not None}


class Inputs:
    """Methods may raise StorageUnavailable."""

    def __init__(self, store: ImageStore, find_job: Callable[[str, str], Awaitable[Job]], plain: PlainPictures) -> None:
        self._store, self._find_job, self.plain = store, find_job, plain

    async def look(
        self, image: str | bytes | None, mask: str | bytes | None, client: str, *, control: str | None = None, fetch: bool = True
    ) -> Pictures:
        """Raises InvalidPicture and its kin, PictureNotFound, UploadsBusy; of URLs NotSupported, PictureUrlRefused, PictureUrlFailed."""
        if not fetch:
            _refuse_urls({"image": image, "mask": mask, CONTROL: control})
        return Pictures(
            None if image is None else await self._look("image", image, client),
            None if mask is None else await self._look("mask", mask, client),
            None if control is None else await self._look(CONTROL, control, client),
        )

    async def _look(self, param: str, said: str | bytes, client: str) -> Given:
        if isinstance(said, str) and is_url(said):
            plain = await self.plain.fetched(said, param)
        elif isinstance(said, bytes) or is_data_url(said):
            plain = await self.plain.plain(said if isinstance(said, bytes) else decoded(param, said), param)
        else:
            return Given(said, _head(param, await self._stored(param, said, client)))
        return Given(brought_key(plain.png, client), Head("png", plain.width, plain.height, plain.transparent), plain.png)

    async def brought(self, param: str, key: str, client: str) -> bytes:
        """A picture that this client has sent. Raises PictureNotFound, also where it is another's."""
        if not key.startswith(BROUGHT):
            raise PictureNotFound(param=param)
        return await self._stored(param, key, client)

    async def _stored(self, param: str, key: str, client: str) -> bytes:
        folder = key.partition("/")[0]
        if not KEY.fullmatch(key):
            raise PictureNotFound(param=param)
        try:
            if not folder.startswith(BROUGHT):
                job = await self._find_job(folder, client)
                if key not in {image.key for image in job.images}:
                    raise NotFound(key)
            data = await self._store.read(key)
        except (NotFound, BadKey, errors.JobNotFound, errors.JobExpired):
            raise PictureNotFound(param=param) from None
        except OSError as error:
            raise errors.StorageUnavailable() from error
        if folder.startswith(BROUGHT) and folder != _folder(data, client):
            raise PictureNotFound(param=param)
        return data


def _refuse_urls(said: Mapping[str, str | bytes | None]) -> None:
    for param, value in said.items():
        if is_url(value):
            raise errors.NotSupported("Lines of a batch name no URLs: send the picture to /uploads, and its key here.", param=param)


def is_url(said: str | bytes | None) -> bool:
    """Whether the picture is to be fetched."""
    return isinstance(said, str) and said.lower().startswith(URLS)


def comes_along(said: str | bytes | None) -> bool:
    """Whether the picture is here already, and nobody has looked at it."""
    return isinstance(said, bytes) or (isinstance(said, str) and is_data_url(said))


def brought_key(png: bytes, client: str) -> str:
    """Where a picture lies that this client has sent."""
    return f"{_folder(png, client)}/0.png"


def _folder(data: bytes, client: str) -> str:
    return BROUGHT + hashlib.sha256(client.encode() + b"\0" + data).hexdigest()[:40]


def _head(param: str, data: bytes) -> Head:
    """Of a picture that is stored: plain, or one that this service drew."""
    try:
        found = head(data)
    except ValueError as error:
        raise InvalidPicture(f"{param} cannot be taken: {error}.", param=param) from None
    if found.width * found.height > MOST_PIXELS:
        raise PictureTooLarge(f"{param} has more than {MOST_PIXELS} pixels.", param=param)
    return found
