"""The clients of `make chaos`: careful ones, with mixed wishes, who check what they get."""

from __future__ import annotations

import collections
import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

KINDS = 12  # different prompts, samplers, schedules, lengths and sizes
IMAGES = 4  # of each kind there are so many references; a job asks for some of them
LONG = (4, 9)  # kinds of hundreds of evaluations: they outlive a fault, and are worth a checkpoint
REUSED = 4  # kinds that are asked for with `reuse`: few, so that equal requests meet
DEADLINE_S = 120.0
TERMINAL = {"succeeded", "failed", "canceled"}

References = dict[int, bytes]  # seed of an image -> its file; kind k has the seeds 100 k to 100 k + 3


FAULTLESS = ("lost", "late", "doubled", "failed", "changed")


@dataclass(slots=True)
class Tally:
    """What is counted. All of FAULTLESS must be 0; of the rest everything must have happened.

    `late` had not ended when the time was over: on a busy machine that may say nothing of the service, but it shows nothing either.
    """

    jobs: int
    faults: collections.Counter[str] = field(default_factory=collections.Counter)
    attempts: collections.Counter[int] = field(default_factory=collections.Counter)
    happened: collections.Counter[str] = field(default_factory=collections.Counter)
    lost: int = 0  # accepted, and unknown afterwards
    late: int = 0
    doubled: int = 0
    failed: int = 0
    changed: int = 0
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not any(getattr(self, name) for name in FAULTLESS)


@dataclass(frozen=True, slots=True)
class Wish:
    """One request, and what its client does beside waiting."""

    body: dict[str, Any]
    cancel: str = ""  # "at once", "later"
    repeat: bool = False  # the same submit again, under the same key


def request(kind: int) -> dict[str, Any]:
    samplers = ("ddim", "euler", "euler_a", "dpm2", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "heun", "ddpm", "euler")
    return {
        "prompt": f"a red apple {kind}",
        "sampler": samplers[kind % len(samplers)],
        "schedule": ("auto", "karras", "cosine")[kind % 3],
        "steps": 40 if kind in LONG else 3 + kind,
        "guidance": (1.0, 3.0, 7.5)[kind % 3],
        "width": (64, 96)[kind % 2],
        "height": 64,
        "seed": 100 * kind,
        "num_images": IMAGES,
    }


def wish(number: int, seed: int) -> Wish:
    """The same number and seed give the same wish."""
    rng = random.Random(f"{seed} {number}")
    reuse = rng.random() < 0.35
    kind = rng.randrange(REUSED if reuse else KINDS)
    first = 0 if reuse else rng.randrange(IMAGES)
    body = request(kind) | {"seed": 100 * kind + first, "num_images": rng.randint(1, 2 if reuse else IMAGES - first)}
    body |= {"reuse": reuse, "service_class": rng.choice(("interactive", "normal", "batch")), "priority": rng.randint(-2, 2)}
    if rng.random() < 0.15:
        body["deadline_s"] = DEADLINE_S
    return Wish(body, rng.choices(("", "at once", "later"), (80, 8, 12))[0], rng.random() < 0.2)


class Customer:
    """A careful client: what is not answered is asked again, for `limit_s` at most."""

    def __init__(self, url: str, limit_s: float) -> None:
        self._client = httpx2.Client(base_url=url, timeout=30)
        self._limit = time.monotonic() + limit_s

    def close(self) -> None:
        self._client.close()

    def ask(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """Raises TimeoutError past the limit, after one try."""
        while True:
            with contextlib.suppress(httpx2.TransportError):
                answer = self._client.request(method, path, **arguments)
                if answer.status_code not in (429, 502, 503):
                    return answer
            self._wait(0.05)

    def _wait(self, seconds: float) -> None:
        if time.monotonic() > self._limit:
            raise TimeoutError("the time is over")
        time.sleep(seconds)

    def submit(self, key: str, body: dict[str, Any]) -> str | None:
        """The job's id; None where its deadline cannot be met."""
        answer = self.ask("POST", "/generate", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 422 and answer.json()["error"]["code"] == "deadline_unmeetable":
            return None
        if answer.status_code not in (200, 202):
            raise RuntimeError(f"{key} was refused: {answer.text}")
        job_id: str = answer.json()["id"]
        return job_id

    def cancel(self, job_id: str) -> bool:
        """Whether the answer says that it is canceled for good."""
        return bool(self.ask("DELETE", f"/jobs/{job_id}").json()["status"] == "canceled")

    def ended(self, job_id: str) -> dict[str, Any] | None:
        """The job once it has ended; None if it is unknown. Raises TimeoutError."""
        while True:
            answer = self.ask("GET", f"/jobs/{job_id}")
            if answer.status_code != 200:
                return None
            job: dict[str, Any] = answer.json()
            if job["status"] in TERMINAL:
                return job
            self._wait(0.1)

    def pictures(self, job: dict[str, Any]) -> References:
        return {image["seed"]: self.ask("GET", image["url"]).content for image in job["images"]}

    def endings(self, job_id: str) -> tuple[int, int]:
        """How often the event stream tells an end, and the number of attempts."""
        answer = self.ask("GET", f"/jobs/{job_id}/events")
        kinds = [line.partition(": ")[2] for line in answer.text.splitlines() if line.startswith("event: ")]
        return sum(kind in TERMINAL for kind in kinds), kinds.count("started")


class Shop:
    """Submits one wish after the other, as many as are let in, and cancels some. `jobs` holds number and id of what was accepted."""

    def __init__(self, customer: Customer, tally: Tally, seed: int) -> None:
        self._customer, self._tally, self._seed = customer, tally, seed
        self._let_in = threading.Semaphore(0)
        self.jobs: list[tuple[int, str]] = []
        self._told: set[str] = set()  # ids of jobs that were said to be canceled
        self._later: list[str] = []

    def let_in(self, count: int) -> None:
        if count > 0:
            self._let_in.release(count)

    def work(self) -> None:
        for number in range(self._tally.jobs):
            self._let_in.acquire()
            if job_id := self._submit(number):
                self.jobs.append((number, job_id))
        while self._later:
            self._cancel(self._later.pop())

    def _submit(self, number: int) -> str | None:
        wanted, key = wish(number, self._seed), f"chaos-{number}"
        job_id = self._customer.submit(key, wanted.body)
        if job_id is None:
            self._tally.happened["deadline refused"] += 1
            return None
        if wanted.repeat:
            self._tally.happened["submit repeated"] += 1
            self._tally.doubled += self._customer.submit(key, wanted.body) != job_id
        if wanted.cancel == "at once":
            self._cancel(job_id)
        elif wanted.cancel:
            self._later.append(job_id)
        if len(self._later) > 1:
            self._cancel(self._later.pop(0))
        return job_id

    def _cancel(self, job_id: str) -> None:
        if self._customer.cancel(job_id):
            self._told.add(job_id)

    def judge(self, number: int, job_id: str, references: References) -> None:
        """Wait for the end of a job, and count what became of it."""
        tally, wanted = self._tally, wish(number, self._seed)
        try:
            job = self._customer.ended(job_id)
        except TimeoutError:
            tally.late += 1
            return
        if job is None:
            tally.lost += 1
            return
        ends, attempts = self._customer.endings(job_id)
        tally.attempts[attempts] += 1
        tally.doubled += ends != 1
        if job["status"] == "succeeded" and job_id not in self._told:
            tally.happened["shared by reuse"] += attempts == 0
            seeds = range(wanted.body["seed"], wanted.body["seed"] + wanted.body["num_images"])
            tally.changed += self._customer.pictures(job) != {seed: references[seed] for seed in seeds}
        elif job["status"] == "canceled" and wanted.cancel and job["cancel_requested"]:
            tally.happened["canceled while it ran" if attempts else "canceled while it waited"] += 1
        elif job["status"] == "failed" and job["error"]["code"] == "deadline" and "deadline_s" in wanted.body:
            tally.happened["deadline passed"] += 1
        else:
            tally.failed += 1
