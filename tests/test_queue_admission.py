"""What a job will cost, when it will be done, and when a client must come back later."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from jobs.job import Job, JobError
from jobs.job_queue import JobQueue, QueueFull, RateLimited
from jobs.registry import Registry
from tests.job_samples import MODEL, Clock, sample_job
from tests.test_registry import worker

SECOND = {"size": 1000, "steps_total": 1}  # a job of one predicted second, as long as no worker has measured


async def submitted(queue: JobQueue, client: str = "ada", **fields: object) -> Job:
    return (await queue.submit(sample_job(client, **{**SECOND, **fields}))).job  # type: ignore[arg-type]


async def predicted(queue: JobQueue, size: int, steps: int, model: str = MODEL) -> float:
    return (await queue.forecast(sample_job(size=size, steps_total=steps, model=model))).predicted_s


async def test_without_measurements_work_is_evaluations_times_pixels(queue: JobQueue) -> None:
    assert await predicted(queue, 500, 40) == 40 * 500 * 500 / 1e6
    assert await predicted(queue, 1000, 0) == 1.0
    assert (await submitted(queue)).predicted_s == 1.0


async def test_measured_costs_are_averaged_and_carried_to_other_sizes(queue: JobQueue) -> None:
    await queue.report_cost(MODEL, 100, 100, 0.5)
    assert await predicted(queue, 100, 10) == pytest.approx(5.0)
    assert await predicted(queue, 200, 10) == pytest.approx(20.0)  # by the pixel
    assert await predicted(queue, 200, 10, model="other") == pytest.approx(0.4)
    await queue.report_cost(MODEL, 100, 100, 1.0)
    assert await predicted(queue, 100, 10) == pytest.approx(6.0)
    await queue.report_cost(MODEL, 200, 200, 1.0)
    assert await predicted(queue, 200, 10) == pytest.approx(10.0)
    for _ in range(50):
        await queue.report_cost(MODEL, 100, 100, 0.1)
    assert await predicted(queue, 100, 10) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
async def test_costs_that_cannot_be_are_refused(queue: JobQueue, seconds: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        await queue.report_cost(MODEL, 64, 64, seconds)


async def test_clients_are_charged_what_was_predicted(queue: JobQueue) -> None:
    await queue.report_cost(MODEL, 64, 64, 1.0)
    await queue.report_cost(MODEL, 128, 128, 2.0)  # measured: twice the cost for four times the pixels
    for _ in range(20):
        await submitted(queue, "large", size=128)
        await submitted(queue, "small", size=64)
    served = [j.client for j in await queue.claim("w1", [MODEL], 15)]
    assert (served.count("large"), served.count("small")) == (5, 10)


async def test_weights_are_shares(queue: JobQueue) -> None:
    await queue.set_weight("gold", 3)
    for _ in range(20):
        await submitted(queue, "gold")
        await submitted(queue, "plain")
    served = [j.client for j in await queue.claim("w1", [MODEL], 12)]
    assert (served.count("gold"), served.count("plain")) == (9, 3)
    with pytest.raises(ValueError, match="weight"):
        await queue.set_weight("gold", 0)


@pytest.mark.parametrize(("seconds", "order"), [(4.0, ["b", "b", "b", "a", "b"]), (0.25, ["a", "b", "a", "b", "a"])])
async def test_the_end_of_a_job_corrects_the_charge(queue: JobQueue, seconds: float, order: list[str]) -> None:
    for _ in range(6):
        await submitted(queue, "a")
        await submitted(queue, "b")
    first, second = await queue.claim("w1", [MODEL], 2)
    assert (first.client, second.client) == ("a", "b")
    assert await queue.finish("w1", 1, first.id, [], seconds=seconds)
    again = [j.client for j in await queue.claim("w2", [MODEL], 5)]
    assert again == order


async def test_without_seconds_the_correction_is_by_todays_cost(queue: JobQueue, redis: Redis) -> None:
    for _ in range(3):
        await submitted(queue, "a")
        await submitted(queue, "b")
    job, _ = await queue.claim("w1", [MODEL], 2)
    before = await redis.zscore("{q0}:spent", "a")
    await queue.report_cost(MODEL, 1000, 1000, 3.0)
    await queue.finish("w1", 1, job.id, [])
    assert await redis.zscore("{q0}:spent", "a") == before + 2_000_000


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_work_that_was_not_done_is_given_back(queue: JobQueue, redis: Redis, end: str) -> None:
    for _ in range(3):
        await submitted(queue, "a", steps_total=10)
        await submitted(queue, "b", steps_total=10)
    job, _, _ = await queue.claim("w1", [MODEL], 3)
    await queue.progress("w1", 1, job.id, 4)
    before = await redis.zscore("{q0}:spent", "a")
    if end == "fail":
        await queue.fail("w1", 1, job.id, JobError("broken", "It broke."))
    else:
        await queue.cancel(job.id)
        await queue.cancel_running("w1", 1, job.id)
    assert await redis.zscore("{q0}:spent", "a") == before - 6_000_000


async def test_a_correction_saves_nothing_up(queue: JobQueue, redis: Redis) -> None:
    for _ in range(20):
        await submitted(queue, "a", steps_total=5)
        await submitted(queue, "b")
    [job] = await queue.claim("w1", [MODEL], 1)
    await queue.claim("w2", [MODEL], 8)
    await queue.finish("w1", 1, job.id, [], seconds=0.001)
    present = float(await redis.get("{q0}:vt"))
    assert await redis.zscore("{q0}:spent", "a") >= present
    served = [j.client for j in await queue.claim("w3", [MODEL], 6)]
    assert served.count("b") >= 4


async def test_a_forecast_writes_nothing(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    before = await redis.dbsize()
    await queue.forecast(sample_job())
    assert await redis.dbsize() == before
    with pytest.raises(ValueError, match="key"):
        await queue.forecast(sample_job("a:b"))


async def test_position_and_eta_tell_what_stands_before(queue: JobQueue) -> None:
    assert (await queue.forecast(sample_job(**SECOND))).eta_s == pytest.approx(1.0)  # type: ignore[arg-type]
    for _ in range(5):
        await submitted(queue)
    await submitted(queue, priority=1)
    for client, position, eta_s in (("ada", 6, 7.0), ("bob", 0, 2.0)):
        forecast = await queue.forecast(sample_job(client, **SECOND))  # type: ignore[arg-type]
        assert (forecast.position, forecast.eta_s) == (position, pytest.approx(eta_s))
    first = await queue.forecast(sample_job(priority=2, **SECOND))  # type: ignore[arg-type]
    assert (first.position, first.eta_s) == (0, pytest.approx(1.0))
    better = await queue.forecast(sample_job(service_class="interactive", **SECOND))  # type: ignore[arg-type]
    assert better.eta_s == pytest.approx(1.0)
    worse = await queue.forecast(sample_job("bob", service_class="batch", **SECOND))  # type: ignore[arg-type]
    assert worse.eta_s == pytest.approx(7.0)


async def test_workers_share_what_waits_and_jobs_share_a_worker(queue: JobQueue, redis: Redis, clock: Clock) -> None:
    registry = Registry(redis)
    for _ in range(16):
        await submitted(queue)
    await queue.claim("w1", [MODEL], 8)
    job = sample_job(**SECOND)  # type: ignore[arg-type]
    assert (await queue.forecast(job)).eta_s == pytest.approx(8 + 8)
    for name in "abcd":
        await registry.beat(worker(name), ttl_s=15)
    assert (await queue.forecast(job)).eta_s == pytest.approx(8 / 4 + 8 / 4)
    await registry.leave("a")
    await clock.advance(1)
    assert (await queue.forecast(job)).eta_s == pytest.approx(8 / 3 + 8 / 3)
    await clock.advance(14)
    assert (await queue.forecast(job)).eta_s == pytest.approx(8 + 8)


async def test_where_nobody_waits_a_job_is_the_last_that_is_left(queue: JobQueue) -> None:
    for _ in range(8):
        await submitted(queue)
    await queue.claim("w1", [MODEL], 8)
    for seconds, eta_s in ((1, 1 + 4), (10, 10 + 4)):  # half of the running eight is still to do
        forecast = await queue.forecast(sample_job(size=1000, steps_total=seconds))
        assert forecast.eta_s == pytest.approx(eta_s)
    job = sample_job(size=100, steps_total=1)
    assert (await queue.forecast(job)).eta_s == pytest.approx(0.01 * 9)


async def test_a_full_queue_says_when_a_tenth_of_it_is_done(redis: Redis, clock: Clock) -> None:
    queue = JobQueue(redis, max_queued=3)
    for seconds in (30, 30, 60):
        await submitted(queue, steps_total=seconds)
    with pytest.raises(QueueFull) as full:
        await submitted(queue)
    assert full.value.retry_after_s == 12
    for name in "abc":
        await Registry(redis).beat(worker(name))
    with pytest.raises(QueueFull) as full:
        await submitted(queue)
    assert full.value.retry_after_s == 4


async def test_one_client_fills_its_own_part_only(redis: Redis) -> None:
    queue = JobQueue(redis, max_queued_per_client=2)
    jobs = [await submitted(queue, steps_total=50) for _ in range(2)]
    await submitted(queue, "bob")
    with pytest.raises(QueueFull) as full:
        await submitted(queue)
    assert full.value.retry_after_s == 20  # a tenth of its 100 s, half of the turns being bob's
    await queue.cancel(jobs[0].id)
    await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await submitted(queue)


async def test_rates_are_kept_per_client(redis: Redis, clock: Clock) -> None:
    queue = JobQueue(redis, rate_per_s=0.5, burst=3)
    for _ in range(3):
        await submitted(queue)
    with pytest.raises(RateLimited) as limited:
        await submitted(queue)
    assert limited.value.retry_after_s == 2
    await submitted(queue, "bob")
    await clock.advance(1.9)
    with pytest.raises(RateLimited) as limited:
        await submitted(queue)
    assert limited.value.retry_after_s == 1
    await clock.advance(0.1)
    await submitted(queue)
    await clock.advance(1000)  # idling saves up no more than the burst
    for _ in range(3):
        await submitted(queue)
    with pytest.raises(RateLimited):
        await submitted(queue)


async def test_a_repeated_request_costs_no_rate_and_a_refused_one_neither(redis: Redis, clock: Clock) -> None:
    queue = JobQueue(redis, rate_per_s=1, burst=2, max_queued=1)
    job = sample_job()
    await queue.submit(job, idempotency_key="k")
    for _ in range(5):
        assert not (await queue.submit(sample_job(), idempotency_key="k")).created
        with pytest.raises(QueueFull):
            await submitted(queue)
    await queue.claim("w1", [MODEL], 1)
    await submitted(queue)


async def test_rates_are_off_unless_set(queue: JobQueue, redis: Redis) -> None:
    for _ in range(50):
        await submitted(queue)
    assert await redis.exists("{q0}:rate:ada") == 0
