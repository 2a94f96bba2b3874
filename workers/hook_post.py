"""One webhook request over HTTP, to addresses that are allowed and to no other.

The name is looked up here, every address it has is judged, and the connection goes to one of the very addresses that were judged:
a name server that answers differently the second time is never asked a second time. Host header, SNI and the check of the
certificate keep the name. There are no redirects, no proxies, no cookies, and nothing of the answer is read but its head.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import httpcore2

from jobs.hook_url import HookUrl, check_url, is_public, parse_url

MAX_ADDRESSES = 4  # of one name that are tried, one after the other

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Refused(Exception):
    """The URL leads where no webhook may go. The message is one sentence and does not hold the URL."""


class Unreachable(Exception):
    """No answer came. The message says in a word or two why, and does not hold the URL."""


class GuardedPost:
    """Posts to public addresses, or to all if `allow_private`. `resolve` and `tls` are for tests.

    Every request has a connection of its own, so that every request is checked.
    """

    def __init__(
        self, *, allow_private: bool = False, timeout_s: float = 10.0, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._allow_private = allow_private
        self._timeout_s = timeout_s
        self._tls = tls or httpcore2.default_ssl_context()
        self._network = _Guarded(allow_private, resolve or look_up)

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        """Status and headers (names in lower case) of the answer; all of it takes `timeout_s` at most. Raises Refused, Unreachable."""
        if reason := check_url(url, self._allow_private):
            raise Refused(reason)
        parts = parse_url(url)
        assert parts is not None, "what has passed the check has parts"
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._post(parts, headers, body)
        except (TimeoutError, httpcore2.TimeoutException):
            raise Unreachable("timeout") from None
        except httpcore2.ConnectError as error:
            raise Unreachable("tls" if _is_of_tls(error) else "connect") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError):
            raise Unreachable("broken answer") from None

    async def _post(self, url: HookUrl, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        where = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        named = [("host", url.netloc), *headers.items()]
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)}
        async with (
            httpcore2.AsyncConnectionPool(self._tls, max_keepalive_connections=0, network_backend=self._network) as pool,
            pool.stream("POST", where, headers=named, content=body, extensions=limits) as answer,
        ):
            return answer.status, {name.decode("ascii").lower(): value.decode("latin-1") for name, value in answer.headers}


class _Guarded(httpcore2.AsyncNetworkBackend):
    """The door to the network: looks up, judges, connects to what was judged."""

    def __init__(self, allow_private: bool, resolve: Resolve) -> None:
        self._allow_private = allow_private
        self._resolve = resolve
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

    threading.Thread(target=ask, name="webhook-dns", daemon=True).start()
    return await found
