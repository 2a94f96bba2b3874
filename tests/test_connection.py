"""A write is sent once, and a server that would lose jobs is refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.connection import ServerUnfit, check_server, connect


async def test_a_write_whose_answer_is_lost_is_not_repeated(tmp_path: Path) -> None:
    received: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            received.append(data)
            if b"INCR" in data:  # taken, but the answer never arrives
                break
            writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    path = tmp_path / "s"
    async with await asyncio.start_unix_server(answer, path), connect(f"unix://{path}") as redis:
        with pytest.raises(RedisConnectionError):
            await redis.incr("n")
    assert sum(data.count(b"INCR") for data in received) == 1


async def test_a_fit_server_is_accepted_and_an_evicting_one_refused(redis: Redis) -> None:
    await check_server(redis)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ServerUnfit, match="allkeys-lru"):
            await check_server(redis)
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("old", ["6.2.14", "5.0.3"])
async def test_an_old_server_is_refused(redis: Redis, monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    async def info(*sections: str) -> dict[str, str]:
        return {"redis_version": old, "maxmemory_policy": "noeviction"}

    monkeypatch.setattr(redis, "info", info)
    with pytest.raises(ServerUnfit, match=old):
        await check_server(redis)
