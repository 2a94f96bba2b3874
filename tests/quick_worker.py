"""Stands in for a worker where nothing depends on the pictures: every job is done as soon as it is claimed, with pictures of one pixel."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from jobs.image_store import LocalImageStore, image_key
from jobs.job import ImageRef, Job
from jobs.job_queue import JobQueue, connect
from pipelines.params import EXTENSIONS, MEDIA_TYPES


@contextmanager
def drawing(redis_url: str, data_dir: Path, model: str) -> Iterator[None]:
    """While this is open, jobs of the model are drawn."""
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_draw(redis_url, data_dir, model, stop)), name="quick worker")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


async def _draw(redis_url: str, data_dir: Path, model: str, stop: threading.Event) -> None:
    redis = connect(redis_url)
    queue, store = JobQueue(redis), LocalImageStore(data_dir / "images")
    while not stop.is_set():
        jobs = await queue.claim("quick", [model], 8)
        for job in jobs:
            await queue.finish("quick", job.attempt, job.id, [await _picture(job, index, store) for index in range(job.params.num_images)])
        if not jobs:
            await queue.wait_for_work([model], timeout_s=0.5)
    await redis.aclose()


async def _picture(job: Job, index: int, store: LocalImageStore) -> ImageRef:
    kind = job.params.output_format
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "teal").save(buffer, kind.upper())
    key = image_key(job.id, job.attempt, index, EXTENSIONS[kind])
    await store.put(key, buffer.getvalue())
    return ImageRef(key, job.params.width, job.params.height, job.params.image_seed(index), MEDIA_TYPES[kind])
