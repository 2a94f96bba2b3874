"""One webhook request over HTTP, to addresses that are allowed and to no other (`jobs.guarded_network`).

There are no redirects, no proxies, no cookies, and nothing of the answer is read but its head.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping

import httpcore2

from jobs.guarded_network import GuardedNetwork, Refused, Resolve, in_time
from jobs.hook_url import HookUrl, check_url, parse_url


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
        self._network = GuardedNetwork(allow_private, resolve)

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        """Status and headers (names in lower case) of the answer; all of it takes `timeout_s` at most. Raises Refused, Unreachable."""
        if reason := check_url(url, self._allow_private):
            raise Refused(reason)
        parts = parse_url(url)
        assert parts is not None, "what has passed the check has parts"
        async with in_time(self._timeout_s):
            return await self._post(parts, headers, body)

    async def _post(self, url: HookUrl, headers: Mapping[str, str], body: bytes) -> tuple[int, Mapping[str, str]]:
        where = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        named = [("host", url.netloc), *headers.items()]
        limits = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), self._timeout_s)}
        async with (
            httpcore2.AsyncConnectionPool(self._tls, max_keepalive_connections=0, network_backend=self._network) as pool,
            pool.stream("POST", where, headers=named, content=body, extensions=limits) as answer,
        ):
            return answer.status, {name.decode("ascii").lower(): value.decode("latin-1") for name, value in answer.headers}
