"""Who is asking: the one place where a request is told to be a client's, for all doors, before anything of it is read.

Where keys are in force, whatever is not listed as open needs one, an address that there is not included. Where they are not, a key is
not looked at. The answers to who has none are those of each door (`error_answers.respond`).
"""

from __future__ import annotations

import base64
import binascii
import functools
import ipaddress
from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.error_answers import respond, translate
from service.errors import ApiError, HostRefused, KeyInvalid, KeyMissing
from service.keyring import ANYBODY, Keyring
from service.settings import Settings

OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})  # of no client: the page, probes, and what the doors look like
METRICS = "/metrics"
IMAGES = "/images/"  # a picture's URL holds its own permission
PAGE = "/ui/"  # files of the studio page, which asks for a key itself
CLIENT = "celadon.client"  # in the scope of a request
HARMLESS = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing, and what they tell no other page may read

# RFC 6750. Only Bearer is asked for, though Basic is taken: a browser that is asked for Basic would keep what it is given, and send
# it with every request from then on, also with those that other sites make it send.
CHALLENGES: Mapping[type[ApiError], str] = {
    KeyMissing: 'Bearer realm="celadon"',
    KeyInvalid: 'Bearer realm="celadon", error="invalid_token"',
}

SCHEMES: Mapping[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
    "basic": {"type": "http", "scheme": "basic", "description": "any user, and an API key as the password: for clients of A1111"},
}


class Doorkeeper:
    """Puts the client's name into the scope, or answers 401."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app, self._settings, self._keys_in_force = app, settings, settings.keys_in_force
        self._origins = frozenset({*settings.origins, settings.public_url} - {""})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            if not is_open(scope["path"], self._settings):
                scope[CLIENT] = await self._client_of(scope)
        except (ApiError, RedisError) as exc:
            error = translate(exc)
            if error is None:
                raise
            if error.http_status == 401:
                error.param, error.headers["WWW-Authenticate"] = "Authorization", CHALLENGES[type(error)]
            return await respond(error, scope)(scope, receive, send)
        await self._app(scope, receive, send)

    async def _client_of(self, scope: Scope) -> str:
        """Raises KeyMissing, KeyInvalid, HostRefused, RedisError."""
        headers = Headers(scope=scope)
        if self._keys_in_force:
            keyring: Keyring = scope["app"].state.gateway.keyring
            return await keyring.client_of(presented(headers))
        if self._settings.keys == "auto" and is_of_the_internet(headers.get("host", "")):
            raise HostRefused()
        if self._settings.keys == "auto" and scope["method"] not in HARMLESS and self._is_of_another_page(headers):
            raise HostRefused("Pages of other origins may not ask here unless CELADON_CORS_ORIGINS names theirs.")
        return ANYBODY

    def _is_of_another_page(self, headers: Headers) -> bool:
        """Whether a browser says so: a form, or a POST without a body, it sends to other origins unasked, and no key is in the way."""
        origin = headers.get("origin", "")
        if origin in self._origins:
            return False
        if site := headers.get("sec-fetch-site", ""):
            return site not in ("same-origin", "none")
        return bool(origin) and origin.partition("://")[2] != headers.get("host", "")


def is_open(path: str, settings: Settings) -> bool:
    """Whether it answers without a key."""
    return path in OPEN or path.startswith((IMAGES, PAGE)) or (path == METRICS and settings.open_metrics)


@functools.lru_cache(maxsize=64)
def is_of_the_internet(host: str) -> bool:
    """Whether a Host header names what others may resolve. Such a name has no business on a loopback address: it is a page of
    theirs that made it point here (DNS rebinding), to ask with the browser of who sits here, or a proxy that lets everybody in."""
    name = host.partition(":")[0].rstrip(".").lower()
    if "." not in name or name.endswith(".localhost"):
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return True
    return False


def presented(headers: Headers) -> str:
    """The key of `Authorization`: Bearer (RFC 6750), or the password of Basic (RFC 7617). Raises KeyMissing, KeyInvalid."""
    match headers.getlist("authorization"):
        case []:
            raise KeyMissing()
        case [credentials]:
            scheme, _, rest = credentials.strip().partition(" ")
            if scheme.lower() == "bearer":
                return rest.strip()
            if scheme.lower() == "basic":
                return _password(rest.strip())
    raise KeyInvalid("Authorization is not understood: it takes Bearer and an API key, or Basic with the key as password, once.")


def _password(credentials: str) -> str:
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise KeyInvalid() from None
