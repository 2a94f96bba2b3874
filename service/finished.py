"""A job that a blocking door has waited for: its pictures, or the error that says why there are none."""

from __future__ import annotations

from jobs.image_store import NotFound
from jobs.job import Job, JobStatus
from service import errors
from service.gateway import Gateway


def raise_unless_succeeded(job: Job) -> None:
    """Raises JobFailed, JobCanceled, StillRunning."""
    match job.status:
        case JobStatus.SUCCEEDED:
            return
        case JobStatus.FAILED:
            raise errors.JobFailed(f"{job.error.message} ({job.error.code})" if job.error else "")
        case JobStatus.CANCELED:
            raise errors.JobCanceled()
    raise errors.StillRunning()


async def pictures_of(job: Job, gateway: Gateway) -> list[bytes]:
    """Raises JobExpired where they were erased meanwhile, StorageUnavailable."""
    try:
        return [await gateway.store.read(image.key) for image in job.images]
    except NotFound:
        raise errors.JobExpired() from None
    except OSError as error:
        raise errors.StorageUnavailable() from error
