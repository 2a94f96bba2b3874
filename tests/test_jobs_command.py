"""`celadon jobs`, against a gateway; the test is the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cards import card
from celadon.__main__ import app
from job_samples import Clock
from jobs.job_queue import JobQueue
from live_gateway import Live, running

PROMPT: dict[str, Any] = {"prompt": "a [red] apple"}
MODEL = "celadon-test"
LEASE_S = 15.0


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    with running(redis_url, tmp_path, card()) as live:
        yield live


def run(live: Live | None, *arguments: str, **variables: str) -> Result:
    """The command as a user at a wide terminal has it."""
    environment = {"COLUMNS": "220", "CELADON_URL": live.url if live else None} | variables
    return CliRunner().invoke(app, ["jobs", *arguments], env=environment)


async def said(live: Live, *arguments: str) -> str:
    result = await asyncio.to_thread(run, live, *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


async def submit(live: Live, **fields: Any) -> str:
    return str((await asyncio.to_thread(live.post, PROMPT | fields)).json()["id"])


async def kill(queue: JobQueue, clock: Clock) -> None:
    """Every worker that takes a job is lost with it, until nothing is left to take."""
    attempt = 0
    while await queue.claim(f"w{attempt}", [MODEL], 1):
        attempt += 1
        await clock.advance(LEASE_S + 1)
        await queue.reap()


def test_help_names_every_command() -> None:
    assert "jobs" in CliRunner().invoke(app, ["--help"]).output
    said = run(None, "--help").stdout
    assert all(f" {command} " in said for command in ("list", "dead", "show", "retry"))


async def test_list_shows_the_newest_jobs_first(gateway: Live, clock: Clock) -> None:
    assert "no jobs" in await said(gateway, "list")
    made = []
    for number in range(3):
        made.append(await submit(gateway, priority=number, service_class="batch"))
        await clock.advance(1)
    table = await said(gateway, "list")
    assert [line.split()[0] for line in table.splitlines() if "apple" in line] == made[::-1]
    assert "a [red] apple" in table and "queued" in table and "batch" in table and "0/20" in table
    assert [line.split()[0] for line in (await said(gateway, "list", "--limit", "1")).splitlines() if "apple" in line] == made[-1:]
    assert "no jobs" in await said(gateway, "list", "--status", "running")


async def test_more_jobs_than_one_answer_holds_are_listed(gateway: Live) -> None:
    await asyncio.to_thread(lambda: [gateway.post(PROMPT) for _ in range(105)])
    assert (await said(gateway, "list", "--limit", "103")).count("apple") == 103
    assert (await said(gateway, "list", "--limit", "1000")).count("apple") == 105


async def test_show_tells_everything_of_a_job(gateway: Live) -> None:
    job_id = await submit(gateway, deadline_s=3600, webhook={"url": "https://hooks.example.com/a"}, negative_prompt="zebra")
    text = await said(gateway, "show", job_id)
    for word in (
        job_id,
        "queued",
        "deadline",
        "https://hooks.example.com/a (started, succeeded, failed, canceled)",
        "a [red] apple",
        "zebra",
        "dpmpp_2m",
    ):
        assert word in text, text
    assert "finished" not in text and "cancel wished" not in text


async def test_dead_letters_are_shown_with_their_reasons_and_queued_again(gateway: Live, queue: JobQueue, clock: Clock) -> None:
    assert "no dead letters" in await said(gateway, "dead")
    job_id = await submit(gateway)
    await kill(queue, clock)
    table = await said(gateway, "dead")
    assert job_id in table and "w0 (attempt 1)" in table and "a [red] apple" in table
    assert "w0" in await said(gateway, "show", job_id)
    retried = await said(gateway, "retry", job_id)
    assert f"{job_id} is queued again, as " in retried
    new = retried.split()[-1]
    assert new in await said(gateway, "list", "--status", "queued")
    assert "no dead letters" in await said(gateway, "dead")
    refused = await asyncio.to_thread(run, gateway, "retry", new)
    assert refused.exit_code == 1 and "job_not_dead" in refused.stderr


@pytest.mark.parametrize(
    "arguments", [("show", "no-such-job"), ("retry", "no-such-job"), ("show", "../workers"), ("list", "--status", "gone")]
)
def test_what_is_wrong_is_said_in_one_line(gateway: Live, arguments: tuple[str, ...]) -> None:
    result = run(gateway, *arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("✗ ") and len(result.stderr.splitlines()) == 1


def test_without_a_service_nothing_is_started(tmp_path: Path) -> None:
    result = run(None, "list", CELADON_DATA_DIR=str(tmp_path / "none"), CELADON_PORT="9")
    assert result.exit_code == 1 and "celadon up" in result.stderr
    assert list(tmp_path.iterdir()) == []
    assert "no answer" in run(None, "list", CELADON_URL="http://127.0.0.1:9").stderr
