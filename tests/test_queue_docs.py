"""docs/queue.md is the protocol: every script, its arguments and every key are in it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from jobs.job import Job
from jobs.scripts import PRELUDE, sources

PAGE = (Path(__file__).parent.parent / "docs" / "queue.md").read_text("utf-8")


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_script_stands_in_the_protocol(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if re.match(rf"\| .*`{name}`", line))
    header = (Path(__file__).parent.parent / "jobs" / "lua" / f"{name}.lua").read_text("utf-8").split("\n")[1]
    assert header.startswith(f"-- {name} ")
    missing = set(re.findall(r"<([a-z_]+)>", header)) - set(re.findall(r"[a-z_]+", row))
    assert not missing - {"queue"}  # a queue is a model and a schema


def test_every_key_stands_in_the_protocol() -> None:
    used = {key for text in sources().values() for key in re.findall(r"q \.\. '([a-z]+)", text)} | {"j", "cards", "secret"}
    assert {key for key in used if f"`{{q0}}:{key}" not in PAGE} == set()


def test_every_field_of_the_record_stands_in_the_protocol() -> None:
    fields = PAGE.split("A record's fields:")[1].split("\n\n")[0]
    assert {field.name for field in dataclasses.fields(Job)} <= set(re.findall(r"[a-z_]+", fields))


def test_scripts_begin_with_their_shebang_and_hold_the_prelude() -> None:
    assert not set(PRELUDE) & set(sources())
    for text in sources().values():
        assert text.startswith("#!lua")
        assert text.count("local function now()") == 1
