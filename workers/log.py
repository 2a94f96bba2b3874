"""The worker's log: one line per state change on stderr, job id first. Never a prompt, a path of a picture, or a value."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import PurePath
from typing import TextIO

import structlog

from jobs.job import Job


def configure(level: str, stream: TextIO | None = None) -> None:
    """Set structlog up for this process. Exceptions are told by `where`, never as a trace: traces may hold prompts."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event", "job", "request_id"], drop_missing=True),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(stream or sys.stderr),
    )


def of(job: Job) -> dict[str, str]:
    """Which job a line is about, and which request made it."""
    return {"job": job.id} | ({"request_id": job.request_id} if job.request_id else {})


def where(error: BaseException | None) -> str:
    """Type and innermost frames as file:line function, without values."""
    if error is None:
        return ""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{PurePath(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(error).__name__} at {places}" if places else type(error).__name__
