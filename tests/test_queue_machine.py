"""Hypothesis plays clients, workers, crashes and zombies against the real scripts; a model in Python says what must hold.

After every move: the stored states are the model's, terminal states never change, each queued job waits in exactly one
place, each running job has one lease, and each ended job has told its end exactly once. At the end every job that was
accepted ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from jobs.job import SERVICE_CLASSES, TERMINAL, Job, JobError, JobStatus, ServiceClass
from jobs.job_queue import DeadlineUnmeetable, JobQueue, QueueFull, connect
from tests.job_samples import Clock, sample_image, sample_job
from tests.queue_model import CANCELED, FAILED, PREDICTED_S, PREDICTED_US, QUEUED, RUNNING, SUCCEEDED, Expected, lane, rank

MOVES = ["progress", "checkpoint", "finish", "fail", "release", "cancel_running"]
LEASE_S = 15.0
MAX_QUEUED = 12
MAX_OF_ONE = 8

Answer = TypeVar("Answer")
clients = st.sampled_from(["ada", "bob", "cyd"])
workers = st.sampled_from(["w1", "w2", "w3"])
models = st.sampled_from(["m1", "m2"])
classes = st.sampled_from(SERVICE_CLASSES)
picks = st.integers(0, 10**6)
deadlines = st.sampled_from([None, None, None, 0.01, 8.0, 60.0])  # the shortest is shorter than the work itself


def some_run(machine: QueueMachine) -> bool:
    return any(job.status is RUNNING for job in machine.jobs.values())


class QueueMachine(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect(self.url)
        self.queue = JobQueue(self.redis, lease_s=LEASE_S, max_queued=MAX_QUEUED, max_queued_per_client=MAX_OF_ONE)
        self.clock = Clock(self.redis, 1_000_000.0)
        self.jobs: dict[str, Expected] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self.same: dict[tuple[str, str], str] = {}  # client and model -> the job that others with `reuse` follow
        self.passed: Counter[str] = Counter()
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
        job.status, job.worker, job.steps = (CANCELED, job.worker, job.steps) if job.wish else (QUEUED, None, job.saved)

    @initialize(clients=st.lists(clients, min_size=2, max_size=8), model=models)
    def begin_with_some(self, clients: list[str], model: str) -> None:
        for client in clients:
            self.submit(client, model, 0, None, None, "normal", False)

    @rule(
        client=clients,
        model=models,
        priority=st.integers(-2, 2),
        key=st.sampled_from([None, "k1", "k2"]),
        deadline_s=deadlines,
        service_class=classes,
        reuse=st.booleans(),
    )
    def submit(
        self, client: str, model: str, priority: int, key: str | None, deadline_s: float | None, service_class: ServiceClass, reuse: bool
    ) -> None:
        job = sample_job(client, model=model, priority=priority, service_class=service_class, reuse=reuse)
        waiting = [j for j in self.jobs.values() if j.status is QUEUED]
        first = self.jobs.get(self.same.get((client, model), "")) if reuse else None
        answered = first is not None and first.status is SUCCEEDED
        mine = sum(j.client == client for j in waiting)
        known = self.keys.get((client, key)) if key else None
        try:
            submitted = self.run(self.queue.submit(job, idempotency_key=key, deadline_s=deadline_s, reuse_fingerprint=model))
        except QueueFull:
            assert (len(waiting) >= MAX_QUEUED or mine >= MAX_OF_ONE) and not known and not answered
            return
        except DeadlineUnmeetable as refused:
            assert deadline_s == 0.01 and refused.eta_s >= PREDICTED_S and not known and not answered
            return
        assert submitted.created == (known is None)
        assert submitted.job.id == (known or job.id)
        if submitted.created:
            assert answered or (len(waiting) < MAX_QUEUED and mine < MAX_OF_ONE and deadline_s != 0.01)
            deadline = float("inf") if deadline_s is None else self.clock.now + deadline_s
            self.jobs[job.id] = expected = Expected(client, model, deadline=deadline, service_class=service_class)
            if reuse:
                self.join(job.id, expected, first)
            if key:
                self.keys[client, key] = job.id

    @rule(client=clients, model=models, others=st.lists(deadlines, min_size=1, max_size=3), fate=st.sampled_from(["", "claim", "cancel"]))
    def ask_for_the_same(self, client: str, model: str, others: list[float | None], fate: str) -> None:
        """Equal requests, and something happens to the one that leads."""
        for deadline_s in (None, *others):
            self.submit(client, model, 0, None, deadline_s, "batch", True)
        leader = self.same.get((client, model))
        if leader and fate == "claim":
            self.claim("w1", {model}, 4)
        elif leader and fate == "cancel":
            self.cancel([*self.jobs].index(leader))

    def join(self, id_: str, job: Expected, first: Expected | None) -> None:
        """The job shares in an equal one if there is one; else others will share in it."""
        if first and first.status is SUCCEEDED:
            job.status, job.steps = SUCCEEDED, 20
        elif first and first.status not in TERMINAL and not first.wish and rank(first) <= rank(job):
            job.follows = self.same[job.client, job.model]
        else:
            self.same[job.client, job.model] = id_
        event(f"reuse: {'at once' if job.status is SUCCEEDED else 'follows' if job.follows else 'leads'}")

    def settle_groups(self) -> None:
        """Those who follow a job that has ended share its end, or one of them takes its place."""
        for id_, job in [(i, j) for i, j in self.jobs.items() if j.status in TERMINAL]:
            group = {i: j for i, j in self.jobs.items() if j.follows == id_ and j.status is QUEUED}
            if job.status is CANCELED or job.expired:
                self.hand_over(id_, job, group)
                continue
            for follower in group.values():
                follower.status, follower.steps, follower.follows = job.status, job.steps, None
            if job.status is FAILED and self.same.get((job.client, job.model)) == id_:
                del self.same[job.client, job.model]

    def hand_over(self, id_: str, job: Expected, group: dict[str, Expected]) -> None:
        told = {i: self.run(self.redis.hget("{q0}:j:" + i, "follows")) for i in group}
        heirs = [i for i, follows in told.items() if not follows]
        assert len(heirs) == bool(group)
        for i, follower in group.items():
            assert told[i] in (None, *heirs)
            follower.follows = told[i]
            self.same[job.client, job.model] = heirs[0]
            event("a follower took over")
        if not group and self.same.get((job.client, job.model)) == id_:
            del self.same[job.client, job.model]

    @rule(worker=workers, held=st.sets(models, min_size=1), limit=st.integers(1, 4))
    def claim(self, worker: str, held: set[str], limit: int) -> None:
        mine = [j for j in self.jobs.values() if j.status is RUNNING and j.worker == worker]
        fit = [j for j in self.jobs.values() if j.stands and j.model in held]
        alone, ordinary = [j for j in fit if j.suspicious], [j for j in fit if not j.suspicious]
        claimed = self.run(self.queue.claim(worker, sorted(held), limit))
        for job in claimed:
            expected = self.jobs[job.id]
            assert expected in fit
            assert (job.status, job.worker, job.attempt) == (RUNNING, worker, expected.attempt + 1)
            expected.status, expected.worker = RUNNING, worker
            expected.attempt, expected.expiry = job.attempt, self.clock.now + LEASE_S
            assert job.steps_done == expected.saved
        event(f"claim beside a suspicious job: {any(j.suspicious for j in mine)}, with one waiting: {bool(alone)}")
        if any(j.suspicious for j in mine):
            assert claimed == []
        elif alone and not mine:
            assert [self.jobs[j.id].suspicious for j in claimed] == [True]
        elif not alone:
            assert len(claimed) == min(limit, len(ordinary))  # no worker idles while there is work
        assert len(claimed) <= 1 or not any(self.jobs[j.id].suspicious for j in claimed)
        if claimed and not self.jobs[claimed[0].id].suspicious:
            self.check_order([self.jobs[j.id] for j in claimed], ordinary)

    def check_order(self, claimed: list[Expected], fit: list[Expected]) -> None:
        """The urgent first, by their slack; then the better class; others only if they were passed over eight times."""
        for job in claimed:
            least = min(j.deadline for j in fit)
            urgent = least - PREDICTED_S <= self.clock.now + 10
            in_order = job.deadline == least if urgent else rank(job) == min(map(rank, fit))
            assert in_order or self.passed[lane(job)] >= 8
            self.passed.update({lane(j) for j in self.jobs.values()})  # at least as often as the queue counts it
            self.passed[lane(job)] = 0
            fit = [j for j in fit if j is not job]

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(0, 25), preview=st.sampled_from([None, "data:,x"]))
    def progress(self, pick: int, steps: int, preview: str | None) -> None:
        id_, job = self.some(pick, RUNNING)
        standing = self.run(self.queue.progress(job.worker or "", job.attempt, id_, steps, preview=preview))
        assert standing == (2 if job.wish else 1)
        job.steps = max(job.steps, min(steps, 20))

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(0, 25), images=st.integers(0, 2))
    def checkpoint(self, pick: int, steps: int, images: int) -> None:
        id_, job = self.some(pick, RUNNING)
        refs = [sample_image(sample_job(id=id_), job.attempt, index) for index in range(images)]
        assert self.run(self.queue.checkpoint(job.worker or "", job.attempt, id_, b"\xff" * steps, refs, steps_done=steps))
        steps = min(steps, 20)
        if steps >= job.saved:
            job.failures = 0 if steps > job.saved else job.failures
            job.saved, job.saved_by, job.steps = steps, job.attempt, max(job.steps, steps)
            kept = self.run(self.queue.load_checkpoint(id_))
            assert kept is not None and (kept.images, kept.attempt) == (tuple(refs), job.saved_by)

    @precondition(some_run)
    @rule(pick=picks)
    def pause(self, pick: int) -> None:
        id_, job = self.some(pick, RUNNING)
        assert self.run(self.queue.release(job.worker or "", job.attempt, id_, reason="paused"))
        job.pauses += 1
        self.requeue(job)
        self.settle_groups()

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
        self.settle_groups()

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
        self.settle_groups()

    @precondition(some_run)
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        held = {id_: j for id_, j in self.jobs.items() if j.status is RUNNING and j.worker == worker}
        renewal = self.run(self.queue.renew(worker, {id_: j.attempt for id_, j in held.items()}))
        assert renewal.lost == set()
        assert renewal.canceled == {id_ for id_, j in held.items() if j.wish}
        assert set(renewal.pausable) <= {id_ for id_, j in held.items() if j.service_class != "interactive" and j.pauses < 3 and not j.wish}
        for job in held.values():
            job.expiry = self.clock.now + LEASE_S

    @precondition(some_run)
    @rule(seconds=st.sampled_from([1.0, 7.0, LEASE_S]))
    def time_passes(self, seconds: float) -> None:
        self.run(self.clock.advance(seconds))
        overdue = [j for j in self.jobs.values() if j.status is RUNNING and j.expiry <= self.clock.now]
        moved = self.run(self.queue.reap())
        for job in overdue:
            job.failures += 1
            if job.failures >= 5 and not job.wish:
                job.status = FAILED
            else:
                self.requeue(job)
        for job in self.jobs.values():
            leader = self.jobs.get(job.follows or "")
            if job.status is QUEUED and leader and leader.status is FAILED:
                job.status, job.steps, job.follows = FAILED, leader.steps, None
        late = [j for j in self.jobs.values() if j.status is QUEUED and j.deadline <= self.clock.now]
        for job in late:
            job.status, job.worker, job.expired = FAILED, None, True
        assert moved == len(overdue) + len(late)
        self.settle_groups()

    @rule(worker=workers, model=models, crashes=st.integers(1, 4))
    def crash_again_and_again(self, worker: str, model: str, crashes: int) -> None:
        for _ in range(crashes):
            self.claim(worker, {model}, 2)
            self.time_passes(LEASE_S)

    def move(self, move: str, worker: str, attempt: int, id_: str) -> Awaitable[object]:
        extra: dict[str, tuple[object, ...]] = {
            "progress": (9,),
            "checkpoint": (b"stolen",),
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
        self.check_tallies(stored.get("{q0}:work", {}), stored.get("{q0}:queued", {}))

    async def snapshot(self) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Records and streams by key, and the members of each set by key."""
        kinds = ("j", "e", "w", "r", "ring", "alone", "pending", "lease", "deadline", "slack", "work", "queued", "f")
        keys = [key for key in await self.redis.keys("{q0}:*") if key.split(":")[1] in kinds]
        async with self.redis.pipeline(transaction=False) as pipe:
            hashes = dict.fromkeys(("j", "work", "queued"), pipe.hgetall)
            reads: dict[str, Any] = {**hashes, "e": pipe.xrange, "w": pipe.smembers}
            for key in keys:
                reads.get(key.split(":")[1], lambda k: pipe.zrange(k, 0, -1))(key)
            found = dict(zip(keys, await pipe.execute(), strict=True))
        return found, {k: sorted(v) for k, v in found.items() if isinstance(v, (list, set)) and ":e:" not in k}

    def check_record(self, job: Job, expected: Expected) -> None:
        told = (job.status, job.worker, job.attempt, job.failures, job.steps_done, job.cancel_requested, job.pauses)
        known = (expected.status, expected.worker, expected.attempt, expected.failures, expected.steps, expected.wish, expected.pauses)
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

        assert members("pending") == ids(QUEUED)
        assert members("r", "alone") == sorted(id_ for id_, job in self.jobs.items() if job.stands)
        assert members("f") == sorted(id_ for id_, job in self.jobs.items() if job.status is QUEUED and job.follows)
        assert members("lease") == members("w") == ids(RUNNING)
        queued = {id_: j for id_, j in self.jobs.items() if j.status is QUEUED}
        ready = {(lane(j), j.client) for j in queued.values() if j.stands and not j.suspicious}
        assert {(key.split(":")[2], m) for key, found in sets.items() if ":ring:" in key for m in found} == ready
        limited = {id_: j for id_, j in queued.items() if j.deadline < float("inf")}
        assert members("deadline") == sorted(limited)
        assert members("slack") == sorted(id_ for id_, j in limited.items() if j.stands and not j.suspicious)

    def check_tallies(self, work: dict[str, str], queued: dict[str, str]) -> None:
        """What forecasts and bounds read is what is there."""
        waiting = [j for j in self.jobs.values() if j.status is QUEUED]
        ready = [j for j in waiting if j.stands and not j.suspicious]
        running = [f"running:{j.model}" for j in self.jobs.values() if j.status is RUNNING]
        promised = [f"promised:{j.model}" for j in ready if j.deadline < float("inf")]
        parts = Counter([*map(lane, ready), *(f"{lane(j)}:{j.client}" for j in ready), *promised, *running])
        assert {name: int(micros) for name, micros in work.items() if int(micros)} == {n: c * PREDICTED_US for n, c in parts.items()}
        assert queued == {client: str(count) for client, count in Counter(j.client for j in waiting).items()}

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
    limits = settings(max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=limits)  # type: ignore[no-untyped-call]
