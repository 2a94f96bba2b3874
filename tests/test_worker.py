"""The worker's shell against real Valkey and storage, with a drawing thread that does what the test says."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable

from jobs.image_store import LocalImageStore
from jobs.job import JobStatus
from jobs.job_queue import JobQueue, Renewal
from pipelines.engine import checkpoint
from tests.job_samples import sample_image, sample_job
from tests.worker_bench import CARD, PIXELS, TIMEOUT_S, Bench, draw_at_once, job
from workers import encode
from workers.insist import insist, unless
from workers.log import configure
from workers.messages import Broken, Command, Draw, Drawn, Drop, Report


class LosesAnswers(JobQueue):
    """The server finishes the job, and the answer never arrives: once."""

    lost = 1

    async def finish(self, *args: Any, **options: Any) -> bool:
        done = await super().finish(*args, **options)
        if self.lost:
            self.lost -= 1
            raise Unreachable("dropped after the script ran")
        return done


async def test_a_finish_whose_answer_is_lost_keeps_its_picture(redis: Redis, tmp_path: Path) -> None:
    """Meanwhile the lease is gone, renewing says lost, and still nothing of a job that succeeded may be deleted."""
    queue = LosesAnswers(redis)
    await queue.submit(job("a"))
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    done = await bench.ended("a")
    await bench.stop()
    assert done.status is JobStatus.SUCCEEDED
    assert bench.files() == {image.key for image in done.images} != set()


async def test_a_checkpoint_that_holds_every_picture_only_has_to_be_recorded(redis: Redis, tmp_path: Path) -> None:
    """The first worker was lost between its last picture and the record: nothing is left to draw, and the job still ends."""
    queue = JobQueue(redis)
    wanted = job("a")
    await queue.submit(wanted)
    [first] = await queue.claim("lost", [CARD.id], 1)
    picture = sample_image(first)
    await LocalImageStore(tmp_path).put(picture.key, b"drawn")
    assert await queue.checkpoint("lost", 1, "a", checkpoint.dump({}), [picture], steps_done=wanted.steps_total)
    assert await queue.release("lost", 1, "a")
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    done = await bench.ended("a")
    await bench.stop()
    assert done.status is JobStatus.SUCCEEDED
    assert done.images == (picture,)
    assert not any(isinstance(c, Draw) for c in bench.puppet.commands)


@pytest.mark.parametrize("there", [True, False])
async def test_who_takes_over_from_a_canceled_equal_job_goes_on_with_its_pictures(redis: Redis, tmp_path: Path, there: bool) -> None:
    """Under its own name: the other's pictures go when its time of keeping is over. One that went already is drawn anew."""
    queue = JobQueue(redis)
    params = replace(job("x").params, num_images=2)
    for name in ("leader", "heir"):
        await queue.submit(job(name, params=params, reuse=True, steps_total=40), reuse_fingerprint="f")
    [leader] = await queue.claim("lost", [CARD.id], 1)
    picture = sample_image(leader)
    if there:
        await LocalImageStore(tmp_path).put(picture.key, b"drawn before")
    assert await queue.checkpoint("lost", 1, "leader", checkpoint.dump({}), [picture], steps_done=20)
    await queue.cancel("leader")
    assert await queue.cancel_running("lost", 1, "leader")

    def react(command: Command) -> list[Report]:
        if not isinstance(command, Draw):
            return []
        return [Drawn(command.job, index, PIXELS, 0.1) for index in {0, 1} - command.drawn]

    bench = Bench(queue, redis, tmp_path, react)
    done = await bench.ended("heir")
    await bench.stop()
    assert done.status is JobStatus.SUCCEEDED
    assert [image.key for image in done.images] == ["heir/1-0.png", "heir/1-1.png"]
    drawn = [c.drawn for c in bench.puppet.commands if isinstance(c, Draw)]
    assert drawn == [frozenset({0} if there else set())]
    assert ((tmp_path / "heir/1-0.png").read_bytes() == b"drawn before") is there


async def test_a_cancel_leaves_the_checkpoint_whole_for_who_takes_over(redis: Redis, tmp_path: Path) -> None:
    queue = JobQueue(redis)
    params = replace(job("x").params, num_images=2)
    for name in ("leader", "heir"):
        await queue.submit(job(name, params=params, reuse=True, steps_total=40), reuse_fingerprint="f")
    [leader] = await queue.claim("lost", [CARD.id], 1)
    picture = sample_image(leader)
    await LocalImageStore(tmp_path).put(picture.key, b"drawn before")
    assert await queue.checkpoint("lost", 1, "leader", checkpoint.dump({}), [picture], steps_done=20)
    assert await queue.release("lost", 1, "leader")
    drawing: dict[str, asyncio.Event] = {"leader": asyncio.Event(), "heir": asyncio.Event()}

    def react(command: Command) -> list[Report]:
        if isinstance(command, Draw):
            drawing[command.job.id].set()
        return []

    bench = Bench(queue, redis, tmp_path, react)
    await asyncio.wait_for(drawing["leader"].wait(), TIMEOUT_S)
    await queue.cancel("leader")
    await asyncio.wait_for(drawing["heir"].wait(), TIMEOUT_S)
    await bench.stop()
    assert picture.key in bench.files()


class Forgetful(JobQueue):
    """Renewals do not get through until the test lets them, so leases run out under a worker that lives."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, lease_s=0.3)
        self.open = asyncio.Event()

    async def renew(self, worker: str, held: Any) -> Renewal:
        await self.open.wait()
        return await super().renew(worker, held)


async def test_a_worker_that_is_its_own_successor_drops_the_earlier_attempt_first(redis: Redis, tmp_path: Path) -> None:
    queue = Forgetful(redis)
    await queue.submit(job("a"))

    def react(command: Command) -> list[Report]:
        if isinstance(command, Draw) and command.job.attempt == 2:
            queue.open.set()
            return draw_at_once(command)
        return []

    bench = Bench(queue, redis, tmp_path, react)
    done = await bench.ended("a")
    await bench.stop()
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert [(type(c), c.job.attempt) for c in bench.puppet.commands[:3]] == [(Draw, 1), (Drop, 1), (Draw, 2)]
    assert bench.files() == {image.key for image in done.images} != set()


async def everything(redis: Redis) -> dict[str, bytes]:
    return {key: await redis.execute_command("DUMP", key, NEVER_DECODE=True) for key in await redis.keys("*")}


async def become(redis: Redis, state: dict[str, bytes]) -> None:
    """At once, as a replica takes over: nobody sees a moment between."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for key, value in state.items():
            pipe.restore(key, 0, value)
        await pipe.execute()


async def test_a_claim_that_a_failover_undid_leaves_the_pictures_to_whoever_has_it_now(redis: Redis, tmp_path: Path) -> None:
    """The other worker's attempt has the same number, and so its pictures have the same keys."""
    queue, store = JobQueue(redis), LocalImageStore(tmp_path)
    two = job("a")
    await queue.submit(replace(two, params=replace(two.params, num_images=2)))
    before = await everything(redis)
    [again] = await queue.claim("v", [CARD.id], 1)
    assert again.attempt == 1
    claimed_by_v = await everything(redis)
    await become(redis, before)
    dropped = asyncio.Event()

    def react(command: Command) -> list[Report]:
        if isinstance(command, Drop):
            dropped.set()
        return draw_at_once(command)

    bench = Bench(queue, redis, tmp_path, react)
    while bench.files() != {"a/1-0.png"}:
        await asyncio.sleep(0.01)
    for index in range(2):
        await store.put(f"a/1-{index}.png", b"drawn by v")
    await become(redis, claimed_by_v)
    await asyncio.wait_for(dropped.wait(), TIMEOUT_S)
    await queue.submit(job("b"))
    await bench.ended("b")
    await bench.stop()
    assert bench.files() >= {"a/1-0.png", "a/1-1.png"}


async def test_a_picture_that_cannot_be_written_fails_its_job_alone(redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = encode.encode

    def picky(pixels: Any, params: Any, *rest: Any) -> bytes:
        if params.seed == 13:
            raise RuntimeError("cannot be written")
        return original(pixels, params, *rest)

    monkeypatch.setattr(encode, "encode", picky)
    queue = JobQueue(redis)
    bad = job("bad")
    await queue.submit(replace(bad, params=replace(bad.params, seed=13)))
    await queue.submit(job("good"))
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    failed, good = await bench.ended("bad"), await bench.ended("good")
    await bench.stop()
    assert failed.error is not None
    assert failed.error.code == "encode_failed"
    assert good.status is JobStatus.SUCCEEDED


async def test_storage_that_is_full_fails_the_job_with_a_code_that_says_try_again(redis: Redis, tmp_path: Path) -> None:
    queue = JobQueue(redis)
    await queue.submit(job("a"))
    (tmp_path / "a").write_text("a file where the job's folder should be")
    bench = Bench(queue, redis, tmp_path, draw_at_once, store_s=0.5)
    done = await bench.ended("a")
    await bench.stop()
    assert done.error is not None
    assert (done.error.code, done.error.retryable) == ("storage_unavailable", True)


async def test_a_picture_is_stored_when_storage_comes_back(redis: Redis, tmp_path: Path, logged: io.StringIO) -> None:
    queue = JobQueue(redis)
    await queue.submit(job("a"))
    (tmp_path / "a").write_text("in the way")
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    async with asyncio.timeout(20):
        while "store_unavailable" not in logged.getvalue():
            await asyncio.sleep(0.01)
    (tmp_path / "a").unlink()
    assert (await bench.ended("a")).status is JobStatus.SUCCEEDED
    await bench.stop()


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure("info", stream)
    yield stream
    structlog.reset_defaults()


async def test_the_log_of_a_broken_job_holds_no_prompt(redis: Redis, tmp_path: Path, logged: io.StringIO) -> None:
    def react(command: Command) -> list[Report]:
        if not isinstance(command, Draw):
            return []
        try:
            prompt = command.job.params.prompt
            raise ValueError(f"bad: {prompt}")
        except ValueError as error:
            return [Broken(command.job, "engine_error", "The model could not evaluate this image.", error)]

    queue = JobQueue(redis)
    await queue.submit(job("a"))
    bench = Bench(queue, redis, tmp_path, react)
    done = await bench.ended("a")
    await bench.stop()
    assert done.status is JobStatus.FAILED
    assert "broken" in logged.getvalue()
    assert "ValueError at test_worker.py" in logged.getvalue()
    assert "apple" not in logged.getvalue()


async def test_a_worker_that_stops_hands_back_what_it_holds(redis: Redis, tmp_path: Path) -> None:
    queue = JobQueue(redis)
    await queue.submit(job("a"))
    claimed = asyncio.Event()

    def react(command: Command) -> list[Report]:
        claimed.set()
        return []

    bench = Bench(queue, redis, tmp_path, react)
    await asyncio.wait_for(claimed.wait(), TIMEOUT_S)
    await bench.stop()
    waiting = await queue.get("a")
    assert waiting is not None
    assert (waiting.status, waiting.failures) == (JobStatus.QUEUED, 0)


async def test_waiting_for_redis_ends_when_the_worker_is_told_to_stop() -> None:
    stop = asyncio.Event()
    asked = asyncio.Event()

    async def never() -> None:
        asked.set()
        raise Unreachable("away")

    waiting = asyncio.create_task(unless(stop, insist(never)))
    await asyncio.wait_for(asked.wait(), TIMEOUT_S)
    stop.set()
    assert await asyncio.wait_for(waiting, TIMEOUT_S) is False


def test_texts_too_long_for_an_exif_segment_are_left_out_and_the_picture_is_not() -> None:
    params = replace(sample_job().params, prompt="🐸" * 20_000, output_format="jpeg")
    data = encode.encode(PIXELS, params, 0, CARD, "1")
    assert data.startswith(b"\xff\xd8")
    with pytest.raises(ValueError, match="carries no Celadon parameters"):
        encode.read_metadata(data)


async def test_a_cancel_that_the_client_library_swallowed_is_heeded(redis: Redis) -> None:
    """Python 3.11 loses some cancels inside redis-py; a loop of patient calls ends all the same."""

    async def loop() -> None:
        while True:
            await insist(redis.ping)

    for _ in range(200):
        task = asyncio.create_task(loop())
        for _ in range(3):
            await asyncio.sleep(0)
        task.cancel()
        _, pending = await asyncio.wait({task}, timeout=TIMEOUT_S)
        assert not pending
