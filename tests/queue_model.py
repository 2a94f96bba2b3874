"""What the state machine of the queue knows of a job, and what follows from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from jobs.job import SERVICE_CLASSES, JobStatus, ServiceClass

QUEUED, RUNNING = JobStatus.QUEUED, JobStatus.RUNNING
SUCCEEDED, FAILED, CANCELED = JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED
PREDICTED_US = 20 * 64 * 64  # of a sample job, as long as no worker has measured anything
PREDICTED_S = PREDICTED_US / 1e6

HAPPENS = {
    "a client was ahead of one that waits, within the bound", "a follower took over", "a follower took over, with a checkpoint",
    "cancel of a job that has ended", "cancel of a job that runs", "cancel of a job that waits", "cancel_running",
    "cancel_running without a wish", "checkpoint", "checkpoint of an older state", "claim beside a suspicious job",
    "claim while there is a suspicious job", "claim: by class", "claim: nothing", "claim: one", "claim: several", "claim: urgent",
    "deadline passed", "fail", "finish", "lease expiry, failures 1", "lease expiry, failures 5", "pause", "progress", "release", "renew",
    "reuse: at once", "reuse: follows", "reuse: leads", "submit: created", "submit: full", "submit: known", "submit: unmeetable",
    "zombie of an earlier attempt", "zombie of a job that has ended", "zombie of a job that runs", "zombie of a job that waits",
}  # fmt: skip


@dataclass
class Expected:
    """What the model knows of a job."""

    client: str
    model: str
    status: JobStatus = QUEUED
    worker: str | None = None
    attempt: int = 0
    failures: int = 0
    steps: int = 0
    expiry: float = 0.0
    wish: bool = False
    deadline: float = float("inf")
    service_class: ServiceClass = "normal"
    saved: int = 0  # steps behind the checkpoint
    saved_by: int = 0  # the attempt that made it
    inherited: int = 0  # steps that a canceled leader was charged for
    pauses: int = 0
    follows: str | None = None  # the equal job that runs for this one too
    expired: bool = False  # failed by its deadline

    best_class: ServiceClass = "normal"  # of its own and those who follow it
    due: float = float("inf")  # the earliest deadline of them
    charged: bool = False

    @property
    def stands(self) -> bool:
        """Whether it waits in a place of its own."""
        return self.status is QUEUED and self.follows is None

    @property
    def suspicious(self) -> bool:
        return self.failures >= 2

    @property
    def ready(self) -> bool:
        """Whether it waits in a lane, where its client's turn decides."""
        return self.stands and not self.suspicious


def lane(job: Expected) -> str:
    return job.model if job.best_class == "normal" else f"{job.model}@{job.best_class}"


def rank(job: Expected) -> int:
    return [*SERVICE_CLASSES].index(job.best_class)


def regroup(jobs: dict[str, Expected]) -> None:
    """Every job stands at the best place of its group: one run is for all of them."""
    for id_, job in jobs.items():
        group = [job, *(j for j in jobs.values() if j.follows == id_ and j.status is QUEUED)]
        job.best_class = min((j.service_class for j in group), key=[*SERVICE_CLASSES].index)
        job.due = min(j.deadline for j in group)


@dataclass
class Turns:
    """Who was served while others waited. A client that waits in a lane is overtaken there by no more work of any other than
    it was ever served itself: one that came last is overtaken by nobody twice."""

    ever: Counter[str] = field(default_factory=Counter)  # evaluations charged, by client
    here: Counter[tuple[str, str]] = field(default_factory=Counter)  # by lane and client
    since: dict[tuple[str, str], Counter[tuple[str, str]]] = field(default_factory=dict)  # waiting: `here` when that began
    compared: int = 0

    def look(self, jobs: dict[str, Expected]) -> None:
        """Notes who waits now."""
        waiting = {(lane(j), j.client) for j in jobs.values() if j.ready}
        self.since = {w: self.since[w] if w in self.since else Counter(self.here) for w in waiting}

    def serve(self, job: Expected, *, in_turn: bool) -> None:
        if in_turn:
            for (where, client), before in self.since.items():
                if where == lane(job) and client != job.client:
                    ahead = self.here[where, job.client] - before[where, job.client]
                    assert ahead <= self.ever[client], f"{job.client} is served again while {client} waits"
                    self.compared += ahead > 0
        if not job.charged:
            job.charged = True
            self.charge(job, 20 - job.inherited)

    def give_back(self, job: Expected) -> None:
        """A job ends, and its client gets back what was charged for and not done."""
        if job.charged:
            self.charge(job, job.steps - 20)

    def charge(self, job: Expected, evaluations: int) -> None:
        """Evaluations of a job that is charged, or got some back."""
        self.ever[job.client] += max(evaluations, 0)
        self.here[lane(job), job.client] += evaluations
