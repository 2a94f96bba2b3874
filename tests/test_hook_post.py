"""One webhook request: where it connects, what it sends, how it ends. Real sockets; only the name server is made up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler

import pytest

from jobs.guarded_network import Refused, Unreachable, look_up
from tests.webhook_receiver import NAME, client_tls, receiving, status
from workers.hook_post import GuardedPost

HEADERS = {"webhook-id": "a"}


class NameServer:
    """Gives its answers one after the other, the last one for good; counts the questions."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = answers
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


async def test_name_and_certificate_stay_those_of_the_url(connections: list[str]) -> None:
    """The connection goes to the address, the name is still what SNI, Host and certificate say."""
    with receiving(status(204), tls=True) as receiver:
        post = GuardedPost(resolve=NameServer(["1.1.1.1"]), tls=client_tls())
        answer, _ = await post(receiver.url(NAME, "/a;b?c=d", "https"), HEADERS, b"{}")
    assert answer == 204
    assert connections == ["1.1.1.1"]
    assert receiver.names == [NAME]
    (got,) = receiver.got
    assert (got.path, got.headers["host"], got.headers["webhook-id"], got.body) == ("/a;b?c=d", f"{NAME}:{receiver.port}", "a", b"{}")


async def test_a_certificate_of_somebody_else_is_no_receiver(connections: list[str]) -> None:
    with receiving(status(204), tls=True) as receiver:
        with pytest.raises(Unreachable, match="tls"):
            await GuardedPost(resolve=NameServer(["1.1.1.1"]))(receiver.url(NAME, scheme="https"), {}, b"")
        with pytest.raises(Unreachable, match="tls"):
            await GuardedPost(resolve=NameServer(["1.1.1.1"]), tls=client_tls())(receiver.url("other.example.com", scheme="https"), {}, b"")
    assert receiver.got == []
    assert connections == ["1.1.1.1"] * 2


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "::ffff:127.0.0.1", "fd00::1", "ff02::1"]
)
async def test_a_name_that_leads_inside_is_refused_before_any_connection(address: str, connections: list[str]) -> None:
    with pytest.raises(Refused, match="public internet"):
        await GuardedPost(resolve=NameServer([address]))(f"https://{NAME}/", {}, b"")
    with pytest.raises(Refused, match="public internet"):
        await GuardedPost(resolve=NameServer(["1.1.1.1", address]))(f"https://{NAME}/", {}, b"")
    assert connections == []


async def test_rebinding_finds_no_second_question(connections: list[str]) -> None:
    """The name server answers the check with a good address and would answer the connection with a bad one."""
    names = NameServer(["1.1.1.1"], ["127.0.0.1"])
    with receiving(status(204), tls=True) as receiver:
        post = GuardedPost(resolve=names, tls=client_tls())
        await post(receiver.url(NAME, scheme="https"), {}, b"")
        assert (connections, names.asked) == (["1.1.1.1"], 1)
        with pytest.raises(Refused):  # and the next delivery is checked anew: no connection is kept
            await post(receiver.url(NAME, scheme="https"), {}, b"")
    assert connections == ["1.1.1.1"]
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "https://localhost:{port}/", "http://[::1]:{port}/"]
)
async def test_private_urls_are_refused_and_never_reached(url: str) -> None:
    with receiving(status(204)) as receiver, pytest.raises(Refused):
        await GuardedPost()(url.format(port=receiver.port), {}, b"")
    assert receiver.got == []


async def test_private_urls_are_reached_where_they_are_allowed() -> None:
    with receiving(status(200)) as receiver:
        post = GuardedPost(allow_private=True)
        assert (await post(receiver.url(), {}, b"x"))[0] == 200
        assert (await post(receiver.url("localhost"), {}, b"x"))[0] == 200
    assert [got.headers["host"] for got in receiver.got] == [f"127.0.0.1:{receiver.port}", f"localhost:{receiver.port}"]


async def test_redirects_are_answers_and_are_not_followed() -> None:
    with receiving(status(204)) as inside, receiving(status(307, location=inside.url())) as receiver:
        answer, headers = await GuardedPost(allow_private=True)(receiver.url(), {}, b"x")
    assert (answer, headers["location"]) == (307, inside.url())
    assert inside.got == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving(status(204)) as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert (await GuardedPost(allow_private=True)(receiver.url(), {}, b""))[0] == 204


async def test_the_next_address_is_tried_when_one_is_dead() -> None:
    with receiving(status(204)) as receiver:
        post = GuardedPost(allow_private=True, resolve=NameServer(["127.0.0.2", "127.0.0.1"]))
        assert (await post(receiver.url("somewhere"), {}, b""))[0] == 204


async def test_an_endless_answer_is_not_read() -> None:
    """Status and headers decide; the receiver finds the connection closed before it has sent much."""
    sent: list[int] = []

    def endless(request: BaseHTTPRequestHandler, before: int) -> None:
        request.send_response(200)
        request.send_header("content-length", str(1 << 40))
        request.end_headers()
        try:
            while True:
                sent.append(request.wfile.write(b"x" * 65_536))
        except OSError:
            sent.append(-1)

    with receiving(endless) as receiver:
        assert (await GuardedPost(allow_private=True, timeout_s=5)(receiver.url(), {}, b""))[0] == 200
        async with asyncio.timeout(10):
            while not sent or sent[-1] != -1:
                await asyncio.sleep(0.01)
    assert len(sent) < 500  # of 16 million


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nx: "])
async def test_all_of_it_takes_no_longer_than_the_timeout(first: bytes) -> None:
    """A receiver that is silent, and one that sends a byte now and then for ever."""

    def slowly(request: BaseHTTPRequestHandler, before: int) -> None:
        closing = receiver.closing
        request.wfile.write(first)
        while not closing.wait(0.05) and first:
            request.wfile.write(b"x")
        closing.wait()

    with receiving(slowly) as receiver:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="timeout"):
            await GuardedPost(allow_private=True, timeout_s=0.3)(receiver.url(), {}, b"")
        assert time.monotonic() - began < 3


async def test_what_is_no_answer_is_unreachable() -> None:
    def nonsense(request: BaseHTTPRequestHandler, before: int) -> None:
        request.wfile.write(b"what?\r\n\r\n")
        request.close_connection = True

    with receiving(nonsense) as receiver, pytest.raises(Unreachable, match="broken answer"):
        await GuardedPost(allow_private=True)(receiver.url(), {}, b"")
    with pytest.raises(Unreachable, match="connect"):
        await GuardedPost(allow_private=True)(receiver.url(), {}, b"")
    with pytest.raises(Unreachable, match="no such name"):
        await GuardedPost(resolve=NameServer([]))(f"https://{NAME}/", {}, b"")


async def test_names_are_looked_up() -> None:
    assert "127.0.0.1" in await look_up("localhost", 80)
    assert await look_up("a" * 70 + ".example", 80) == []
