"""Where Redis is: the address in CELADON_REDIS_URL, read and checked before anything connects.

    redis://[user:password@]host[:port][/db]     one server; rediss:// with TLS, unix:///path/of/socket
    redis+sentinel://[user:password@]host[:port],host[:port].../primary[/db][?sentinel_username=..&sentinel_password=..]
    redis+cluster://[user:password@]host[:port],host[:port]...
    rediss+sentinel://, rediss+cluster://        the same with TLS everywhere, and its options behind the question mark:
        ssl_ca_certs, ssl_certfile, ssl_keyfile (paths), ssl_check_hostname (true or false)

Names and passwords are percent-encoded. No message and no `repr` here shows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote

from redis.asyncio.connection import ConnectionPool

SENTINEL, CLUSTER = "redis+sentinel", "redis+cluster"
WITH_TLS = {"rediss+sentinel": SENTINEL, "rediss+cluster": CLUSTER}
ONE_SERVER = ("redis", "rediss", "unix")
SENTINEL_PORT, PORT = 26379, 6379
SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
TLS_PATHS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
TLS_OPTIONS = TLS_PATHS | {"ssl_check_hostname"}

Host = tuple[str, int]

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who we are to a server; None where it does not ask."""

    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One server (`url`), the primary called `primary` that the sentinels at `hosts` know, or the cluster that `hosts` are part of.

    `tls` are redis-py's options of a connection with TLS; None is one without. What `url` says of it stays there.
    """

    kind: Literal["server", "sentinel", "cluster"]
    url: str = field(default="", repr=False)
    hosts: tuple[Host, ...] = ()
    primary: str = ""
    db: int = 0
    login: Login = field(default=Login())
    sentinel_login: Login = field(default=Login())
    tls: Mapping[str, str | bool] | None = None


def parse(url: str) -> Address:
    """Raises ValueError with one sentence that says what is wrong and shows no secret."""
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    place, _, path = rest.partition("/")
    user, _, hosts = place.rpartition("@")
    if scheme in ONE_SERVER:
        return _one_server(url, hosts)
    allowed = TLS_OPTIONS if scheme in WITH_TLS else frozenset()
    kind = WITH_TLS.get(scheme, scheme)
    if kind == CLUSTER:
        options = _options(query, allowed)
        if path not in ("", "0"):
            raise ValueError("a Cluster has database 0 only: nothing may follow the hosts")
        return Address(kind="cluster", hosts=_hosts(hosts, PORT), login=_login(user), tls=_tls(scheme, options))
    if kind != SENTINEL:
        raise ValueError(
            f"must begin with redis://, rediss://, unix://, {SENTINEL}://, {CLUSTER}:// or, with TLS, {' or '.join(WITH_TLS)}://"
        )
    primary, _, db = path.partition("/")
    if not primary:
        raise ValueError(f"the primary's name must follow the hosts: {SENTINEL}://host:port,host:port/name")
    if db and not (db.isascii() and db.isdigit()):
        raise ValueError("the database, behind the primary's name, is a number")
    options = _options(query, SENTINEL_OPTIONS | allowed)
    return Address(
        kind="sentinel",
        hosts=_hosts(hosts, SENTINEL_PORT),
        primary=unquote(primary),
        db=int(db or 0),
        login=_login(user),
        sentinel_login=Login(username=options.get("sentinel_username"), password=options.get("sentinel_password")),
        tls=_tls(scheme, options),
    )


def without_secret(url: str) -> str:
    """The URL without user, password and options."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def _one_server(url: str, hosts: str) -> Address:
    """Everything behind the scheme is redis-py's; making a connection, which sends nothing, shows whether it takes it."""
    if "," in hosts:
        raise ValueError(f"{url.partition('://')[0]}:// is one server; several hosts need {SENTINEL}:// or {CLUSTER}://")
    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError):
        raise ValueError("host, port, database or an option behind the question mark is no good") from None
    return Address(kind="server", url=url)


def _options(query: str, known: frozenset[str]) -> Mapping[str, str]:
    found = dict(parse_qsl(query, keep_blank_values=True))
    if found.keys() - known:
        raise ValueError(f"behind the question mark may stand: {', '.join(sorted(known)) or 'nothing'}")
    return found


def _tls(scheme: str, options: Mapping[str, str]) -> Mapping[str, str | bool] | None:
    """Files that are not there, or a switch that is none, are told now and not at each connection."""
    if scheme not in WITH_TLS:
        return None
    switch = options.get("ssl_check_hostname", "true").lower()
    if switch not in ("true", "false"):
        raise ValueError("ssl_check_hostname is true or false")
    found: dict[str, str | bool] = {name: options[name] for name in sorted(TLS_PATHS & options.keys())}
    if missing := [name for name, path in found.items() if not Path(str(path)).is_file()]:
        raise ValueError(f"no file at {' and '.join(missing)}")
    if ("ssl_certfile" in found) != ("ssl_keyfile" in found):
        raise ValueError("ssl_certfile and ssl_keyfile belong together")
    return found | {"ssl_check_hostname": switch == "true"}


def _login(text: str) -> Login:
    username, _, password = text.partition(":")
    return Login(username=unquote(username) or None, password=unquote(password) or None)


def _hosts(text: str, default_port: int) -> tuple[Host, ...]:
    found = [_HOST.fullmatch(part) for part in text.split(",")]
    hosts = tuple((host[1].strip("[]"), int(host[2] or default_port)) for host in found if host)
    if len(hosts) < len(found) or any(port > 65_535 for _, port in hosts):
        raise ValueError("hosts are host or host:port, parted by commas")
    return hosts
