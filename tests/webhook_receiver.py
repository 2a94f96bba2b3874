"""A receiver of webhooks on a real socket, in a thread of the test's process. It answers as it is told and keeps what it got."""

from __future__ import annotations

import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAME = "hooks.example.com"

# For NAME alone, signed by itself. The key protects nothing.
KEY = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgdhI0Be44xrZkNJoX
2pAHzQnTuR4Gy6YK1n9YM75e7oahRANCAASnBZ3rAnWpMpWlBffGeS2mKR4jNC4M
9hFE24vAEEkbtoTIyZ/6hL/uqoXKeHwE+KojyEiOavnS7EzRkEA98w2e
-----END PRIVATE KEY-----
"""
CERTIFICATE = """-----BEGIN CERTIFICATE-----
MIIBijCCAS+gAwIBAgIBATAKBggqhkjOPQQDAjAcMRowGAYDVQQDDBFob29rcy5l
eGFtcGxlLmNvbTAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowHDEa
MBgGA1UEAwwRaG9va3MuZXhhbXBsZS5jb20wWTATBgcqhkjOPQIBBggqhkjOPQMB
BwNCAASnBZ3rAnWpMpWlBffGeS2mKR4jNC4M9hFE24vAEEkbtoTIyZ/6hL/uqoXK
eHwE+KojyEiOavnS7EzRkEA98w2eo2AwXjAcBgNVHREEFTATghFob29rcy5leGFt
cGxlLmNvbTAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4E
FgQUkUflJDbO1HtF8wvwntF783rseygwCgYIKoZIzj0EAwIDSQAwRgIhAOIqJ3b+
mll0r/+3Vk7LmOpVDrjuj0lrBA1v+n1FB8YYAiEAgDiiS51B+a+1fq5l4vlPQlnY
AQCcgyhbSfW6DzrTelA=
-----END CERTIFICATE-----
"""


@dataclass(frozen=True)
class Got:
    """One request: path, headers (names in lower case), body."""

    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[BaseHTTPRequestHandler, int], None]  # the second: how many requests came before


@dataclass
class Receiver:
    """`names` are those that TLS clients asked for."""

    port: int
    got: list[Got] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, host: str = "127.0.0.1", path: str = "/hook", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"


def status(*codes: int, **headers: str) -> Answer:
    """These statuses one after the other, the last one for good."""

    def answer(request: BaseHTTPRequestHandler, before: int) -> None:
        request.send_response(codes[min(before, len(codes) - 1)])
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("content-length", "0")
        request.end_headers()

    return answer


@contextmanager
def receiving(answer: Answer, *, tls: bool = False) -> Iterator[Receiver]:
    """A receiver at 127.0.0.1, with TLS for NAME if asked for."""
    server = _Server(("127.0.0.1", 0), _handler(answer))
    receiver = server.receiver = Receiver(server.server_address[1])
    if tls:
        context = _server_tls()
        context.sni_callback = lambda _socket, name, _context: receiver.names.append(name)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="receiver")
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def client_tls() -> ssl.SSLContext:
    """Trusts the receiver and nobody else."""
    return ssl.create_default_context(cadata=CERTIFICATE)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    receiver: Receiver

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what is tested."""


def _server_tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "receiver.pem")
        path.write_text(KEY + CERTIFICATE)
        context.load_cert_chain(path)
    return context


def _handler(answer: Answer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            assert isinstance(self.server, _Server)
            receiver = self.server.receiver
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            before = len(receiver.got)
            receiver.got.append(Got(self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            answer(self, before)

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    return Handler
