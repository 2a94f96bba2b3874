"""A picture from the URL that a client names: connections go to allowed addresses alone (`jobs.guarded_network`), redirects included."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import urljoin

import httpcore2

from jobs.guarded_network import GuardedNetwork, Refused, Resolve, Unreachable, in_time
from jobs.hook_url import HookUrl, check_url, parse_url

REDIRECTS = frozenset({301, 302, 303, 307, 308})
MOST_REDIRECTS = 3
TIMEOUT_S = 15.0  # from the first look-up to the last byte, redirects included
HEADERS = [("accept", "image/png, image/jpeg, image/webp"), ("accept-encoding", "identity"), ("user-agent", "celadon")]


class PictureGet:
    """Fetches from public addresses over https, or from any over http too if `allow_private`. `resolve` and `tls` are for tests.

    No proxies, no cookies, nothing of the client's: what answers learns that this service asks, and for what.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private, self._timeout_s = allow_private, timeout_s
        self._tls = tls or httpcore2.default_ssl_context()
        self._network = GuardedNetwork(allow_private, resolve)

    async def __call__(self, url: str, most_bytes: int) -> bytes:
        """What lies there. Raises Refused, and Unreachable also where it is larger, or no answer with status 200."""
        async with in_time(self._timeout_s):
            for _ in range(MOST_REDIRECTS + 1):
                if reason := check_url(url, self._allow_private):
                    raise Refused(reason)
                parts = parse_url(url)
                assert parts is not None, "what has passed the check has parts"
                found = await self._get(parts, most_bytes)
                if isinstance(found, bytes):
                    return found
                url = urljoin(url, found).partition("#")[0]
        raise Refused(f"The URL leads on more than {MOST_REDIRECTS} times.")

    async def _get(self, url: HookUrl, most_bytes: int) -> bytes | str:
        """The bytes, or where they are instead. Every request has a connection of its own, so that every one is checked."""
        where = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)}
        async with (
            httpcore2.AsyncConnectionPool(self._tls, max_keepalive_connections=0, network_backend=self._network) as pool,
            pool.stream("GET", where, headers=[("host", url.netloc), *HEADERS], extensions=limits) as answer,
        ):
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
            if answer.status in REDIRECTS and headers.get("location"):
                return headers["location"]
            if answer.status != 200:
                raise Unreachable(f"status {answer.status}")
            return await _read(answer, headers, most_bytes)


async def _read(answer: httpcore2.Response, headers: Mapping[str, str], most_bytes: int) -> bytes:
    """Not a byte more than it may be, whatever the head promises."""
    if headers.get("content-encoding", "identity") != "identity":
        raise Unreachable("an encoding that was not asked for")
    length = headers.get("content-length", "")
    data = bytearray()
    if not (length.isdigit() and int(length) > most_bytes):
        async for piece in answer.aiter_stream():
            data += piece
            if len(data) > most_bytes:
                break
        else:
            return bytes(data)
    raise Unreachable(f"larger than {most_bytes} bytes")
