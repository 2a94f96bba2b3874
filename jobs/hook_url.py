"""Which addresses a webhook may go to. Standard library only: the gateway asks at submit, the worker again when it connects.

A URL comes from a client, and the worker that calls it stands inside the network. So the URL must not lead to anything that only
insiders reach: private networks, this machine, the metadata services of clouds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

MAX_URL_CHARS = 2048

_PORTS = {"https": 443, "http": 80}

# One strict form and one parser, so that nobody can disagree about where the host ends. No user, no fragment, no backslash.
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<netloc>(?:(?P<name>[A-Za-z0-9._-]{1,253})|\[(?P<ipv6>[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]{1,40})\])(?::(?P<port>[0-9]{1,5}))?)"
    r"(?P<target>(?:[/?][!\x22$-\[\]-~]*)?)",
    re.ASCII,
)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)+[A-Za-z](?:[A-Za-z0-9-]{{0,61}}[A-Za-z0-9])?", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)  # as the last label: some resolvers read such a name as an address

_INSIDE = (".localhost", ".local", ".internal", ".home.arpa", ".svc")  # names that mean something only within a network

# What is not the public internet, by the registries of IANA. Python's own tables differ from release to release.
_IPV4_REFUSED = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT, and one cloud's metadata
            "127.0.0.0/8",
            "168.63.129.16/32",  # a cloud's platform service, at a public-looking address
            "169.254.0.0/16",  # link-local: metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
_IPV6_PUBLIC = ip_network("2000::/3")  # everything else is loopback, mapped IPv4, unique local, link-local, multicast ...
_IPV6_REFUSED = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: holds an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
_NAT64 = ip_network("64:ff9b::/96")  # what an IPv6-only network sees of the IPv4 internet: judged by the address inside


@dataclass(frozen=True, slots=True)
class HookUrl:
    """A webhook's URL in parts. `host` is a name or an address without brackets, `netloc` is what the Host header says."""

    scheme: str
    host: str
    port: int
    netloc: str
    target: str


def parse_url(url: str) -> HookUrl | None:
    """The parts, or None where the URL has another form than https://host[:port]/path."""
    parts = _URL.fullmatch(url) if len(url) <= MAX_URL_CHARS else None
    if parts is None:
        return None
    port = int(parts["port"]) if parts["port"] else _PORTS[parts["scheme"]]
    target = parts["target"] if parts["target"].startswith("/") else "/" + parts["target"]
    return HookUrl(parts["scheme"], parts["name"] or parts["ipv6"], port, parts["netloc"], target)


def check_url(url: str, allow_private: bool = False) -> str | None:
    """Why no webhook may go to this URL, as one sentence; None if it may. Names are not looked up: `is_public` judges their answer.

    `allow_private` is for networks whose clients are trusted: any host, any port, http as well as https.
    """
    parts = parse_url(url)
    if parts is None:
        return f"The URL must be https://host[:port]/path in ASCII, up to {MAX_URL_CHARS} characters, without user, password and fragment."
    if not 0 < parts.port <= 65535:
        return "The port must be a number from 1 to 65535."
    address = _address(parts.host)
    if address is None and (":" in parts.host or _NUMBER.fullmatch(parts.host.rstrip(".").rpartition(".")[2])):
        return "The host is neither a name nor an address in its usual form."
    if allow_private:
        return None
    if parts.scheme != "https":
        return "The URL must begin with https://."
    if parts.port != 443 and parts.port < 1024:
        return "The port must be 443, or 1024 and above."
    if address is None:
        return None if _is_public_name(parts.host) else "The host must be a full name on the public internet."
    return None if is_public(parts.host) else "The host is not an address on the public internet."


def is_public(address: str) -> bool:
    """Whether an IP address in text form is an ordinary one of the public internet. Raises ValueError if it is none."""
    ip = ip_address(address)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _IPV4_REFUSED)
    if ip in _NAT64:
        return is_public(str(IPv4Address(ip.packed[-4:])))
    return ip.scope_id is None and ip in _IPV6_PUBLIC and not any(ip in network for network in _IPV6_REFUSED)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_public_name(host: str) -> bool:
    return _NAME.fullmatch(host) is not None and not f".{host.lower()}".endswith(_INSIDE)
