"""`celadon webhook-secret` tells the one secret that signs webhooks, and nothing else does."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from celadon.__main__ import app
from jobs.hook_signature import show_secret
from jobs.registry import Registry


def run(**variables: str) -> Result:
    return CliRunner().invoke(app, ["webhook-secret"], env={"CELADON_REDIS_URL": None} | variables)


async def test_it_is_the_secret_that_workers_sign_with(redis: Redis, redis_url: str) -> None:
    first, again = [await asyncio.to_thread(run, CELADON_REDIS_URL=redis_url) for _ in range(2)]
    assert first.exit_code == 0, first.output
    assert first.stdout == again.stdout == show_secret(await Registry(redis).webhook_secret()) + "\n"
    assert first.stdout.startswith("whsec_")


def test_without_redis_it_says_so_in_one_line(tmp_path: Path) -> None:
    for variables in ({"CELADON_REDIS_URL": "redis://me:password@127.0.0.1:9"}, {"CELADON_DATA_DIR": str(tmp_path / "none")}):
        result = run(**variables)
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("✗ no answer from Redis") and len(result.stderr.splitlines()) == 1
        assert "password" not in result.stderr
