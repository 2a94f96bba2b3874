"""CELADON_REDIS_URL: what each form means, and that a wrong one is told without its secret."""

from __future__ import annotations

import pytest

from celadon.settings import of_gateway, of_worker
from celadon.supervisor import StartRefused
from jobs.address import Login, parse, without_secret

FORMS = {
    "redis://user:s3cret@host:6380/2": ("server", (), "", 0),
    "rediss://host": ("server", (), "", 0),
    "unix:///run/valkey.sock?password=s3cret&db=1": ("server", (), "", 0),
    "redis+sentinel://a:1,b,[::1]:3/kiln": ("sentinel", (("a", 1), ("b", 26379), ("::1", 3)), "kiln", 0),
    "redis+sentinel://u:s3cret@a/my%20kiln/4?sentinel_password=s3cret": ("sentinel", (("a", 26379),), "my kiln", 4),
    "redis+cluster://:s3cret@a:7000,b-1.example": ("cluster", (("a", 7000), ("b-1.example", 6379)), "", 0),
    "rediss+sentinel://u:s3cret@a,b:1/kiln/4?ssl_check_hostname=false": ("sentinel", (("a", 26379), ("b", 1)), "kiln", 4),
    "rediss+cluster://:s3cret@a:7000": ("cluster", (("a", 7000),), "", 0),
    "redis+cluster://[fe80::1]/0": ("cluster", (("fe80::1", 6379),), "", 0),
}

WRONG = {
    "http://s3cret@host": "must begin with redis://",
    "s3cret": "must begin with",
    "redis+sentinels://host/x": "must begin with",
    "redis://user:s3cret@a:6379,b:6379": "one server; several hosts need redis.sentinel:// or redis.cluster://",
    "redis://user:s3cret@host:port": "no good",
    "redis://:s3cret@host?colour=blue": "no good",
    "redis+sentinel://:s3cret@a,b": "the primary's name must follow",
    "redis+sentinel://:s3cret@a/kiln/x": "the database",
    "redis+sentinel://:s3cret@a/kiln/0/1": "the database",
    "redis+sentinel://a/kiln?password=s3cret": "may stand: sentinel_password, sentinel_username",
    "redis+sentinel:///kiln": "hosts are",
    "redis+cluster://:s3cret@a,,b": "hosts are",
    "redis+cluster://:s3cret@a:99999": "hosts are",
    "redis+cluster://:s3/cret@a": "hosts are|database 0",
    "redis+cluster://a b": "hosts are",
    "redis+cluster://a/1": "database 0 only",
    "redis+cluster://a?db=0": "may stand: nothing",
    "redis+cluster://a?ssl_check_hostname=false": "may stand: nothing",
    "redis+sentinel://a/kiln?ssl_ca_certs=/x": "may stand: sentinel_password, sentinel_username",
    "rediss+cluster://:s3cret@a?ssl_cert_reqs=none": "may stand: ssl_ca_certs, ssl_certfile, ssl_check_hostname, ssl_keyfile",
    "rediss+cluster://:s3cret@a?ssl_check_hostname=no": "true or false",
    "rediss+cluster://:s3cret@a?ssl_ca_certs=/no/such/file": "no file at ssl_ca_certs",
    "rediss+sentinel://:s3cret@a/kiln?ssl_certfile=/etc/hostname": "belong together",
    "rediss+sentinel://:s3cret@a": "the primary's name must follow",
}


@pytest.mark.parametrize("url", FORMS)
def test_each_form_is_understood_and_shows_no_secret(url: str) -> None:
    address = parse(url)
    assert (address.kind, address.hosts, address.primary, address.db) == FORMS[url]
    shown = without_secret(url)
    assert "s3cret" not in repr(address) + shown and shown.startswith(url.partition("://")[0])


def test_names_and_passwords_are_decoded_and_belong_to_servers_or_sentinels() -> None:
    address = parse("redis+sentinel://us%3Aer:p%40ss%2Fw%3Ard@a/kiln?sentinel_username=gu%26ard&sentinel_password=%25")
    assert (address.login.username, address.login.password) == ("us:er", "p@ss/w:rd")
    assert (address.sentinel_login.username, address.sentinel_login.password) == ("gu&ard", "%")
    assert parse("redis+cluster://a").login == Login()


def test_tls_is_what_the_scheme_says() -> None:
    assert parse("redis+cluster://a").tls is None and parse("redis+sentinel://a/kiln").tls is None
    assert parse("rediss+cluster://a").tls == {"ssl_check_hostname": True}
    assert parse("rediss+sentinel://a/kiln?ssl_check_hostname=false").tls == {"ssl_check_hostname": False}


@pytest.mark.parametrize("url", WRONG)
def test_a_wrong_one_stops_gateway_and_worker_with_the_variables_name(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELADON_REDIS_URL", url)
    for read in (of_gateway, of_worker):
        with pytest.raises(StartRefused, match=f"CELADON_REDIS_URL: .*({WRONG[url]})") as refusal:
            read()
        assert "s3cret" not in str(refusal.value) and "s3/cret" not in str(refusal.value)
