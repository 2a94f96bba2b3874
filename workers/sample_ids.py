"""The id of a sample: its job, and which image of the job it is."""

from __future__ import annotations


def sample_id(job_id: str, index: int) -> str:
    return f"{job_id}/{index}"


def split_id(name: str) -> tuple[str, int]:
    job_id, _, index = name.rpartition("/")
    return job_id, int(index)
