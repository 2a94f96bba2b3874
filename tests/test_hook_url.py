"""Where webhooks may go."""

from __future__ import annotations

import pytest

from jobs.hook_url import MAX_URL_CHARS, HookUrl, check_url, is_public, parse_url

PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com/",
        "https://hooks.example.com:8443/a/b;c?d=e&f=%20@g:h",
        "https://xn--bcher-kva.example/hook",
        "https://example.com?x=1",
        "https://1.1.1.1/hook",
        "https://[2606:4700::1111]:4443/hook",
    ],
)
def test_ordinary_urls_pass(url: str) -> None:
    assert check_url(url) is None
    assert check_url(url, allow_private=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "http://127.0.0.1:8000/hook",
        "https://localhost/hook",
        "https://a.localhost/hook",
        "https://redis/hook",
        "https://redis.default.svc/hook",
        "https://redis.default.svc.cluster.local/hook",
        "https://metadata.google.internal/x",
        "https://example.com:80/",
        "https://example.com:22/",
        *(f"https://{address}/hook" for address in PRIVATE if ":" not in address),
        *(f"https://[{address}]/hook" for address in PRIVATE if ":" in address and "%" not in address),
    ],
)
def test_private_urls_pass_only_where_they_are_allowed(url: str) -> None:
    assert check_url(url)
    assert check_url(url, allow_private=True) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "//example.com/hook",
        "ftp://example.com/hook",
        "file:///etc/passwd",
        "https:///hook",
        "https://",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/#fragment",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://example.com\r\nx: y/",
        "https://bücher.example/",
        "https://exämple.com/\u2028",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:99999999999/",
        "https://example.com:١/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://127.0.0.1./",
        "https://256.1.1.1/",
        "https://[::1%25eth0]/",
        "https://[127.0.0.1]/",
        "https://[fe80::1/",
        "https://" + "a" * MAX_URL_CHARS + ".com/",
        "https://example.com/" + "a" * MAX_URL_CHARS,
    ],
)
def test_malformed_urls_never_pass(url: str) -> None:
    assert check_url(url)
    assert check_url(url, allow_private=True)


@pytest.mark.parametrize("host", ["example..com", "-.example.com", ".example.com", "example.com.", "a" * 64 + ".com", "example.c_m"])
def test_names_that_are_none_do_not_pass(host: str) -> None:
    assert check_url(f"https://{host}/")


def test_a_url_falls_into_its_parts() -> None:
    assert parse_url("https://example.com?x=1") == HookUrl("https", "example.com", 443, "example.com", "/?x=1")
    assert parse_url("http://[::1]:8080/a;b") == HookUrl("http", "::1", 8080, "[::1]:8080", "/a;b")


def test_reasons_do_not_repeat_the_url() -> None:
    for url in ("https://user:secret@example.com/", "http://secret.example.com/", "https://10.0.0.1/secret"):
        assert "secret" not in str(check_url(url))
