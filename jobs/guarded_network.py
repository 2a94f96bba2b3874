"""Connections to addresses that are allowed and to no other, for URLs that come from clients.

The name is looked up here, every address it has is judged, and the connection goes to one of the very addresses that were judged:
a name server that answers differently the second time is never asked a second time. Host header, SNI and the check of the
certificate keep the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any

import httpcore2

from jobs.hook_url import is_public

MAX_ADDRESSES = 4  # of one name that are tried, one after the other

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Refused(Exception):
    """The URL leads where nobody may be sent. The message is one sentence and does not hold the URL."""


class Unreachable(Exception):
    """No answer came. The message says in a word or two why, and does not hold the URL."""


@asynccontextmanager
async def in_time(seconds: float) -> AsyncIterator[None]:
    """What is done within takes so long at most. Raises Unreachable for whatever a connection may raise."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except (TimeoutError, httpcore2.TimeoutException):
        raise Unreachable("timeout") from None
    except httpcore2.ConnectError as error:
        raise Unreachable("tls" if _is_of_tls(error) else "connect") from None
    except (httpcore2.NetworkError, httpcore2.ProtocolError):
        raise Unreachable("broken answer") from None


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """The door to the network: looks up, judges, connects to what was judged."""

    def __init__(self, allow_private: bool, resolve: Resolve | None = None) -> None:
        self._allow_private = allow_private
        self._resolve = resolve or look_up
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = (await self._addresses(host, port))[:MAX_ADDRESSES]
        for address in addresses[:-1]:  # one that swallows packets leaves time for the next
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._inner.connect_tcp(address, port, timeout and timeout / len(addresses), local_address, socket_options)
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        """Those of the host. One that is not public damns the name: nobody has both for a good reason."""
        try:
            addresses = [str(ip_address(host))]
        except ValueError:
            addresses = list(await self._resolve(host, port))
        if not addresses:
            raise Unreachable("no such name")
        if not self._allow_private and not all(map(is_public, addresses)):
            raise Refused("The name leads to an address that is not on the public internet.")
        return addresses


def _is_of_tls(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__context__  # the pool forgets the cause
    return error is not None


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of a name, best first; none where there is no such name.

    In a daemon thread of its own: a name server that does not answer must hold up neither other work nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def settle(addresses: list[str]) -> None:
        if not found.done():  # the caller may have given up
            found.set_result(addresses)

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            answers = []
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, list(dict.fromkeys(str(answer[4][0]) for answer in answers)))

    threading.Thread(target=ask, name="guarded-dns", daemon=True).start()
    return await found
