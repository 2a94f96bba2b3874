"""Hypothesis plays clients, workers, crashes and zombies against the real scripts; a model in Python says what must hold.

After every move tests/queue_checks.py looks. At the end every job that was accepted ends.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import ClassVar, TypeVar

from hypothesis import event
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from jobs.job import SERVICE_CLASSES, TERMINAL, JobError, JobStatus, ServiceClass
from jobs.job_queue import DeadlineUnmeetable, JobQueue, QueueFull, connect
from tests.job_samples import Clock, sample_image, sample_job
from tests.queue_checks import check_server, snapshot
from tests.queue_model import CANCELED, FAILED, PREDICTED_S, QUEUED, RUNNING, SUCCEEDED, Expected, Turns, lane, rank, regroup

MOVES = ["progress", "checkpoint", "finish", "fail", "release", "cancel_running"]
FATES = ["cancel", "crash", "pause", "finish", "fail", "release", "cancel_running"]
LEASE_S = 15.0
MAX_QUEUED, MAX_OF_ONE = 12, 8

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
    seen: ClassVar[Counter[str]] = Counter()  # how often what happened, in all plays

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
        self.turns = Turns()
        self.run(self.redis.flushall())
        self.run(self.clock.advance(0))

    def run(self, answer: Awaitable[Answer]) -> Answer:
        async def wait() -> Answer:
            return await answer

        return self.runner.run(wait())

    def saw(self, what: str) -> None:
        self.seen[what] += 1
        event(what)

    def some(self, pick: int, *status: JobStatus) -> tuple[str, Expected]:
        found = [(id_, job) for id_, job in self.jobs.items() if not status or job.status in status]
        return found[pick % len(found)]

    def requeue(self, job: Expected) -> None:
        if job.wish:
            job.status = CANCELED
            self.turns.give_back(job)
        else:
            job.status, job.worker, job.steps = QUEUED, None, job.saved

    @initialize(clients=st.lists(clients, min_size=2, max_size=8), model=models)
    def begin_with_some(self, clients: list[str], model: str) -> None:
        for client in clients:
            self.submit(client, model, 0, None, None, "normal", False)

    @rule(
        client=clients, model=models, priority=st.integers(-2, 2), key=st.sampled_from([None, "k1", "k2"]), deadline_s=deadlines,
        service_class=classes, reuse=st.booleans(),
    )  # fmt: skip
    def submit(
        self, client: str, model: str, priority: int, key: str | None, deadline_s: float | None, service_class: ServiceClass, reuse: bool
    ) -> None:
        job = sample_job(client, model=model, priority=priority, service_class=service_class, reuse=reuse)
        waiting = [j for j in self.jobs.values() if j.status is QUEUED]
        first = self.jobs.get(self.same.get((client, model), "")) if reuse else None
        answered = first is not None and first.status is SUCCEEDED
        shared = first is not None and first.status not in TERMINAL and not first.wish
        left_s = PREDICTED_S * (1 - first.steps / 20) if first and shared else PREDICTED_S
        mine = sum(j.client == client for j in waiting)
        known = self.keys.get((client, key)) if key else None
        try:
            submitted = self.run(self.queue.submit(job, idempotency_key=key, deadline_s=deadline_s, reuse_fingerprint=model))
        except QueueFull:
            assert (len(waiting) >= MAX_QUEUED or mine >= MAX_OF_ONE) and not known and not answered
            return self.saw("submit: full")
        except DeadlineUnmeetable as refused:
            assert deadline_s == 0.01 and refused.eta_s >= left_s - 0.001 and not known and not answered
            return self.saw("submit: unmeetable")
        assert submitted.created == (known is None)
        assert submitted.job.id == (known or job.id)
        self.saw(f"submit: {'created' if submitted.created else 'known'}")
        if submitted.created:
            assert answered or (len(waiting) < MAX_QUEUED and mine < MAX_OF_ONE and left_s <= (deadline_s or 1))
            deadline = float("inf") if deadline_s is None else self.clock.now + deadline_s
            self.jobs[job.id] = expected = Expected(client, model, deadline=deadline, service_class=service_class)
            if reuse:
                self.join(job.id, expected, first)
            if key:
                self.keys[client, key] = job.id

    @rule(
        client=clients, model=models, others=st.lists(deadlines, min_size=1, max_size=3),
        fate=st.sampled_from(["", "claim", "cancel", "cancel early", "finish"]),
    )  # fmt: skip
    def ask_for_the_same(self, client: str, model: str, others: list[float | None], fate: str) -> None:
        """Equal requests, and something happens to the one that leads."""
        for deadline_s in (None, *others):
            self.submit(client, model, 0, None, deadline_s, "batch", True)
        leader = self.same.get((client, model))
        if leader and fate == "cancel early":
            self.cancel([*self.jobs].index(leader), False)
        elif leader and fate:
            self.claim("w1", {model}, 4)
        if leader and fate in ("cancel", "finish") and self.jobs[leader].status is RUNNING:
            self.work_and_stop(self.place(leader), 7, fate, "finish")
            self.submit(client, model, 0, None, None, "batch", True)

    def place(self, id_: str) -> int:
        """What picks this job among those that run."""
        return [i for i, j in self.jobs.items() if j.status is RUNNING].index(id_)

    def join(self, id_: str, job: Expected, first: Expected | None) -> None:
        """The job shares in an equal one if there is one; else others will share in it."""
        if first and first.status is SUCCEEDED:
            job.status, job.steps = SUCCEEDED, 20
        elif first and first.status not in TERMINAL and not first.wish:
            job.follows = self.same[job.client, job.model]
        else:
            self.same[job.client, job.model] = id_
        self.saw(f"reuse: {'at once' if job.status is SUCCEEDED else 'follows' if job.follows else 'leads'}")

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
        for heir in heirs:
            self.same[job.client, job.model] = heir
            self.jobs[heir].saved = self.jobs[heir].steps = self.jobs[heir].inherited = job.saved
            self.saw(f"a follower took over{', with a checkpoint' if job.saved else ''}")
        if not group and self.same.get((job.client, job.model)) == id_:
            del self.same[job.client, job.model]

    @rule(worker=workers, held=st.sets(models, min_size=1), limit=st.integers(1, 4))
    def claim(self, worker: str, held: set[str], limit: int) -> None:
        mine = [j for j in self.jobs.values() if j.status is RUNNING and j.worker == worker]
        fit = [j for j in self.jobs.values() if j.stands and j.model in held]
        alone, ordinary = [j for j in fit if j.suspicious], [j for j in fit if not j.suspicious]
        regroup(self.jobs)
        self.turns.look(self.jobs)
        claimed = self.run(self.queue.claim(worker, sorted(held), limit))
        for job in claimed:
            expected = self.jobs[job.id]
            assert expected in fit
            assert (job.status, job.worker, job.attempt) == (RUNNING, worker, expected.attempt + 1)
            expected.status, expected.worker = RUNNING, worker
            expected.attempt, expected.expiry = job.attempt, self.clock.now + LEASE_S
            assert job.steps_done == expected.saved
        self.saw(f"claim: {'one' if len(claimed) == 1 else 'several' if claimed else 'nothing'}")
        if alone or any(j.suspicious for j in mine):
            self.saw(f"claim {'beside' if any(j.suspicious for j in mine) else 'while there is'} a suspicious job")
        if any(j.suspicious for j in mine):
            assert claimed == []
        elif alone and not mine:
            assert [self.jobs[j.id].suspicious for j in claimed] == [True]
        elif not alone:
            assert len(claimed) == min(limit, len(ordinary))  # no worker idles while there is work
        assert len(claimed) <= 1 or not any(self.jobs[j.id].suspicious for j in claimed)
        if claimed and not self.jobs[claimed[0].id].suspicious:
            self.check_order([self.jobs[j.id] for j in claimed], ordinary, held)

    def check_order(self, claimed: list[Expected], fit: list[Expected], held: set[str]) -> None:
        """The urgent first, by their slack; then the better class; others only if they were passed over eight times."""
        for job in claimed:
            least = min(j.due for j in fit)
            urgent = least - PREDICTED_S <= self.clock.now + 10
            in_order = job.due == least if urgent else rank(job) == min(map(rank, fit))
            assert in_order or self.passed[lane(job)] >= 8
            self.turns.serve(job, in_turn=not (urgent and job.due == least))
            self.saw(f"claim: {'urgent' if urgent and job.due == least else 'by class' if in_order else 'overdue'}")
            self.passed.update({lane(j) for j in self.jobs.values()})  # at least as often as the queue counts it
            self.passed[lane(job)] = 0
            fit = [j for j in fit if j is not job]
            self.turns.look({id_: j for id_, j in self.jobs.items() if j in fit or j.model not in held})

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(0, 25), preview=st.sampled_from([None, "data:,x"]))
    def progress(self, pick: int, steps: int, preview: str | None) -> None:
        id_, job = self.some(pick, RUNNING)
        standing = self.run(self.queue.progress(job.worker or "", job.attempt, id_, steps, preview=preview))
        assert standing == (2 if job.wish else 1)
        job.steps = max(job.steps, min(steps, 20))
        self.saw("progress")

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(-9, 25), images=st.integers(0, 2))
    def checkpoint(self, pick: int, steps: int, images: int) -> None:
        """Of so many steps; below 0 the one that is there, again."""
        id_, job = self.some(pick, RUNNING)
        steps = job.saved if steps < 0 else steps
        refs = [sample_image(sample_job(id=id_), job.attempt, index) for index in range(images)]
        assert self.run(self.queue.checkpoint(job.worker or "", job.attempt, id_, b"\xff" * steps, refs, steps_done=steps))
        steps = min(steps, 20)
        if steps >= job.saved:
            job.failures = 0 if steps > job.saved else job.failures
            job.saved, job.saved_by, job.steps = steps, job.attempt, max(job.steps, steps)
            kept = self.run(self.queue.load_checkpoint(id_))
            assert kept is not None and (kept.images, kept.attempt) == (tuple(refs), job.saved_by)
        self.saw(f"checkpoint{' of an older state' if steps < job.saved else ''}")

    @precondition(some_run)
    @rule(pick=picks)
    def pause(self, pick: int) -> None:
        id_, job = self.some(pick, RUNNING)
        assert self.run(self.queue.release(job.worker or "", job.attempt, id_, reason="paused"))
        job.pauses += 1
        self.saw("pause")
        self.requeue(job)
        self.settle_groups()

    @precondition(some_run)
    @rule(pick=picks, move=st.sampled_from(["finish", "fail", "release", "cancel_running"]))
    def end_attempt(self, pick: int, move: str) -> None:
        id_, job = self.some(pick, RUNNING)
        allowed = move != "cancel_running" or job.wish
        assert self.run(self.move(move, job.worker or "", job.attempt, id_)) == allowed
        self.saw(move if allowed else "cancel_running without a wish")
        repeated = self.run(self.move(move, job.worker or "", job.attempt, id_))  # the answer may have been lost
        assert repeated == (allowed and move != "release")
        if move == "release":
            self.requeue(job)
        elif allowed:
            job.status = {"finish": SUCCEEDED, "fail": FAILED, "cancel_running": CANCELED}[move]
            job.steps = 20 if move == "finish" else job.steps
            self.turns.give_back(job)
        self.settle_groups()

    @precondition(some_run)
    @rule(pick=picks, steps=st.integers(1, 20), fate=st.sampled_from(FATES), stolen=st.sampled_from(MOVES))
    def work_and_stop(self, pick: int, steps: int, fate: str, stolen: str) -> None:
        """A job is worked on to a checkpoint, somebody else tries to get at it, and then something happens to it."""
        id_, job = self.some(pick, RUNNING)
        place = self.place(id_)
        self.checkpoint(place, steps, 1)
        for itself, back in ((True, 1), (False, 0)):
            self.zombie(place, "w1" if job.worker != "w1" else "w2", itself, back, stolen, True)
        if fate == "cancel":
            self.cancel([*self.jobs].index(id_), False)
            self.end_attempt(place, "cancel_running")
        elif fate == "crash":
            self.time_passes(LEASE_S)
        elif fate == "pause":
            self.pause(place)
        else:
            self.end_attempt(place, fate)

    @rule(pick=picks, worker=workers, itself=st.booleans(), back=st.integers(0, 2), move=st.sampled_from(MOVES), runs=st.booleans())
    def zombie(self, pick: int, worker: str, itself: bool, back: int, move: str, runs: bool) -> None:
        """Somebody who does not hold the job tries; the invariants see to it that nothing changed."""
        id_, job = self.some(pick, *([RUNNING] if runs and some_run(self) else []))
        worker = job.worker or worker if itself else worker
        if (worker, job.attempt - back) == (job.worker, job.attempt):
            return
        assert not self.run(self.move(move, worker, job.attempt - back, id_))
        assert id_ in self.run(self.queue.renew(worker, {id_: job.attempt - back})).lost
        self.saw(f"zombie of a job that {'runs' if job.status is RUNNING else 'waits' if job.status is QUEUED else 'has ended'}")
        if job.status is RUNNING and worker == job.worker:
            self.saw("zombie of an earlier attempt")

    @rule(pick=picks, unended=st.booleans())
    def cancel(self, pick: int, unended: bool) -> None:
        any_left = any(job.status not in TERMINAL for job in self.jobs.values())
        id_, job = self.some(pick, *([QUEUED, RUNNING] if unended and any_left else []))
        answer = self.run(self.queue.cancel(id_))
        self.saw(f"cancel of a job that {'runs' if job.status is RUNNING else 'waits' if job.status is QUEUED else 'has ended'}")
        job.wish = job.wish or job.status not in TERMINAL
        if job.status is QUEUED:
            job.status = CANCELED
            self.turns.give_back(job)  # it may have been charged in an attempt that came to nothing
        assert answer is not None and answer.status is job.status
        self.settle_groups()

    @precondition(some_run)
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        held = {id_: j for id_, j in self.jobs.items() if j.status is RUNNING and j.worker == worker}
        renewal = self.run(self.queue.renew(worker, {id_: j.attempt for id_, j in held.items()}))
        assert renewal.lost == set()
        assert renewal.canceled == {id_ for id_, j in held.items() if j.wish}
        regroup(self.jobs)
        patient = {id_ for id_, j in held.items() if j.best_class != "interactive" and j.due == float("inf")}
        assert set(renewal.pausable) <= {id_ for id_ in patient if held[id_].pauses < 3 and not held[id_].wish}
        self.saw(f"renew{', and make room' if renewal.pausable else ''}")
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
            self.saw(f"lease expiry, failures {min(job.failures, 5)}")
            if job.failures >= 5 and not job.wish:
                job.status = FAILED
            else:
                self.requeue(job)
        for job in self.jobs.values():
            leader = self.jobs.get(job.follows or "")
            if job.status is QUEUED and leader and leader.status is FAILED:
                job.status, job.steps, job.follows = FAILED, leader.steps, None
        late = [j for j in self.jobs.values() if j.status is QUEUED and j.deadline <= self.clock.now and not self.in_a_run(j)]
        for id_, job in [(i, j) for i, j in self.jobs.items() if j in late]:
            leader = self.jobs.get(job.follows or "")
            if leader and (leader in late or leader.status is CANCELED):  # it may have taken over first, and what was saved with it
                job.steps = int(self.run(self.redis.hget("{q0}:j:" + id_, "steps_done")))
                assert job.steps in (0, leader.saved)
            job.status, job.worker, job.expired = FAILED, None, True
            self.saw("deadline passed")
        assert moved == len(overdue) + len(late)
        self.settle_groups()

    def in_a_run(self, job: Expected) -> bool:
        return job.follows is not None and self.jobs[job.follows].status is RUNNING

    @rule(worker=workers, model=models, crashes=st.integers(1, 4))
    def crash_again_and_again(self, worker: str, model: str, crashes: int) -> None:
        for _ in range(crashes):
            self.claim(worker, {model}, 2)
            self.time_passes(LEASE_S)
        for _ in range(2 * (crashes > 1)):
            self.claim(worker, {model}, 2)

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
        regroup(self.jobs)
        self.turns.look(self.jobs)
        check_server(self.run(snapshot(self.redis)), self.jobs)
        if self.turns.compared:
            self.saw("a client was ahead of one that waits, within the bound")

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
