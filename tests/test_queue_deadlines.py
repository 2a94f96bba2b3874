"""Classes, deadlines and aging: who goes first, who is refused, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from jobs.events import EventLog
from jobs.job import Job, JobStatus
from jobs.job_queue import DeadlineUnmeetable, JobQueue
from tests.job_samples import MODEL, Clock, sample_job

SECOND = {"size": 1000, "steps_total": 1}  # a job of one predicted second, as long as no worker has measured


async def submitted(queue: JobQueue, client: str = "ada", deadline_s: float | None = None, **fields: object) -> Job:
    return (await queue.submit(sample_job(client, **fields), deadline_s=deadline_s)).job  # type: ignore[arg-type]


async def claim_ids(queue: JobQueue, worker: str, limit: int) -> list[str]:
    return [job.id for job in await queue.claim(worker, [MODEL], limit)]


async def test_better_classes_go_first_whoever_came_first(queue: JobQueue) -> None:
    batch, normal, interactive = [await submitted(queue, k, service_class=k) for k in ("batch", "normal", "interactive")]
    assert await claim_ids(queue, "w1", 3) == [interactive.id, normal.id, batch.id]


async def test_a_better_class_goes_first_whatever_its_client_has_had(queue: JobQueue) -> None:
    for _ in range(4):
        await submitted(queue, "busy", service_class="interactive")
    await submitted(queue, "new")
    classes = [job.service_class for job in await queue.claim("w1", [MODEL], 5)]
    assert classes == ["interactive"] * 4 + ["normal"]


async def test_no_class_starves(queue: JobQueue) -> None:
    """A lane that was passed over eight times in a row gets a turn."""
    for service_class in ("interactive", "normal", "batch"):
        for _ in range(60):
            await submitted(queue, service_class, service_class=service_class)
    order = [(await queue.claim(f"w{n}", [MODEL], 1))[0].service_class for n in range(60)]
    assert set(order[:8]) == {"interactive"}
    shares = Counter(order)
    assert shares["normal"] == shares["batch"] == 6
    assert shares["interactive"] == 48


async def test_a_class_in_another_model_does_not_starve_either(queue: JobQueue) -> None:
    for _ in range(20):
        await submitted(queue, "a", model="m1", service_class="interactive")
        await submitted(queue, "b", model="m2", service_class="batch")
    models = [(await queue.claim(f"w{n}", ["m1", "m2"], 1))[0].params.model for n in range(18)]
    assert models == (["m1"] * 8 + ["m2"]) * 2


async def test_work_in_one_class_counts_in_the_others(queue: JobQueue) -> None:
    """The client whose jobs of a better class were just served comes after the one that waited."""
    for _ in range(4):
        await submitted(queue, "a", service_class="interactive")
    for _ in range(4):
        await submitted(queue, "a")
        await submitted(queue, "b")
    assert [j.client for j in await queue.claim("w1", [MODEL], 9)][4:] == ["b", "a", "b", "a", "b"]


async def test_a_step_of_priority_is_worth_ten_minutes(queue: JobQueue, clock: Clock) -> None:
    """So that a stream of important jobs does not hold up the others of its client for ever."""
    old = await submitted(queue)
    await clock.advance(599)
    important = await submitted(queue, priority=1)
    await clock.advance(2)
    too_late = await submitted(queue, priority=1)
    assert await claim_ids(queue, "w1", 3) == [important.id, old.id, too_late.id]


async def test_a_deadline_is_kept_by_the_server_and_met_before_all_classes(queue: JobQueue, clock: Clock) -> None:
    for _ in range(3):
        await submitted(queue, "eve", service_class="interactive")
        await submitted(queue, "ada", priority=9)
    later = await submitted(queue, deadline_s=40, **SECOND)
    sooner = await submitted(queue, service_class="batch", deadline_s=30, **SECOND)
    assert sooner.deadline_at == clock.now + 30
    assert not {later.id, sooner.id} & set(await claim_ids(queue, "w0", 2))  # there is time
    await clock.advance(18.9)
    assert sooner.id not in await claim_ids(queue, "w1", 1)
    await clock.advance(0.2)  # ten seconds before it must start
    assert await claim_ids(queue, "w2", 1) == [sooner.id]
    await clock.advance(10)
    assert await claim_ids(queue, "w3", 1) == [later.id]


async def test_the_urgent_are_served_by_slack_and_are_charged(queue: JobQueue) -> None:
    long = await submitted(queue, "ada", deadline_s=9, size=1000, steps_total=5)  # must start in 4 s
    short = await submitted(queue, "ada", deadline_s=8, **SECOND)  # in 7 s
    for client in ("ada", "bob"):
        await submitted(queue, client)
    jobs = await queue.claim("w1", [MODEL], 4)
    assert [j.id for j in jobs[:2]] == [long.id, short.id]
    assert [j.client for j in jobs[2:]] == ["bob", "ada"]


async def test_the_urgent_do_not_starve_the_others(queue: JobQueue) -> None:
    for _ in range(20):
        await submitted(queue, "hasty", deadline_s=9, service_class="interactive")
    patient = await submitted(queue, "patient", service_class="batch")
    assert patient.id in await claim_ids(queue, "w1", 9)


async def test_a_deadline_that_cannot_be_met_is_refused_with_the_time(queue: JobQueue) -> None:
    with pytest.raises(DeadlineUnmeetable) as refused:
        await submitted(queue, deadline_s=0.9, **SECOND)
    assert refused.value.eta_s == pytest.approx(1.0)
    assert await queue.depth() == {"queued": 0, "running": 0}
    await submitted(queue, deadline_s=1.1, **SECOND)
    with pytest.raises(DeadlineUnmeetable) as refused:  # what was promised before goes first
        await submitted(queue, "bob", deadline_s=1.1, **SECOND)
    assert refused.value.eta_s == pytest.approx(3.0)
    with pytest.raises(ValueError, match="above 0"):
        await submitted(queue, deadline_s=0)


async def test_a_deadline_that_passes_in_the_queue_is_a_failure(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job, other = await submitted(queue, deadline_s=5), await submitted(queue)
    await clock.advance(4.9)
    assert await queue.reap() == 0
    await clock.advance(0.1)
    assert await queue.reap() == 1
    failed = await queue.get(job.id)
    assert failed is not None and failed.error is not None
    assert (failed.status, failed.error.code, failed.finished_at) == (JobStatus.FAILED, "deadline", clock.now)
    last = (await EventLog(redis).read(job.id))[-1]
    assert (last.type, last.data["error"]["code"]) == ("failed", "deadline")
    assert await claim_ids(queue, "w1", 9) == [other.id]


async def test_a_running_job_is_not_failed_by_its_deadline_but_a_returning_one_is(queue: JobQueue, clock: Clock) -> None:
    job = await submitted(queue, deadline_s=5)
    await queue.claim("w1", [MODEL], 1)
    await clock.advance(6)
    assert await queue.reap() == 0
    await queue.release("w1", 1, job.id)
    assert await queue.reap() == 1
    failed = await queue.get(job.id)
    assert failed is not None and failed.error is not None and failed.error.code == "deadline"


async def test_canceled_jobs_leave_no_deadline_behind(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    job = await submitted(queue, deadline_s=5)
    await queue.cancel(job.id)
    assert await redis.exists("{q0}:deadline", f"{{q0}}:slack:{MODEL}") == 0
    await clock.advance(6)
    assert await queue.reap() == 0


async def test_a_worker_may_pause_the_lowest_class_for_the_urgent(queue: JobQueue) -> None:
    for n, service_class in enumerate(("batch", "normal", "interactive", "batch")):
        await submitted(queue, f"c{n}", service_class=service_class)
    held = {job.id: job for job in await queue.claim("w1", [MODEL], 4)}
    leases = {id_: job.attempt for id_, job in held.items()}
    assert not (await queue.renew("w1", leases)).urgent
    await submitted(queue, "eve", service_class="interactive")
    renewal = await queue.renew("w1", leases)
    assert renewal.urgent
    assert [held[id_].service_class for id_ in renewal.pausable] == ["batch", "batch", "normal"]
    assert not (await queue.renew("w2", {})).urgent


async def test_a_deadline_in_sight_is_urgent_too(queue: JobQueue, clock: Clock) -> None:
    await submitted(queue)
    [job] = await queue.claim("w1", [MODEL], 1)
    await submitted(queue, "bob", deadline_s=60)
    assert not (await queue.renew("w1", {job.id: 1})).urgent
    await clock.advance(51)
    assert (await queue.renew("w1", {job.id: 1})).pausable == (job.id,)


async def test_as_many_workers_make_room_as_jobs_are_urgent(queue: JobQueue, clock: Clock) -> None:
    held = {}
    for n in range(3):
        await submitted(queue, service_class="batch")
        [job] = await queue.claim(f"w{n}", [MODEL], 1)
        held[f"w{n}"] = {job.id: 1}
    await submitted(queue, "eve", service_class="interactive")
    assert [(await queue.renew(w, jobs)).urgent for w, jobs in held.items()] == [True, False, False]
    assert [(await queue.renew(w, jobs)).urgent for w, jobs in held.items()] == [True, False, False]
    await clock.advance(5)  # the first made no room
    assert [(await queue.renew(w, held[w])).urgent for w in ("w1", "w0")] == [True, False]


async def test_nobody_is_paused_for_ever(queue: JobQueue) -> None:
    job = await submitted(queue, service_class="batch")
    for attempt in (1, 2, 3):
        assert await claim_ids(queue, "w1", 1) == [job.id]
        await queue.release("w1", attempt, job.id, reason="paused")
    assert await claim_ids(queue, "w1", 1) == [job.id]
    await submitted(queue, "eve", service_class="interactive")
    assert not (await queue.renew("w1", {job.id: 4})).urgent
