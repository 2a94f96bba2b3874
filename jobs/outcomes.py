"""What the queue answers, and how it refuses. Seconds throughout; times are Unix seconds of the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from jobs.job import ImageRef, Job


class QueueFull(Exception):
    """The queue, or with `of_client` the client's part of it, is at its bound; come back after `retry_after_s`."""

    def __init__(self, retry_after_s: int, of_client: bool = False) -> None:
        super().__init__(f"The queue is full. Try again in {retry_after_s} s.")
        self.retry_after_s, self.of_client = retry_after_s, of_client


class RateLimited(Exception):
    """The client submits faster than it may; come back after `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"Too many requests. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class QuotaSpent(Exception):
    """The client has asked for as many pictures as it may in a day (UTC); the next one begins in `retry_after_s`."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"The day's pictures are used up. Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class DeadlineUnmeetable(Exception):
    """The job would be done in `eta_s`, which is after its deadline; nothing was queued."""

    def __init__(self, eta_s: float) -> None:
        super().__init__(f"The job would be done in {eta_s:.0f} s, after its deadline.")
        self.eta_s = eta_s


class IdempotencyConflict(Exception):
    """The idempotency key belongs to an earlier request that asked for something else."""


class JobGone(Exception):
    """The job of this idempotency key has ended, and its record has expired."""


def raise_refusal(outcome: str, rest: Sequence[Any]) -> None:
    """The exception that stands for what a script answers instead of taking a job, or a batch; nothing where it took it."""
    match outcome:
        case "full":
            raise QueueFull(rest[0], of_client=len(rest) > 1)
        case "limited":
            raise RateLimited(rest[0])
        case "spent":
            raise QuotaSpent(rest[0])
        case "unmeetable":
            raise DeadlineUnmeetable(float(rest[0]))
        case "conflict":
            raise IdempotencyConflict("The idempotency key was used for a different request.")
        case "gone":
            raise JobGone("What this idempotency key stands for has ended and is no longer kept.")


class CheckpointTooLarge(ValueError):
    """The state of the job takes more than a checkpoint may."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a client may have: `max_queued` jobs waiting, `rate_per_s` of them in the long run (0: any number) and `burst` at once,
    `per_day` pictures in a day of UTC (0: any number)."""

    max_queued: int
    rate_per_s: float = 0.0
    burst: int = 10
    per_day: int = 0


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job as it stands; `created` is False where an earlier submit had already made it. `outlook` is that of a new one that waits."""

    job: Job
    created: bool
    outlook: Forecast | None = None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a job would meet: its U-Net seconds, how many jobs of its client go before it, and when it would be done."""

    predicted_s: float
    position: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a worker learns when it renews: jobs it no longer holds, and jobs whose cancel is wished.

    `pausable` names, best first, those it may release as paused if it has no slot free: somebody urgent waits.
    """

    lost: frozenset[str]
    canceled: frozenset[str]
    pausable: tuple[str, ...] = ()

    @property
    def urgent(self) -> bool:
        return bool(self.pausable)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A job in flight as attempt `attempt` left it: the engine's state, and the images that were finished by then."""

    data: bytes
    images: tuple[ImageRef, ...]
    attempt: int
    steps_done: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, newest first. `cursor` asks for the next page; it is empty on the last one."""

    jobs: tuple[Job, ...]
    cursor: str


class Standing(IntEnum):
    """How a worker stands to a job after reporting progress; LOST is falsy."""

    LOST = 0
    HELD = 1
    CANCEL = 2  # held, and its client wishes to cancel
