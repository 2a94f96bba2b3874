"""What the gateway knows of keys and clients, remembered for a moment: whose a key is, and what that client may.

A key that was revoked, or terms that were changed, count after KEY_TTL_S at the latest; while Redis cannot be asked, what was known
counts for AWAY_S more.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Generic, TypeVar

from redis.exceptions import RedisError

from jobs.clients import KEY, ApiKey, Clients, ClientTerms, digest_of
from jobs.job import SERVICE_CLASSES, ServiceClass
from jobs.outcomes import Admission
from jobs.shards import open_shards
from service.errors import ClassNotAllowed, KeyInvalid
from service.settings import Settings

KEY_TTL_S = 5.0
AWAY_S = 60.0  # longer than a failover takes
MOST = 10_000  # keys, and clients, that are remembered
USED_EVERY_S = 60.0  # of one key by one gateway
FIRST_LOOK_S = 1.0

ANYBODY = "default"  # the client of all requests where no keys are asked for

Value = TypeVar("Value")


class NoKeys(Exception):
    """Keys are asked for, and there is none yet. The message says what to do."""


class Lately(Generic[Value]):
    """What was asked for lately, by name; what is nothing (None) is not remembered, so that nobody can push others out with it."""

    def __init__(self, fetch: Callable[[str], Awaitable[Value | None]]) -> None:
        self._fetch = fetch
        self._known: OrderedDict[str, tuple[float, Value]] = OrderedDict()

    async def get(self, name: str) -> Value | None:
        """Raises RedisError where nothing young enough is known."""
        asked_at, value = self._known.get(name, (-AWAY_S - KEY_TTL_S, None))
        age = time.monotonic() - asked_at
        if age < KEY_TTL_S:
            return value
        try:
            value = await self._fetch(name)
        except RedisError:
            if value is None or age > KEY_TTL_S + AWAY_S:
                raise
            return value
        self._known.pop(name, None)
        if value is not None:
            self._known[name] = time.monotonic(), value
            if len(self._known) > MOST:
                self._known.popitem(last=False)
        return value


class Keyring:
    """Every method may raise RedisError."""

    def __init__(self, clients: Clients, settings: Settings) -> None:
        self._clients, self._settings, self._in_force = clients, settings, settings.keys_in_force
        self._keys, self._terms = Lately(self._ask), Lately(clients.terms)
        self._told: OrderedDict[str, float] = OrderedDict()  # digest -> when its use was last written down

    async def client_of(self, key: str) -> str:
        """Whose key it is. Raises KeyInvalid."""
        found = await self._keys.get(digest_of(key)) if KEY.fullmatch(key) else None
        if found is None or not found.good(time.time()):
            raise KeyInvalid()
        return found.client

    async def class_of(self, client: str, wanted: ServiceClass | None) -> ServiceClass:
        """The class of a job that asks for that one, or names none. Raises ClassNotAllowed."""
        best = (await self._of(client)).service_class
        if best and wanted and SERVICE_CLASSES.index(wanted) < SERVICE_CLASSES.index(best):
            raise ClassNotAllowed(f"Your jobs may be of class {best} at best.", param="service_class")
        return wanted or best or "normal"

    async def admission(self, client: str) -> Admission:
        """Its own bounds, and the service's where it has none."""
        terms, common = await self._of(client), self._settings
        return Admission(
            max_queued=common.max_queued_per_client if terms.max_queued is None else terms.max_queued,
            rate_per_s=common.rate_per_s if terms.rate_per_s is None else terms.rate_per_s,
            burst=common.rate_burst if terms.burst is None else terms.burst,
            per_day=terms.per_day,
        )

    async def _of(self, client: str) -> ClientTerms:
        if not self._in_force:
            return ClientTerms()
        return await self._terms.get(client) or ClientTerms()

    async def _ask(self, digest: str) -> ApiKey | None:
        found = await self._clients.key(digest)
        if found and time.monotonic() - self._told.get(digest, -USED_EVERY_S) >= USED_EVERY_S:
            self._told[digest] = time.monotonic()
            if len(self._told) > MOST:
                self._told.popitem(last=False)
            with suppress(RedisError):  # a server that takes no writes still tells whose a key is
                await self._clients.note_use(digest, time.time())
        return found


async def check_keys(settings: Settings, redis_url: str) -> None:
    """Raises NoKeys where keys are asked for and nobody has one. A Redis that is away is not waited for: without a key that it
    knows nobody gets in."""
    if not settings.keys_in_force:
        return
    async with aclosing(open_shards(redis_url, settings.shards)) as shards:
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                keys = await Clients(shards).keys()
        except (RedisError, OSError):  # a TimeoutError is one
            return
    if not any(key.good(time.time()) for key in keys):
        where = settings.public_host or settings.published_host or settings.host or "every address"
        why = "CELADON_KEYS=required" if settings.keys == "required" else f"{where} can be reached from elsewhere"
        raise NoKeys(
            f"{why}, and there is no API key yet: make one with `celadon keys add NAME`; CELADON_KEYS=none lets everybody in without"
        )
