"""The shards of the queue: one on a single server, several on a Cluster, where each lies whole on one node.

A client's jobs are all in one shard, since their order, bounds and idempotency keys belong together. A job's id says in
which, so that whoever knows the id finds the job without asking around.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.exceptions import RedisError

from jobs.address import Address, parse
from jobs.connection import OPTIONS, ServerUnfit, check_server, connect
from jobs.primary import Cluster, Find, FollowingConnection, FollowingTlsConnection, Sentinels, once_more
from jobs.scripts import Scripts

LAYOUT = 1  # of the keys in Redis (docs/queue.md); it grows with a release that cannot work beside those before it
ON_CLUSTER = 6  # shards, unless it is told: two for each node of a Cluster of three

Answer = TypeVar("Answer")

_MARKED = re.compile(r"[0-9a-f]{32}s([1-9][0-9]{0,3})", re.ASCII)


def shard_of(job_id: str) -> int:
    """The number of its shard, behind an `s`. Ids without one are of shard 0, as all were once."""
    marked = _MARKED.fullmatch(job_id)
    return int(marked[1]) if marked else 0


def make_id(shard: int, stem: str = "") -> str:
    """A new id in this shard, or that of 32 hexadecimal digits."""
    stem = stem or secrets.token_hex(16)
    return f"{stem}s{shard}" if shard else stem


class Shards:
    """Shard n, named `q<n>`, is reached by client n. Clients may be the same; they are closed with this, and so is the `guide`."""

    def __init__(self, clients: Sequence[Redis], guide: Sentinels | Cluster | None = None) -> None:
        self.all = tuple(Scripts(client, f"q{number}") for number, client in enumerate(clients))
        self.guide = guide
        self._agreed = False

    @classmethod
    def of(cls, redis: Redis | Shards) -> Shards:
        """A client alone is one shard."""
        return redis if isinstance(redis, Shards) else cls([redis])

    @property
    def first(self) -> Scripts:
        """Where lies what there is once: cards, secrets, the list of workers, the number of shards."""
        return self.all[0]

    def of_client(self, client: str) -> Scripts:
        return self.all[zlib.crc32(client.encode()) % len(self.all)]

    def of_job(self, job_id: str) -> Scripts:
        """The first for an id of no shard of ours: there nobody knows it either."""
        number = shard_of(job_id)
        return self.all[number if number < len(self.all) else 0]

    def new_id(self, client: str) -> str:
        """For a job of this client."""
        return make_id(self.all.index(self.of_client(client)))

    def beginning_with(self, number: int) -> Iterator[tuple[int, Scripts]]:
        """All shards with their numbers, in a circle."""
        for n in range(number, number + len(self.all)):
            yield n % len(self.all), self.all[n % len(self.all)]

    async def each(self, ask: Callable[[Scripts], Awaitable[Answer]]) -> list[Answer]:
        """What all of them answer. All are asked before the first failure is raised."""
        answers, failures = await _gather(ask, self.all)
        if failures:
            raise failures[0]
        return answers

    async def some(self, ask: Callable[[Scripts], Awaitable[Answer]], shards: Iterable[Scripts]) -> list[Answer]:
        """What those of them answer that can be reached; raises the first failure if that is none of them."""
        answers, failures = await _gather(ask, tuple(shards))
        if failures and not answers:
            raise failures[0]
        return answers

    async def first_of(self, wait: Callable[[Scripts], Awaitable[object]]) -> None:
        """Returns when one of them has answered; the others are no longer waited for. Raises the last failure if none can be asked."""
        waiting = {asyncio.ensure_future(wait(shard)) for shard in self.all}
        try:
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                failed = [error for task in done if (error := task.exception())]
                if len(failed) < len(done):
                    return
                if not waiting or not isinstance(failed[0], (RedisError, OSError)):
                    raise failed[0]
        finally:
            while waiting:  # more than once: redis-py may swallow a cancel, see heed_cancel
                for task in waiting:
                    task.cancel()
                _, waiting = await asyncio.wait(waiting, timeout=0.05)

    async def check(self) -> None:
        """Raises ServerUnfit where a server may lose jobs or the queue has another number of shards, RedisError where one is away."""
        await self.each(self.check_server)
        await self.agree()

    async def check_server(self, shard: Scripts) -> None:
        """Raises ServerUnfit, RedisError."""
        await check_server(shard.redis, in_cluster=isinstance(self.guide, Cluster))

    async def agree(self) -> None:
        """All processes must mean the same by a key and a shard, so the first keeps what it means. Raises ServerUnfit, RedisError."""
        if self._agreed:
            return
        await self._agree_on_keys()
        key = self.first.key("shards")
        if not await self.first.redis.exists(key):  # a server that is full or read-only refuses even a SET that changes nothing
            await self.first.redis.set(key, await self.laid_out() or len(self.all), nx=True)
        if (kept := await self.laid_out()) != len(self.all):
            raise ServerUnfit(f"The queue was laid out in {kept} shards, and here are {len(self.all)}: set CELADON_SHARDS={kept}.")
        self._agreed = True

    async def _agree_on_keys(self) -> None:
        """Another release may have left other keys here, and none of them must be half understood."""
        key = self.first.key("layout")
        if not (kept := await self.first.redis.get(key)):
            await self.first.redis.set(key, LAYOUT, nx=True)  # also on keys from before there was a number: they are these
            kept = await self.first.redis.get(key)
        if (layout := cast(str, kept)) != str(LAYOUT):
            older = layout.isdigit() and int(layout) < LAYOUT
            by = "an older release of Celadon" if older else "a newer release of Celadon: update this one"
            raise ServerUnfit(f"The keys in this Redis have layout {layout}, and this release knows {LAYOUT}. They were left by {by}.")

    async def laid_out(self) -> int:
        """The number that was kept, 0 if none was; jobs from before there was a number are of one shard."""
        number, older = await self.first.redis.mget(self.first.key("shards"), self.first.key("seq"))
        return int(number or (1 if older else 0))

    @property
    def clients(self) -> tuple[Redis, ...]:
        """Each once."""
        return tuple(dict.fromkeys(shard.redis for shard in self.all))

    async def aclose(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self.clients))
        if self.guide:
            await self.guide.aclose()


def open_shards(url: str, count: int = 0) -> Shards:
    """The shards at an address as in CELADON_REDIS_URL; 0 stands for one, and for six on a Cluster. Nothing is sent until
    the first command. Raises ValueError on an address that `jobs.address` does not know."""
    address = parse(url)
    match address.kind:
        case "server":
            return Shards([connect(url)] * (count or 1))
        case "sentinel":
            sentinels = Sentinels(address)
            return Shards([_follow(sentinels.primary, address)] * (count or 1), sentinels)
        case "cluster":
            cluster = Cluster(address)
            names = ["{" + f"q{number}" + "}" for number in range(count or ON_CLUSTER)]
            return Shards([_follow(partial(cluster.primary, name), address) for name in names], cluster)


def _follow(find: Find, address: Address) -> Redis:
    login = {"username": address.login.username, "password": address.login.password}
    kind = FollowingConnection if address.tls is None else FollowingTlsConnection
    options = {**OPTIONS, **login, **(address.tls or {}), "retry": once_more()}
    pool = ConnectionPool(kind, find=find, db=address.db, **options)
    return Redis.from_pool(pool)


async def _gather(
    ask: Callable[[Scripts], Awaitable[Answer]], shards: Sequence[Scripts]
) -> tuple[list[Answer], list[RedisError | OSError]]:
    """Answers and failures, each in the shards' order."""

    async def one(shard: Scripts) -> Answer | RedisError | OSError:
        try:
            return await ask(shard)
        except (RedisError, OSError) as error:
            return error

    found = [await one(shards[0])] if len(shards) == 1 else await asyncio.gather(*map(one, shards))
    failures = [answer for answer in found if isinstance(answer, (RedisError, OSError))]
    return [answer for answer in found if not isinstance(answer, (RedisError, OSError))], failures
