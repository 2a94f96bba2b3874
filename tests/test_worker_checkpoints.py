"""Pictures of a checkpoint outlive the attempt that drew them, whatever is lost on the way; those of a failed job do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable

from jobs.image_store import LocalImageStore
from jobs.job import JobError, JobStatus
from jobs.job_queue import JobQueue
from pipelines.engine import checkpoint
from tests.job_samples import sample_image
from tests.worker_bench import CARD, Bench, draw_at_once, job
from workers.checkpoints import Checkpoints
from workers.ends import Ends
from workers.held import Held, Holdings
from workers.inbox import Errands, Inbox
from workers.messages import Command, Exported


class LosesAnswers(JobQueue):
    """The server keeps the checkpoint, and the answer never arrives."""

    async def checkpoint(self, *args: Any, **options: Any) -> bool:
        await super().checkpoint(*args, **options)
        raise Unreachable("dropped after the script ran")


class Idle:
    """A drawing thread that has nothing to do."""

    def put(self, command: Command) -> None: ...


async def test_a_checkpoint_whose_answer_is_lost_keeps_its_pictures(redis: Redis, tmp_path: Path) -> None:
    """Otherwise the next worker would finish the job with a picture that its last one has deleted."""
    queue, store, holdings = LosesAnswers(redis), LocalImageStore(tmp_path), Holdings()
    await queue.submit(job("a", params=replace(job("x").params, num_images=2), steps_total=40))
    [claimed] = await queue.claim("w", [CARD.id], 1)
    held, picture = Held.of(claimed), sample_image(claimed)
    holdings.add(held)
    await store.put(picture.key, b"drawn")
    held.images[0], held.leaving = picture, "released"
    ends = Ends("w", queue, store, holdings, Idle(), Errands(Inbox()))  # type: ignore[arg-type]
    await Checkpoints("w", 5.0, queue, holdings, Idle(), ends).keep(held, Exported(claimed, {}))  # type: ignore[arg-type]
    found = await queue.load_checkpoint("a")
    assert found is not None and found.images == (picture,)
    assert not holdings.has(held)
    assert await store.read(picture.key) == b"drawn"


async def test_a_picture_of_a_checkpoint_that_is_gone_is_drawn_anew(redis: Redis, tmp_path: Path) -> None:
    queue = JobQueue(redis)
    await queue.submit(job("a"))
    [first] = await queue.claim("lost", [CARD.id], 1)
    assert await queue.checkpoint("lost", 1, "a", checkpoint.dump({}), [sample_image(first)], steps_done=20)
    assert await queue.release("lost", 1, "a")
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    done = await bench.ended("a")
    await bench.stop()
    assert done.status is JobStatus.SUCCEEDED
    assert {image.key for image in done.images} == bench.files() == {"a/2-0.png"}


async def test_a_job_that_fails_leaves_no_picture_behind(redis: Redis, tmp_path: Path) -> None:
    """One picture was drawn and saved in a checkpoint before the other one broke."""
    queue, store, holdings = JobQueue(redis), LocalImageStore(tmp_path), Holdings()
    await queue.submit(job("a", params=replace(job("x").params, num_images=2), steps_total=40))
    [claimed] = await queue.claim("w", [CARD.id], 1)
    held, picture = Held.of(claimed), sample_image(claimed)
    holdings.add(held)
    await store.put(picture.key, b"drawn")
    held.images[0] = picture
    ends = Ends("w", queue, store, holdings, Idle(), Errands(Inbox()))  # type: ignore[arg-type]
    await Checkpoints("w", 5.0, queue, holdings, Idle(), ends).keep(held, Exported(claimed, {}))  # type: ignore[arg-type]
    await ends.fail(held, JobError("not_finite", "The picture was lost."))
    record = await queue.get("a")
    assert record is not None and record.status is JobStatus.FAILED
    assert not list(tmp_path.rglob("*.png"))
