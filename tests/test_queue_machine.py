"""Hypothesis plays clients, workers, crashes and zombies against the real scripts; a model in Python says what must hold.

After every move: the stored states are the model's, terminal states never change, each queued job waits in exactly one
place, each running job has one lease, and each ended job has told its end exactly once. At the end every job that was
accepted ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from jobs.job import TERMINAL, Job, JobError, JobStatus
from jobs.job_queue import JobQueue, QueueFull, connect
from tests.job_samples import Clock, sample_image, sample_job

QUEUED, RUNNING = JobStatus.QUEUED, JobStatus.RUNNING
SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED
MOVES = ["progress", "finish", "fail", "release", "cancel_running"]
LEASE_S = 15.0
MAX_QUEUED = 12

Answer = TypeVar("Answer")
clients = st.sampled_from(["ada", "bob", "cyd"])
workers = st.sampled_from(["w1", "w2", "w3"])
models = st.sampled_from(["m1", "m2"])
picks = st.integers(0, 10**6)


@dataclass
class Expected:
    """What the model knows of a job."""

    client: str
    model: str
    status: JobStatus = QUEUED
    worker: str | None = None
    attempt: int = 0
    failures: int = 0
    steps: int = 0
    expiry: float = 0.0
    wish: bool = False

    @property
    def suspicious(self) -> bool:
        return self.failures >= 2


def some_run(machine: QueueMachine) -> bool:
    return any(job.status is RUNNING for job in machine.jobs.values())


class QueueMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect(self.url)
        self.queue = JobQueue(self.redis, lease_s=LEASE_S, max_queued=MAX_QUEUED)
        self.clock = Clock(self.redis, 1_000_000.0)
        self.jobs: dict[str, Expected] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.run(self.redis.flushall())
        self.run(self.clock.advance(0))

    def run(self, answer: Awaitable[Answer]) -> Answer:
        async def wait() -> Answer:
            return await answer

        return self.runner.run(wait())

    def some(self, pick: int, *status: JobStatus) -> tuple[str, Expected]:
        found = [(id_, job) for id_, job in self.jobs.items() if not status or job.status in status]
        return found[pick % len(found)]

    def requeue(self, job: Expected) -> None:
        job.status, job.worker, job.steps = (CANCELED, job.worker, job.steps) if job.wish else (QUEUED, None, 0)

    @initialize(clients=st.lists(clients, min_size=2, max_size=8), model=models)
    def begin_with_some(self, clients: list[str], model: str) -> None:
        for client in clients:
            self.submit(client, model, 0, None)

    @rule(client=clients, model=models, priority=st.integers(-2, 2), key=st.sampled_from([None, "k1", "k2"]))
    def submit(self, client: str, model: str, priority: int, key: str | None) -> None:
        job = sample_job(client, model=model, priority=priority)
        waiting = sum(j.status is QUEUED for j in self.jobs.values())
        known = self.keys.get((client, key)) if key else None
        try:
            submitted = self.run(self.queue.submit(job, idempotency_key=key))
        except QueueFull:
            assert waiting == MAX_QUEUED and not known
            return
        assert submitted.created == (known is None)
        assert submitted.job.id == (known or job.id)
        if submitted.created:
            assert waiting < MAX_QUEUED
            self.jobs[job.id] = Expected(client, model)
            if key:
                self.keys[client, key] = job.id

    @rule(worker=workers, held=st.sets(models, min_size=1), limit=st.integers(1, 4))
    def claim(self, worker: str, held: set[str], limit: int) -> None:
        mine = [j for j in self.jobs.values() if j.status is RUNNING and j.worker == worker]
        fit = [j for j in self.jobs.values() if j.status is QUEUED and j.model in held]
        alone, ordinary = [j for j in fit if j.suspicious], [j for j in fit if not j.suspicious]
        claimed = self.run(self.queue.claim(worker, sorted(held), limit))
        for job in claimed:
            expected = self.jobs[job.id]
            assert expected in fit
            assert (job.status, job.worker, job.attempt) == (RUNNING, worker, expected.attempt + 1)
            expected.status, expected.worker = RUNNING, worker
            expected.attempt, expected.expiry = job.attempt, self.clock.now + LEASE_S
        event(f"claim beside a suspicious job: {any(j.suspicious for j in mine)}, with one waiting: {bool(alone)}")
        if any(j.suspicious for j in mine):
            assert claimed == []
        elif alone and not mine:
            assert [self.jobs[j.id].suspicious for j in claimed] == [True]
        elif not alone:
            assert len(claimed) == min(limit, len(ordinary))  # no worker idles while there is work
        assert len(claimed) <= 1 or not any(self.jobs[j.id].suspicious for j in claimed)

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(0, 25), preview=st.sampled_from([None, "data:,x"]))
    def progress(self, pick: int, steps: int, preview: str | None) -> None:
        id_, job = self.some(pick, RUNNING)
        standing = self.run(self.queue.progress(job.worker or "", job.attempt, id_, steps, preview=preview))
        assert standing == (2 if job.wish else 1)
        job.steps = max(job.steps, min(steps, 20))

    @precondition(some_run)
    @rule(pick=picks, move=st.sampled_from(["finish", "fail", "release", "cancel_running"]))
    def end_attempt(self, pick: int, move: str) -> None:
        id_, job = self.some(pick, RUNNING)
        allowed = move != "cancel_running" or job.wish
        assert self.run(self.move(move, job.worker or "", job.attempt, id_)) == allowed
        if move == "release":
            self.requeue(job)
        elif allowed:
            job.status = {"finish": SUCCEEDED, "fail": FAILED, "cancel_running": CANCELED}[move]
            job.steps = 20 if move == "finish" else job.steps

    @rule(
        pick=picks,
        worker=workers,
        back=st.integers(0, 2),
        move=st.sampled_from(MOVES),
    )
    def zombie(self, pick: int, worker: str, back: int, move: str) -> None:
        """Somebody who does not hold the job tries; the invariants see to it that nothing changed."""
        id_, job = self.some(pick)
        if (worker, job.attempt - back) == (job.worker, job.attempt):
            return
        assert not self.run(self.move(move, worker, job.attempt - back, id_))
        assert id_ in self.run(self.queue.renew(worker, {id_: job.attempt - back})).lost

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        id_, job = self.some(pick)
        answer = self.run(self.queue.cancel(id_))
        job.wish = job.wish or job.status not in TERMINAL
        job.status = CANCELED if job.status is QUEUED else job.status
        assert answer is not None and answer.status is job.status

    @precondition(some_run)
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        held = {id_: j for id_, j in self.jobs.items() if j.status is RUNNING and j.worker == worker}
        renewal = self.run(self.queue.renew(worker, {id_: j.attempt for id_, j in held.items()}))
        assert renewal.lost == set()
        assert renewal.canceled == {id_ for id_, j in held.items() if j.wish}
        for job in held.values():
            job.expiry = self.clock.now + LEASE_S

    @precondition(some_run)
    @rule(seconds=st.sampled_from([1.0, 7.0, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))
        overdue = [j for j in self.jobs.values() if j.status is RUNNING and j.expiry <= self.clock.now]
        assert self.run(self.queue.reap()) == len(overdue)
        for job in overdue:
            job.failures += 1
            if job.failures >= 5 and not job.wish:
                job.status = FAILED
            else:
                self.requeue(job)

    @rule(worker=workers, model=models, crashes=st.integers(1, 4))
    def crash_again_and_again(self, worker: str, model: str, crashes: int) -> None:
        for _ in range(crashes):
            self.claim(worker, {model}, 2)
            self.time_passes(LEASE_S)

    def move(self, move: str, worker: str, attempt: int, id_: str) -> Awaitable[object]:
        extra: dict[str, tuple[object, ...]] = {
            "progress": (9,),
            "finish": ([sample_image(sample_job(id=id_))],),
            "fail": (JobError("broken", "It broke."),),
        }
        answer: Awaitable[object] = getattr(self.queue, move)(worker, attempt, id_, *extra.get(move, ()))
        return answer

    @invariant()
    def the_server_agrees(self) -> None:
        stored, sets = self.run(self.snapshot())
        for id_, expected in self.jobs.items():
            self.check_record(Job.from_hash(stored["{q0}:j:" + id_]), expected)
            self.check_story([fields["type"] for _, fields in stored["{q0}:e:" + id_]], expected)
        self.check_places(sets)

    async def snapshot(self) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Records and streams by key, and the members of each set by key."""
        keys = await self.redis.keys("{q0}:[jerw]*") + ["{q0}:alone:m1", "{q0}:alone:m2", "{q0}:pending", "{q0}:lease"]
        async with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                kind = key.split(":")[1]
                if kind != "wake":
                    {"j": pipe.hgetall, "e": pipe.xrange, "w": pipe.smembers}.get(kind, lambda k: pipe.zrange(k, 0, -1))(key)
            found = dict(zip((k for k in keys if ":wake:" not in k), await pipe.execute(), strict=True))
        return found, {k: sorted(v) for k, v in found.items() if k.split(":")[1] not in "je"}

    def check_record(self, job: Job, expected: Expected) -> None:
        told = (job.status, job.worker, job.attempt, job.failures, job.steps_done, job.cancel_requested)
        known = (expected.status, expected.worker, expected.attempt, expected.failures, expected.steps, expected.wish)
        assert told == known
        assert len(job.images) == (job.status is SUCCEEDED)
        assert (job.finished_at is not None) == job.done

    def check_story(self, types: list[str], expected: Expected) -> None:
        ends = [t for t in types if t in TERMINAL]
        assert ends == ([expected.status] if expected.status in TERMINAL else [])
        assert not ends or types[-1] == ends[0]
        assert types.count("started") == expected.attempt

    def check_places(self, sets: dict[str, list[str]]) -> None:
        def members(*kinds: str) -> list[str]:
            return sorted(m for key, found in sets.items() if key.split(":")[1] in kinds for m in found)

        def ids(status: JobStatus) -> list[str]:
            return sorted(id_ for id_, job in self.jobs.items() if job.status is status)

        assert members("r", "alone") == members("pending") == ids(QUEUED)
        assert members("lease") == members("w") == ids(RUNNING)
        ready = {(j.model, j.client) for j in self.jobs.values() if j.status is QUEUED and not j.suspicious}
        assert {(key.split(":")[2], m) for key, found in sets.items() if ":ring:" in key for m in found} == ready

    def teardown(self) -> None:
        """Everybody crashes. One new worker after the other takes what is left; in the end nothing is."""
        self.run(self.clock.advance(LEASE_S))
        while self.run(self.queue.reap()):
            pass
        for n in range(len(self.jobs)):
            for job in self.run(self.queue.claim(f"last-{n}", ["m1", "m2"], 100)):
                assert self.run(self.queue.finish(f"last-{n}", job.attempt, job.id, []))
        left = self.run(self.queue.depth())
        lost = [id_ for id_ in self.jobs if (job := self.run(self.queue.get(id_))) is None or not job.done]
        self.run(self.redis.aclose())
        self.runner.close()
        assert left == {"queued": 0, "running": 0}
        assert lost == []


def test_whatever_happens_every_job_ends_once(redis_url: str) -> None:
    machine = type("Machine", (QueueMachine,), {"url": redis_url})
    limits = settings(max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=limits)  # type: ignore[no-untyped-call]
