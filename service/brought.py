"""Pictures that clients bring, in the store: bounded in number by `CELADON_MAX_UPLOADS`, whichever way they come in, and gone again where
what they came for is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from jobs.image_store import ImageStore
from jobs.uploads import StillLeaving, TooManyKept, UploadCount
from service.errors import StorageUnavailable
from service.picture_errors import TooManyUploads
from service.settings import Settings
from service.unbroken import unbroken


class Brought:
    """Methods may raise RedisError."""

    def __init__(self, count: UploadCount, store: ImageStore, settings: Settings) -> None:
        self._count, self._store, self._settings = count, store, settings

    @asynccontextmanager
    async def stored(self, client: str, pictures: Mapping[str, bytes]) -> AsyncIterator[None]:
        """They lie under their keys while this is entered, and stay if it ends well. Of an end that Redis hid, or a cancel, nobody
        knows whether a job begins with them: they stay then, and count, until their time is over. A cancel before they are all stored
        leaves none. Raises TooManyUploads, StorageUnavailable."""
        taken = dict[str, bool]()
        try:
            await unbroken(self._hold(client, pictures, taken))
            for key, data in pictures.items():
                await unbroken(self._put(key, data))
        except BaseException:
            await unbroken(self._drop(client, taken))
            raise
        try:
            yield
        except RedisError:
            raise
        except Exception:
            await unbroken(self._drop(client, taken))
            raise
        for key in pictures:
            await self.keep(client, key)

    async def keep(self, client: str, key: str) -> float:
        """Returns until when (Unix seconds)."""
        return await self._count.keep(client, key, self._settings.retention_s)

    async def delete(self, client: str, key: str) -> None:
        """For its client; whoever comes with it meanwhile waits. Raises StorageUnavailable."""
        await unbroken(self._delete(client, key))

    async def _delete(self, client: str, key: str) -> None:
        try:
            await self._count.leave(client, key)
        except StillLeaving as error:
            raise StorageUnavailable() from error
        await self._erase(client, key)

    async def _erase(self, client: str, key: str) -> None:
        try:
            await self._store.delete(key)
        except OSError as error:
            await self._count.stay(client, key)
            raise StorageUnavailable() from error
        await self._count.forget(client, key)

    async def _hold(self, client: str, keys: Collection[str], taken: dict[str, bool]) -> None:
        """All have their places, or none, before the first of them is stored. `taken` hears of each whether it is held, or was kept."""
        try:
            held = frozenset(await self._count.hold(client, keys, self._settings.max_uploads, self._settings.retention_s))
        except TooManyKept as refusal:
            raise TooManyUploads(headers={"Retry-After": str(refusal.retry_after_s)}) from refusal
        except StillLeaving as error:
            raise StorageUnavailable() from error
        taken.update((key, key in held) for key in keys)

    async def _put(self, key: str, data: bytes) -> None:
        try:
            await self._store.put(key, data)
        except OSError as error:
            raise StorageUnavailable() from error

    async def _drop(self, client: str, taken: Mapping[str, bool]) -> None:
        """What goes wrong here leaves a picture that counts; the client hears what went wrong before."""
        for key, held in taken.items():
            try:
                if await self._count.drop(client, key, held=held):
                    await self._erase(client, key)
            except (RedisError, StillLeaving, StorageUnavailable):
                pass
