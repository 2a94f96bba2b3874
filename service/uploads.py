"""Pictures that clients leave here for jobs to come: looked at, made plain, stored under a key that opens for its client alone.

The key is made of the plain picture and its client, as `inputs` does for a picture that comes with a request; so the same picture sent
again is the same one, and `inputs` reads both. `read` gives the bytes to the gateway; a worker reads the key of a job's params from the
store.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.image_store import ImageStore
from jobs.outcomes import RateLimited
from jobs.uploads import TooManyKept, UploadCount
from pipelines.params import EXTENSIONS, MEDIA_TYPES
from service import errors
from service.inputs import Inputs, brought_key
from service.keyring import Keyring
from service.picture_cleaner import Cleaner
from service.picture_end import end
from service.picture_errors import (
    InvalidPicture,
    PictureMoves,
    PictureTooLarge,
    PictureTrailingData,
    PictureTruncated,
    TooManyUploads,
)
from service.picture_head import Head, Moves, head
from service.refusals import refused
from service.settings import Settings
from service.terms import Terms

EXTENSION_OF = {MEDIA_TYPES[name]: extension for name, extension in EXTENSIONS.items()}


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture as it is stored; `expires_at` is Unix seconds."""

    key: str
    width: int
    height: int
    transparent: bool
    size: int
    expires_at: float


class Uploads:
    """Methods may raise RedisError, StorageUnavailable."""

    def __init__(self, count: UploadCount, store: ImageStore, inputs: Inputs, keyring: Keyring, settings: Settings) -> None:
        self._count, self._store, self._inputs = count, store, inputs
        self._keyring, self._settings = keyring, settings
        self._cleaner = Cleaner()

    async def admit(self, client: str) -> None:
        """Before its picture is read. Raises RateLimited, TooManyUploads."""
        may = await self._keyring.admission(client)
        try:
            await self._count.admit(client, self._settings.max_uploads, may)
        except RateLimited as refusal:
            raise refused(refusal, Terms(), may, self._settings) from refusal
        except TooManyKept as refusal:
            raise TooManyUploads(headers={"Retry-After": str(refusal.retry_after_s)}) from refusal

    async def take(self, data: bytes, media_type: str, client: str) -> Upload:
        """Raises InvalidPicture and its kin, UploadsBusy."""
        self._look(data, media_type)
        plain = await self._cleaner.clean(data, self._settings.max_upload_pixels)
        key = brought_key(plain.png, client, "png")
        try:
            await self._store.put(key, plain.png)
        except OSError as error:
            raise errors.StorageUnavailable() from error
        expires_at = await self._count.keep(client, key, self._settings.retention_s)
        return Upload(key, plain.width, plain.height, plain.transparent, len(plain.png), expires_at)

    async def read(self, key: str, client: str) -> bytes:
        """Raises PictureNotFound, also where it is another client's."""
        return await self._inputs.brought("key", key, client)

    async def delete(self, key: str, client: str) -> None:
        """Raises PictureNotFound."""
        await self.read(key, client)
        try:
            await self._store.delete(key)
        except OSError as error:
            raise errors.StorageUnavailable() from error
        await self._count.forget(client, key)

    def _look(self, data: bytes, media_type: str) -> Head:
        """What can be said without decoding anything."""
        try:
            found = head(data)
        except Moves:
            raise PictureMoves(param="file") from None
        except ValueError:
            raise InvalidPicture(param="file") from None
        if media_type and EXTENSION_OF.get(media_type) != found.extension:
            raise InvalidPicture(f"The picture is said to be {media_type}, but it is another kind.", param="file")
        if found.width * found.height > self._settings.max_upload_pixels:
            raise PictureTooLarge(f"A picture has at most {self._settings.max_upload_pixels} pixels.", param="file")
        last = end(data, found.extension)
        if last is None:
            raise PictureTruncated(param="file")
        if last != len(data):
            raise PictureTrailingData(param="file")
        return found
