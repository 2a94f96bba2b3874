"""A gateway on a real socket, in a thread of the test's process; and a client that talks to it over HTTP."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import uvicorn

from jobs.job_queue import JobQueue, connect
from jobs.registry import Registry
from pipelines.card import ModelCard
from service.app import Server, create_app
from service.settings import Settings

START_S = 20.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Live:
    """A running gateway. `http` knows its address."""

    url: str
    port: int
    settings: Settings
    http: httpx2.Client
    server: Server

    def post(self, body: object, **headers: str) -> httpx2.Response:
        return self.http.post("/generate", json=body, headers={name.replace("_", "-"): value for name, value in headers.items()})


class _ServerInThread(Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def running(redis_url: str, data_dir: Path, *cards: ModelCard, port: int = 0, **settings: Any) -> Iterator[Live]:
    """A gateway whose Redis knows these cards; on a free port, or on that one."""
    announce(redis_url, *cards)
    chosen = Settings(redis_url=redis_url, data_dir=data_dir, port=0, log_level="warning", **settings)
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    config = uvicorn.Config(create_app(chosen), log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=2)
    server = _ServerInThread(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="gateway")
    thread.start()
    try:
        assert server.up.wait(START_S), "the gateway did not start"
        url = f"http://127.0.0.1:{port}"
        with httpx2.Client(base_url=url, trust_env=False, timeout=30) as http:
            yield Live(url, port, chosen, http, server)
    finally:
        server.should_exit = True
        thread.join(START_S)
        listener.close()
    assert not thread.is_alive(), "the gateway did not stop"


def announce(redis_url: str, *cards: ModelCard) -> None:
    """As workers do when they start."""

    async def tell() -> None:
        redis = connect(redis_url)
        for card in cards:
            await Registry(redis).announce(card)
        await redis.aclose()

    run_apart(tell)


def depth(redis_url: str) -> dict[str, int]:
    """What the queue holds, asked from outside the gateway."""

    async def ask() -> dict[str, int]:
        redis = connect(redis_url)
        try:
            return await JobQueue(redis).depth()
        finally:
            await redis.aclose()

    return run_apart(ask)


def run_apart(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """On a loop of its own in a thread of its own: the caller may be inside one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def assert_error(answer: httpx2.Response, status: int, code: str, param: str | None = None) -> str:
    """The one shape, and nothing that an error must not show. Returns the message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "param", "request_id"}
    error = body["error"]
    assert error["code"] == code, error
    assert error["request_id"] == answer.headers["x-request-id"]
    assert param is None or error["param"] == param, error
    for leak in ("Traceback", "site-packages", ".py", "/work", "redis.exceptions", "pydantic"):
        assert leak not in answer.text
    return str(error["message"])
