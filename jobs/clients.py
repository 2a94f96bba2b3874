"""Who may ask the service: its clients, what each of them may, and the API keys by which they are known.

A key is 256 random bits behind `cel_`. Its plain SHA-256 is kept in its place: against so many bits there is nothing to guess, so
that neither salt nor a slow hash would add anything, and looking a digest up tells nothing of the key by the time it takes.

All of it is in the first shard: `apikeys` (digest -> JSON), `apikeysused` (digest -> Unix seconds), `clients` (name -> JSON).
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import cast

from redis.asyncio import Redis

from jobs.job import ServiceClass
from jobs.shards import Shards

PREFIX = "cel_"
KEY = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
ID_CHARS = 8  # of the digest, by which a key is named where it may be read


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTerms:
    """What a client may. Where a bound is None, that of the service's settings holds.

    `service_class` is that of jobs which name none, and the best that they may name; None: normal, and any. `weight` is the
    share of the workers, kept in the queue. `per_day` counts the pictures that jobs ask for, by the day in UTC; 0: any number.
    """

    weight: float = 1.0
    service_class: ServiceClass | None = None
    rate_per_s: float | None = None
    burst: int | None = None
    max_queued: int | None = None
    per_day: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as it is kept: never itself. Times are Unix seconds; `used_at` is true to a minute."""

    digest: str
    client: str
    last_four: str
    created_at: float
    expires_at: float | None = None
    used_at: float | None = None

    @property
    def id(self) -> str:
        return self.digest[:ID_CHARS]

    @property
    def hint(self) -> str:
        """By which its owner knows it again."""
        return f"{PREFIX}…{self.last_four}"

    def good(self, now: float) -> bool:
        return self.expires_at is None or now < self.expires_at


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class Clients:
    """Raises redis.exceptions.RedisError."""

    def __init__(self, redis: Redis | Shards) -> None:
        self._shards = Shards.of(redis)
        first = self._shards.first
        self._redis = first.redis
        self._keys, self._used, self._clients = map(first.key, ("apikeys", "apikeysused", "clients"))

    async def add_key(self, client: str, now: float, expires_at: float | None = None) -> str:
        """A new key of this client. It is told here and never again. Raises ValueError on a name that no client can have."""
        _check(client)
        key = PREFIX + secrets.token_urlsafe(32)
        kept = {"client": client, "last_four": key[-4:], "created_at": now, "expires_at": expires_at}
        await self._redis.hset(self._keys, digest_of(key), json.dumps(kept))
        return key

    async def key(self, digest: str) -> ApiKey | None:
        """The key of that digest, whether or not its time is over."""
        text = await self._redis.hget(self._keys, digest)
        return ApiKey(digest=digest, **json.loads(text)) if text else None

    async def keys(self) -> list[ApiKey]:
        """All of them, by client and age."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self._keys)
            pipe.hgetall(self._used)
            kept, used = cast(list[Mapping[str, str]], await pipe.execute())
        found = [ApiKey(digest=d, used_at=float(used[d]) if d in used else None, **json.loads(text)) for d, text in kept.items()]
        return sorted(found, key=lambda key: (key.client, key.created_at, key.digest))

    async def note_use(self, digest: str, now: float) -> None:
        """It was used about now."""
        await self._redis.hset(self._used, digest, f"{now:.0f}")

    async def revoke(self, digest: str) -> bool:
        """Forgets the key; False if it was not known."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._keys, digest)
            pipe.hdel(self._used, digest)
            known, _ = await pipe.execute()
        return bool(known)

    async def terms(self, client: str) -> ClientTerms:
        """What it may; the service's own bounds where nobody said otherwise."""
        text = await self._redis.hget(self._clients, client)
        return ClientTerms(**json.loads(text)) if text else ClientTerms()

    async def set_terms(self, client: str, terms: ClientTerms) -> None:
        """All of them but the weight, which the queue keeps: `JobQueue.set_weight` goes with it. Raises ValueError as `add_key`."""
        _check(client)
        await self._redis.hset(self._clients, client, json.dumps(asdict(terms)))


def _check(client: str) -> None:
    if not NAME.fullmatch(client):
        raise ValueError(f"{client!r} is no name of a client: letters, digits, '.', '_' and '-', at most 64.")
