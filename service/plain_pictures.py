"""Pictures of strangers, made plain: looked at here, decoded by a process of its own; those behind URLs are fetched first."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict

from jobs.guarded_network import Refused, Unreachable
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

REMEMBERED_BYTES = 32 << 20  # of the pictures that came last: a batch brings one with many lines, a dry run is followed by its job
FETCHED_AT_ONCE = 8
OFF = "This service fetches no pictures: send it as a data URL, or to /uploads first."


class PlainPictures:
    """Those of one gateway. `get` is for tests."""

    def __init__(self, settings: Settings, get: PictureGet | None = None) -> None:
        self._settings, self._cleaner = settings, Cleaner()
        self._get = get or PictureGet(allow_private=settings.picture_urls == "any")
        self._turns = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._remembered: OrderedDict[bytes, Plain] = OrderedDict()  # by the digest of what came in
        self._bytes = 0

    async def plain(self, data: bytes, param: str) -> Plain:
        """Raises InvalidPicture and its kin, UploadsBusy, all naming `param`."""
        digest = hashlib.sha256(data).digest()
        if known := self._remembered.get(digest):
            return known
        self._look(data, param)
        made = await self._cleaner.clean(data, self._settings.max_upload_pixels, param)
        self._remember(digest, made)
        return made

    def _remember(self, digest: bytes, made: Plain) -> None:
        if digest not in self._remembered:
            self._remembered[digest] = made
            self._bytes += len(made.png)
        while self._bytes > REMEMBERED_BYTES:
            _, oldest = self._remembered.popitem(last=False)
            self._bytes -= len(oldest.png)

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
        return await self.plain(data, param)

    def _look(self, data: bytes, param: str) -> None:
        """What can be said without decoding anything."""
        try:
            found = head(data)
        except Moves:
            raise PictureMoves(param=param) from None
        except ValueError:
            raise InvalidPicture(param=param) from None
        if found.width * found.height > self._settings.max_upload_pixels:
            raise PictureTooLarge(f"A picture has at most {self._settings.max_upload_pixels} pixels.", param=param)
        last = end(data, found.extension)
        if last is None:
            raise PictureTruncated(param=param)
        if last != len(data):
            raise PictureTrailingData(param=param)
