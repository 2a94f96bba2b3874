"""Pictures that clients leave here for jobs to come: looked at, made plain, stored under a key that opens for its client alone.

The key is made of the plain picture and its client, as `inputs` does for a picture that comes with a request; so the same picture sent
again is the same one, and `inputs` reads both. `read` gives the bytes to the gateway; a worker reads the key of a job's params from the
store.
"""

from __future__ import annotations

from dataclasses import dataclass

from jobs.outcomes import RateLimited
from jobs.uploads import TooManyKept, UploadCount
from service.brought import Brought
from service.data_url import check_claim
from service.inputs import Inputs, brought_key
from service.keyring import Keyring
from service.picture_errors import TooManyUploads
from service.refusals import refused
from service.settings import Settings
from service.terms import Terms


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

    def __init__(self, count: UploadCount, brought: Brought, inputs: Inputs, keyring: Keyring, settings: Settings) -> None:
        self._count, self._brought, self._inputs = count, brought, inputs
        self._keyring, self._settings = keyring, settings

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
        """Raises InvalidPicture and its kin, UploadsBusy, TooManyUploads."""
        check_claim(media_type, "file")
        plain = await self._inputs.plain.plain(data, "file")
        key = brought_key(plain.png, client)
        async with self._brought.stored(client, {key: plain.png}):
            expires_at = await self._brought.keep(client, key)
        return Upload(key, plain.width, plain.height, plain.transparent, len(plain.png), expires_at)

    async def read(self, key: str, client: str) -> bytes:
        """Raises PictureNotFound, also where it is another client's."""
        return await self._inputs.brought("key", key, client)

    async def delete(self, key: str, client: str) -> None:
        """Raises PictureNotFound."""
        await self.read(key, client)
        await self._brought.delete(client, key)
