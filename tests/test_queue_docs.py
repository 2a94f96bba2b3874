"""docs/queue.md is the protocol: every script, its arguments and every key are in it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis

from jobs.job import Job, JobStatus
from jobs.job_queue import JobQueue
from jobs.scripts import PRELUDE, head, sources
from tests.job_samples import sample_job

ROOT = Path(__file__).parent.parent
PAGE, SCRIPTS = ((ROOT / "docs" / name).read_text("utf-8") for name in ("queue.md", "scripts.md"))


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_script_stands_in_the_protocol(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if re.match(rf"\| .*`{name}`", line))
    header = (Path(__file__).parent.parent / "jobs" / "lua" / f"{name}.lua").read_text("utf-8").split("\n")[1]
    assert header.startswith(f"-- {name} ")
    missing = set(re.findall(r"<([a-z_]+)>", header)) - set(re.findall(r"[a-z_]+", row))
    assert not missing - {"queue"}  # a queue is a model and a schema


@pytest.mark.parametrize("name", sorted(sources()))
def test_the_head_of_every_script_stands_on_its_page(name: str) -> None:
    assert f"## {name}\n\n```\n{head(name)}\n```\n" in SCRIPTS


def test_the_page_of_scripts_names_no_other() -> None:
    assert set(re.findall(r"^## (\w+)$", SCRIPTS, re.MULTILINE)) == set(sources())


async def test_another_language_calls_the_text_with_strings(queue: JobQueue, redis: Redis) -> None:
    """As the page says it: the printed text, the shard as the only key, arguments in the order of the head."""
    texts = {}
    for name in ("submit", "list", "cancel"):
        said = subprocess.run([sys.executable, "-m", "jobs.scripts", name], capture_output=True, text=True, check=True, cwd=ROOT)
        texts[name] = said.stdout
    params = json.dumps(dataclasses.asdict(sample_job().params))
    record = {
        "id": "a" * 32, "client": "shop", "params": params, "status": "queued", "priority": "0", "created_at": "0", "started_at": "",
        "finished_at": "", "steps_done": "0", "steps_total": "20", "attempt": "0", "failures": "0", "worker": "",
        "cancel_requested": "0", "images": "[]", "error": "", "warnings": "[]", "schema": "1",
    }  # fmt: skip
    place = ["a" * 32, "shop", "toy", "normal", "0", "20", "64x64", ""]
    bounds = ["key-1", "86400", "fingerprint", "", "100", "100", "0", "1", "0", "1", "3600", ""]
    fields = [text for pair in record.items() for text in pair]
    for outcome in ("created", "existing"):
        assert (await redis.execute_command("EVAL", texts["submit"], 1, "{q0}", *place, *bounds, *fields))[0] == outcome
    assert await queue.get("a" * 32) == (await queue.list_jobs("shop")).jobs[0]
    cursor, found = await redis.execute_command("EVAL", texts["list"], 1, "{q0}", "shop", "queued", "20", "")
    assert cursor == "" and dict(zip(found[::2], found[1::2], strict=True))["id"] == "a" * 32
    await redis.execute_command("EVAL", texts["cancel"], 1, "{q0}", "a" * 32, "3600")
    canceled = await queue.get("a" * 32)
    assert canceled and canceled.status is JobStatus.CANCELED


def test_every_key_stands_in_the_protocol() -> None:
    used = {key for text in sources().values() for key in re.findall(r"q \.\. '([a-z]+)", text)} | {"j", "cards", "secret"}
    assert {key for key in used if f"`{{q0}}:{key}" not in PAGE} == set()


def test_every_field_of_the_record_stands_in_the_protocol() -> None:
    fields = PAGE.split("A record's fields:")[1].split("\n\n")[0]
    assert {field.name for field in dataclasses.fields(Job)} <= set(re.findall(r"[a-z_]+", fields))


def test_scripts_begin_with_their_shebang_and_hold_what_they_use_of_the_prelude() -> None:
    """A function that is missing would only be missed when a call comes to it."""
    assert not set(PRELUDE) & set(sources())
    prelude = "\n".join((ROOT / "jobs" / "lua" / f"{part}.lua").read_text() for part in PRELUDE)
    defined = re.findall(r"^local function (\w+)|^local (\w+) =|^(\w+) = function", prelude, re.MULTILINE)
    shared = {name for names in defined for name in names if name}
    assert {"now", "settle", "regroup", "MAX_WAKES", "enqueue"} <= shared
    for name, text in sources().items():
        assert text.startswith("#!lua")
        used = shared & set(re.findall(r"[A-Za-z_]\w*", re.sub(r"--.*|'[^'\n]*'", "", text)))
        for word in used:
            assert len(re.findall(rf"^(?:local function {word}\(|local {word} =|{word} = function)", text, re.MULTILINE)) == 1, (name, word)
        assert "local function now()" in text or "now()" not in text
    assert "local function settle" not in sources()["renew"] and len(sources()["renew"]) < len(sources()["finish"])
