"""Pictures of strangers, made plain: looked at here, decoded by a process of its own; those behind URLs are fetched first."""

from __future__ import annotations

import asyncio

from jobs.guarded_network import Refused, Unreachable
from pipelines.params import EXTENSIONS, MEDIA_TYPES
from service.errors import NotSupported
from service.picture_cleaner import Cleaner, Plain
from service.picture_end import end
from service.picture_errors import (
    InvalidPicture,
    PictureMoves,
    PictureTooLarge,
    PictureTrailingData,
    PictureTruncated,
    PictureUrlFailed,
    PictureUrlRefused,
)
from service.picture_fetch import PictureGet
from service.picture_head import Moves, head
from service.settings import Settings

EXTENSION_OF = {MEDIA_TYPES[name]: extension for name, extension in EXTENSIONS.items()}
FETCHED_AT_ONCE = 8
OFF = "This service fetches no pictures: send it as a data URL, or to /uploads first."


class PlainPictures:
    """Those of one gateway. `get` is for tests."""

    def __init__(self, settings: Settings, get: PictureGet | None = None) -> None:
        self._settings, self._cleaner = settings, Cleaner()
        self._get = get or PictureGet(allow_private=settings.picture_urls == "any")
        self._turns = asyncio.Semaphore(FETCHED_AT_ONCE)

    async def plain(self, data: bytes, media_type: str, param: str) -> Plain:
        """Raises InvalidPicture and its kin, UploadsBusy, all naming `param`. An empty `media_type` is no claim."""
        self._look(data, media_type, param)
        return await self._cleaner.clean(data, self._settings.max_upload_pixels, param)

    async def fetched(self, url: str, param: str) -> Plain:
        """Raises NotSupported where the settings say so, PictureUrlRefused, PictureUrlFailed, and what `plain` raises."""
        if self._settings.picture_urls == "none":
            raise NotSupported(OFF, param=param)
        try:
            async with self._turns:
                data = await self._get(url, self._settings.max_picture_bytes)
        except Refused as refusal:
            raise PictureUrlRefused(str(refusal), param=param) from None
        except Unreachable as failure:
            raise PictureUrlFailed(f"No picture came from the URL: {failure}.", param=param) from None
        return await self.plain(data, "", param)

    def _look(self, data: bytes, media_type: str, param: str) -> None:
        """What can be said without decoding anything."""
        try:
            found = head(data)
        except Moves:
            raise PictureMoves(param=param) from None
        except ValueError:
            raise InvalidPicture(param=param) from None
        if media_type and EXTENSION_OF.get(media_type) != found.extension:
            raise InvalidPicture(f"The picture is said to be {media_type}, but it is another kind.", param=param)
        if found.width * found.height > self._settings.max_upload_pixels:
            raise PictureTooLarge(f"A picture has at most {self._settings.max_upload_pixels} pixels.", param=param)
        last = end(data, found.extension)
        if last is None:
            raise PictureTruncated(param=param)
        if last != len(data):
            raise PictureTrailingData(param=param)
