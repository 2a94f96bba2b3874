"""One blocking read for all who follow jobs: whoever waits for the next event of some job shares it with the rest of the process.

A reader of its own for each follower would hold a connection each, and ask again each second; this one asks for all their streams at
once (one connection and one XREAD a shard). Who comes while it blocks lets the server unblock it, so that nobody waits for its end.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

from redis.exceptions import RedisError

from jobs.scripts import Scripts
from jobs.shards import Shards

BLOCK_MS = 1000  # of one read; who waits is not bound to it
PAUSE_S = 0.01  # after a read that found something: events that come together are found together
AGAIN_S = 0.005  # between two wishes to unblock: the first may come before the server blocks

Id = tuple[int, int]  # of an event, as it compares
Found = list[tuple[str, object]]  # streams that have something, and what
NEVER: Id = (1 << 64, 0)  # behind all events


class Followers:
    """Whoever waits, in all shards. To be closed."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._readers: dict[Scripts, _Reader] = {}

    async def wait(self, job_id: str, after: str, seconds: float) -> bool:
        """Whether there is an event of the job behind the id `after`: true at once when there is, false after `seconds`.
        Raises RedisError, OSError."""
        shard = self._shards.of_job(job_id)
        reader = self._readers.setdefault(shard, _Reader(shard))
        return await reader.wait(shard.key(f"e:{job_id}"), _numbers(after), seconds)

    async def aclose(self) -> None:
        for reader in self._readers.values():
            await reader.aclose()


class _Reader:
    """Of one shard. A task of its own reads as long as somebody waits."""

    def __init__(self, shard: Scripts) -> None:
        self._shard = shard
        self._waiting: dict[str, dict[asyncio.Future[bool], Id]] = {}  # by stream
        self._asked: dict[str, Id] = {}  # of the read that is under way: behind which event of each stream
        self._client = 0  # the connection that it goes over, as the server numbers it; 0: none
        self._reading: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None

    async def wait(self, key: str, after: Id, seconds: float) -> bool:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, {})[future] = after
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        elif self._asked.get(key, NEVER) > after and (self._waking is None or self._waking.done()):
            self._waking = asyncio.create_task(self._wake())
        try:
            done, _ = await asyncio.wait({future}, timeout=seconds)
            return bool(done) and future.result()
        finally:
            self._leave(key, future)

    async def aclose(self) -> None:
        for task in (self._reading, self._waking):
            while task is not None and not task.done():  # more than once: see heed_cancel
                task.cancel()
                await asyncio.wait({task}, timeout=0.05)

    def _leave(self, key: str, future: asyncio.Future[bool]) -> None:
        if not future.cancel() and not future.cancelled():
            future.exception()  # told already, or come too late: not to be complained of
        self._waiting[key].pop(future)
        if not self._waiting[key]:
            del self._waiting[key]

    def _unasked(self) -> bool:
        """Whether somebody waits whom the read under way cannot help."""
        return any(self._asked.get(key, NEVER) > min(waits.values()) for key, waits in self._waiting.items())

    async def _read(self) -> None:
        try:
            async with self._shard.redis.client() as connection:
                self._client = await connection.client_id()
                while self._waiting:
                    self._asked = {key: min(waits.values()) for key, waits in self._waiting.items()}
                    behind = {key: f"{ms}-{number}" for key, (ms, number) in self._asked.items()}
                    found = cast(Found, await connection.xread(behind, count=1, block=BLOCK_MS))  # type: ignore[arg-type]
                    self._asked = {}
                    for key, _ in found:
                        self._tell(key)
                    if found:
                        await asyncio.sleep(PAUSE_S)
        except (RedisError, OSError) as error:
            for waits in self._waiting.values():
                for future in waits:
                    if not future.done():
                        future.set_exception(error)
        finally:
            self._client, self._asked = 0, {}

    def _tell(self, key: str) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(True)

    async def _wake(self) -> None:
        """Until the read that is under way has ended, and another one has everybody in it."""
        while self._unasked() and self._reading and not self._reading.done():
            if self._client and self._asked:
                with suppress(RedisError, OSError):  # the read itself tells of it
                    await self._shard.redis.client_unblock(self._client)
            await asyncio.sleep(AGAIN_S)


def _numbers(event_id: str) -> Id:
    ms, _, number = event_id.partition("-")
    return int(ms), int(number or 0)
