"""`celadon keys webhook-secret` tells the secret that signs a client's webhooks, and replaces it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from redis.asyncio import Redis
from typer.testing import CliRunner, Result

from celadon.__main__ import app
from jobs.hook_secrets import HookSecrets
from jobs.hook_signature import show_secret


def run(*arguments: str, **variables: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"CELADON_REDIS_URL": None} | variables)


async def asked(redis_url: str, *arguments: str) -> Result:
    return await asyncio.to_thread(run, *arguments, CELADON_REDIS_URL=redis_url)


async def test_it_is_the_secret_that_workers_sign_with(redis: Redis, redis_url: str) -> None:
    first, again = [await asked(redis_url, "webhook-secret") for _ in range(2)]
    assert first.exit_code == 0, first.output
    assert first.stdout == again.stdout == show_secret((await HookSecrets(redis).of("default"))[0]) + "\n"
    assert first.stdout.startswith("whsec_")


async def test_a_client_has_its_own_and_gets_a_new_one(redis: Redis, redis_url: str) -> None:
    assert (await asked(redis_url, "add", "shop")).exit_code == 0
    told = [(await asked(redis_url, "webhook-secret", "shop", *how)).stdout for how in ([], ["--rotate"], [], ["--retire"], [])]
    assert told[0] != told[1] == told[2] == told[3] == told[4] != (await asked(redis_url, "webhook-secret")).stdout
    assert len(await HookSecrets(redis).of("shop")) == 1


async def test_what_cannot_be_is_said(redis: Redis, redis_url: str) -> None:
    nobody = await asked(redis_url, "webhook-secret", "shpo")
    assert nobody.exit_code == 1 and "no key is of 'shpo'" in nobody.stderr and nobody.stdout == ""
    assert not await redis.exists("{q0}:hooksecrets")
    both = await asked(redis_url, "webhook-secret", "--rotate", "--retire")
    assert both.exit_code == 2


def test_without_redis_it_says_so_in_one_line(tmp_path: Path) -> None:
    result = run("webhook-secret", CELADON_REDIS_URL="redis://me:password@127.0.0.1:9")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("✗ no answer from Redis") and len(result.stderr.splitlines()) == 1
    assert "password" not in result.stderr
