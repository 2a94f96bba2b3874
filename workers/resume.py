"""How a job goes on where an earlier attempt left it: its pictures, and its images in flight."""

from __future__ import annotations

from dataclasses import replace

import structlog

from jobs.image_store import ImageStore, NotFound, image_key
from jobs.job import ImageRef
from jobs.job_queue import Checkpoint
from pipelines.engine import checkpoint
from pipelines.engine.sample import Saved
from pipelines.params import EXTENSIONS, SEED_LIMIT
from workers.held import Held
from workers.log import of

log = structlog.get_logger("worker")


async def resume(held: Held, found: Checkpoint, store: ImageStore) -> dict[int, Saved]:
    """Take over pictures and states of the earlier attempt; what cannot be read is drawn anew."""
    params = held.job.params
    try:
        saved = checkpoint.load(found.data)
    except ValueError as error:
        log.warning("checkpoint_unreadable", **of(held.job), error=str(error))
        return {}
    for image in found.images:
        index = (image.seed - params.seed) % SEED_LIMIT
        if own := await _owned(held, index, image, store):
            held.images[index] = own
    held.saved = frozenset(image.key for image in found.images)
    whole = held.evaluations_per_image
    held.done = [whole if i in held.images else saved[i].row if i in saved else 0 for i in range(params.num_images)]
    held.began_with = held.saved_done = held.steps_done
    return saved


async def _owned(held: Held, index: int, image: ImageRef, store: ImageStore) -> ImageRef | None:
    """A picture keeps its key. Only where the checkpoint was that of an equal job, whose pictures go when its time of keeping
    is over, the job gets a copy in its own name; None if there is no picture, which is drawn anew then."""
    job = held.job
    key = image_key(job.id, job.attempt, index, EXTENSIONS[job.params.output_format])
    try:
        if image.key.startswith(f"{job.id}/"):
            await store.size(image.key)
            return image
        await store.put(key, await store.read(image.key))
    except (NotFound, OSError) as error:
        log.warning("picture_not_taken_over", **of(job), error=type(error).__name__)
        return None
    return replace(image, key=key)
