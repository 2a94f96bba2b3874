"""What a worker holds: one record per claimed job, from claim to the recorded end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.job import ImageRef, Job, JobWarning


@dataclass(slots=True)
class Held:
    """A job under this worker's lease. Progress and preview wait here until their time has come."""

    job: Job
    done: list[int]  # U-Net evaluations behind each image
    images: dict[int, ImageRef] = field(default_factory=dict)
    warnings: list[JobWarning] = field(default_factory=list)
    preview: str | None = None
    previews: list[tuple[int, str]] = field(default_factory=list)  # at the steps that the job names, not yet told
    telling: asyncio.Lock = field(default_factory=asyncio.Lock)  # of those, so that they go in their order
    dirty: bool = False  # progress not yet told
    told_at: float = float("-inf")  # monotonic seconds
    since: float = field(default_factory=time.monotonic)  # claimed
    seconds: float = 0.0  # U-Net time of this attempt
    began_with: int = 0  # evaluations that an earlier attempt had done
    saved_at: float = field(default_factory=time.monotonic)
    saved_done: int = 0  # evaluations in the last checkpoint
    saved: frozenset[str] = frozenset()  # keys of pictures that may belong to a checkpoint and outlive this attempt
    saving: asyncio.Lock = field(default_factory=asyncio.Lock)  # checkpoints are written down in their order
    settling: bool = False  # its end is being written down: whatever else is heard of it meanwhile comes too late
    exported: bool = False  # where it stands has been told since it was asked to leave
    leaving: str | None = None  # why it is handed on after its next checkpoint: released or paused

    @classmethod
    def of(cls, job: Job) -> Held:
        return cls(job, [0] * job.params.num_images)

    @property
    def open_images(self) -> int:
        return self.job.params.num_images - len(self.images)

    @property
    def complete(self) -> bool:
        return not self.open_images

    @property
    def steps_done(self) -> int:
        return sum(self.done)

    @property
    def evaluations_per_image(self) -> int:
        return self.job.steps_total // self.job.params.num_images

    def worth_saving(self, now: float, interval_s: float) -> bool:
        """Every `interval_s`, if there is something new and the rest will take at least half as long again."""
        new = self.steps_done - self.began_with
        if now - self.saved_at < interval_s or self.steps_done == self.saved_done or new <= 0:
            return False
        left_s = (now - self.since) / new * (self.job.steps_total - self.steps_done)
        return left_s > interval_s / 2

    def undone(self, record: Job, worker: str) -> bool:
        """Whether Redis has forgotten that this worker claimed the job, as a failover can make it. Another may draw the very same
        attempt, under the same keys, so nobody but the sweep deletes them."""
        return record.attempt < self.job.attempt or (record.attempt == self.job.attempt and record.worker not in (None, worker))

    def ordered(self) -> tuple[ImageRef, ...]:
        return tuple(self.images[i] for i in sorted(self.images))


OF_JOB = frozenset({"progress", "checkpoint", "finish", "fail", "cancel_running", "release"})  # scripts about one job: worker, attempt, id


class Holdings:
    """All that a worker holds. `changed` is set whenever a job or one of its images has left, so that there may be room."""

    def __init__(self) -> None:
        self.jobs: dict[str, Held] = {}
        self.changed = asyncio.Event()

    def traceparent(self, script: str, args: Sequence[Any]) -> str:
        """That of the job that a script is called for, if it is held."""
        held = self.jobs.get(args[2]) if script in OF_JOB else None
        return held.job.traceparent if held else ""

    def __iter__(self) -> Iterator[Held]:
        """Those of this moment: jobs may come and go while somebody walks through them."""
        return iter(list(self.jobs.values()))

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def open_images(self) -> int:
        return sum(held.open_images for held in self.jobs.values())

    def add(self, held: Held) -> None:
        self.jobs[held.job.id] = held

    def has(self, held: Held) -> bool:
        """Whether it is held still, as this attempt."""
        return self.jobs.get(held.job.id) is held

    def forget(self, held: Held) -> None:
        if self.has(held):
            del self.jobs[held.job.id]
        self.changed.set()
