"""What must hold of the queue's keys after every move of the state machine: they say what the model says, and each job is in one place."""

from __future__ import annotations

from collections import Counter
from typing import Any

from redis.asyncio import Redis

from jobs.job import TERMINAL, Job, JobStatus
from tests.queue_model import PREDICTED_US, QUEUED, RUNNING, SUCCEEDED, Expected, lane

KINDS = ("j", "e", "w", "r", "ring", "alone", "pending", "lease", "deadline", "slack", "work", "queued", "f", "k")

Found = dict[str, Any]  # by key: records and streams, and the members of each set


async def snapshot(redis: Redis) -> Found:
    keys = [key for key in await redis.keys("{q0}:*") if key.split(":")[1] in KINDS]
    async with redis.pipeline(transaction=False) as pipe:
        hashes = dict.fromkeys(("j", "work", "queued"), pipe.hgetall)
        reads: dict[str, Any] = {
            **hashes,
            "e": pipe.xrange,
            "w": pipe.smembers,
            "pending": pipe.smembers,
            "k": lambda key: pipe.hget(key, "steps"),
        }
        for key in keys:
            reads.get(key.split(":")[1], lambda k: pipe.zrange(k, 0, -1))(key)
        return dict(zip(keys, await pipe.execute(), strict=True))


def check_server(found: Found, jobs: dict[str, Expected]) -> None:
    for id_, expected in jobs.items():
        _check_record(Job.from_hash(found["{q0}:j:" + id_]), expected)
        _check_story([fields["type"] for _, fields in found["{q0}:e:" + id_]], expected)
    _check_places({k: sorted(v) for k, v in found.items() if isinstance(v, (list, set)) and ":e:" not in k}, jobs)
    saved = {id_: str(j.saved) for id_, j in jobs.items() if j.status not in TERMINAL and j.saved}
    assert {k.split(":")[2]: steps for k, steps in found.items() if ":k:" in k and steps != "0"} == saved
    _check_tallies(found.get("{q0}:work", {}), found.get("{q0}:queued", {}), jobs)


def _check_record(job: Job, expected: Expected) -> None:
    told = (job.status, job.worker, job.attempt, job.failures, job.steps_done, job.cancel_requested, job.pauses)
    known = (expected.status, expected.worker, expected.attempt, expected.failures, expected.steps, expected.wish, expected.pauses)
    assert told == known, f"{job.id}: {told}, not {known}"
    assert len(job.images) == (job.status is SUCCEEDED)
    assert (job.finished_at is not None) == job.done


def _check_story(types: list[str], expected: Expected) -> None:
    ends = [t for t in types if t in TERMINAL]
    assert ends == ([expected.status] if expected.status in TERMINAL else [])
    assert not ends or types[-1] == ends[0]
    assert types.count("started") == expected.attempt


def _check_places(sets: dict[str, list[str]], jobs: dict[str, Expected]) -> None:
    def members(*kinds: str) -> list[str]:
        return sorted(m for key, found in sets.items() if key.split(":")[1] in kinds for m in found)

    def ids(status: JobStatus) -> list[str]:
        return sorted(id_ for id_, job in jobs.items() if job.status is status)

    queued = {id_: j for id_, j in jobs.items() if j.status is QUEUED}
    assert members("pending") == ids(QUEUED)
    assert members("r", "alone") == sorted(id_ for id_, job in jobs.items() if job.stands)
    assert members("f") == sorted(id_ for id_, job in queued.items() if job.follows)
    assert members("lease") == members("w") == ids(RUNNING)
    ready = {(lane(j), j.client) for j in queued.values() if j.ready}
    assert {(key.split(":")[2], m) for key, found in sets.items() if ":ring:" in key for m in found} == ready
    assert members("deadline") == sorted(id_ for id_, j in queued.items() if j.deadline < float("inf"))
    assert members("slack") == sorted(id_ for id_, j in queued.items() if j.ready and j.due < float("inf"))


def _check_tallies(work: dict[str, str], queued: dict[str, str], jobs: dict[str, Expected]) -> None:
    """What forecasts and bounds read is what is there."""
    waiting = [j for j in jobs.values() if j.status is QUEUED]
    ready = [j for j in waiting if j.ready]
    running = [f"running:{j.model}" for j in jobs.values() if j.status is RUNNING]
    promised = [f"promised:{j.model}" for j in ready if j.due < float("inf")]
    parts = Counter([*map(lane, ready), *(f"{lane(j)}:{j.client}" for j in ready), *promised, *running])
    assert {name: int(micros) for name, micros in work.items() if int(micros)} == {n: c * PREDICTED_US for n, c in parts.items()}
    assert queued == {client: str(count) for client, count in Counter(j.client for j in waiting).items()}
