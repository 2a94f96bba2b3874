"""Connections that follow the primary: each asks where it is when it connects, so a failover needs no restart of anybody.

A shard of the queue is one plain client whose pool is made of these. Sentinels know one primary; the nodes of a Cluster
know who serves which slot. Nothing is remembered but whom to ask, so nothing can be out of date.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, ReadOnlyError, RedisError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.address import Address, Host, Login
from jobs.connection import ServerUnfit

ASK_S = 1.0  # for one node's answer; another knows as much

Answer = TypeVar("Answer")
Find = Callable[[], Awaitable[Host]]
Layout = Mapping[range, tuple[Host, ...]]  # slots -> primary, then replicas


class NotPrimary(RedisConnectionError):
    """The server is not, or no longer, the one that serves this shard. It has done nothing."""


class FollowingConnection(Connection):
    """Asks `find` for the primary each time it connects, and lets a server go that says it is none."""

    def __init__(self, *, find: Find, **options: Any) -> None:
        self._find = find
        super().__init__(**options)

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if not self.is_connected:
            self.host, self.port = await self._find()
        await super().connect_check_health(check_health, retry_socket_connect)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except (ReadOnlyError, AskError, TryAgainError) as error:  # MovedError is an AskError
            await self.disconnect()
            raise NotPrimary(f"Another server serves this shard: {str(error).partition(' ')[0]}") from error


class FollowingTlsConnection(FollowingConnection, SSLConnection):
    """The same with TLS; the certificate must name the host that `find` tells."""


def once_more() -> Retry:
    """Whoever refused as NotPrimary has done nothing, so asking the right one is safe; nothing else is sent twice."""
    return Retry(NoBackoff(), 1, supported_errors=(NotPrimary,))


class Shared(Generic[Answer]):
    """Those who ask at the same time share one answer: after a failover everybody asks at once."""

    def __init__(self, ask: Callable[[], Coroutine[None, None, Answer]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[Answer] | None = None

    async def get(self) -> Answer:
        """Raises what asking raises."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())  # whoever asked may be gone
        return await asyncio.shield(self._asking)


class Sentinels:
    """What the sentinels say of one primary."""

    def __init__(self, address: Address) -> None:
        self._sentinel = Sentinel(address.hosts, sentinel_kwargs=_asking(address.sentinel_login, address))  # type: ignore[no-untyped-call]
        self.name = address.primary
        self._shared = Shared(self._ask)

    async def primary(self) -> Host:
        """Raises RedisError while there is none, or nobody knows."""
        return await self._shared.get()

    async def _ask(self) -> Host:
        host, port = await self._sentinel.discover_master(self.name)
        return str(host), int(port)

    async def aclose(self) -> None:
        await self._sentinel.aclose()


class Cluster:
    """Who serves which slot, as any of the nodes says that answers."""

    def __init__(self, address: Address) -> None:
        self._options = _asking(address.login, address)
        self._seeds = address.hosts
        self._nodes = {host: self._client(host) for host in self._seeds}
        self._shared = Shared(self._ask)

    async def primary(self, key: str) -> Host:
        """Of the slot of this key. Raises RedisError while there is none, or nobody knows."""
        slot = key_slot(key.encode())
        for slots, hosts in (await self.layout()).items():
            if slot in slots:
                return hosts[0]
        raise RedisConnectionError("No node of the Cluster serves this shard.")

    async def layout(self) -> Layout:
        """The primary and the replicas of each range of slots. Raises RedisError where no node answers."""
        return await self._shared.get()

    async def _ask(self) -> Layout:
        """One node after the other, never in the same order: one that is cut off from the others must not stay the first."""
        failure: RedisError | None = None
        for asked in random.sample(list(self._nodes), len(self._nodes)):
            try:
                rows = await self._nodes[asked].execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            except RedisError as error:
                if "cluster support disabled" in str(error):
                    raise ServerUnfit(f"The server at {asked[0]}:{asked[1]} is no node of a Cluster.") from error
                failure = error
                continue
            layout = {range(row[0], row[1] + 1): tuple(_host(node, asked) for node in row[2:]) for row in rows}
            await self._know({host for hosts in layout.values() for host in hosts})
            return layout
        raise failure or RedisConnectionError("No node of the Cluster answers.")

    async def _know(self, members: set[Host]) -> None:
        """Ask these from now on, too: those that the address names may be gone one day."""
        for host in self._nodes.keys() - members - set(self._seeds):
            await self._nodes.pop(host).aclose()
        for host in members - self._nodes.keys():
            self._nodes[host] = self._client(host)

    def _client(self, host: Host) -> Redis:
        return Redis(host=host[0], port=host[1], decode_responses=True, **self._options)

    async def aclose(self) -> None:
        await asyncio.gather(*(client.aclose() for client in self._nodes.values()))


def _asking(login: Login, address: Address) -> dict[str, Any]:
    """Of clients that only ask who is where: another one knows as much, so none is waited for."""
    once = Retry(NoBackoff(), 0)
    known = {"username": login.username, "password": login.password}
    tls = {} if address.tls is None else {"ssl": True, **address.tls}
    return {"protocol": 2, "socket_timeout": ASK_S, "socket_connect_timeout": ASK_S, "retry": once, **known, **tls}


def _host(node: Sequence[Any], asked: Host) -> Host:
    """A node that knows no address of its own is where it was asked."""
    return str(node[0] or asked[0]), int(node[1])
