"""What a worker holds: one record per claimed job, from claim to the recorded end."""

from __future__ import annotations

from dataclasses import dataclass, field

from jobs.job import ImageRef, Job, JobWarning


@dataclass(slots=True)
class Held:
    """A job under this worker's lease. Progress and preview wait here until their time has come."""

    job: Job
    done: list[int]  # U-Net evaluations behind each image
    images: dict[int, ImageRef] = field(default_factory=dict)
    warnings: list[JobWarning] = field(default_factory=list)
    preview: str | None = None
    dirty: bool = False  # progress not yet told
    told_at: float = float("-inf")  # monotonic seconds

    @classmethod
    def of(cls, job: Job) -> Held:
        return cls(job, [0] * job.params.num_images)

    @property
    def open_images(self) -> int:
        return self.job.params.num_images - len(self.images)

    @property
    def complete(self) -> bool:
        return not self.open_images

    def ordered(self) -> tuple[ImageRef, ...]:
        return tuple(self.images[i] for i in sorted(self.images))
