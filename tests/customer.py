"""A customer who submits all the time, asks again where he is sent back, and sees to it that every job ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.fleet import Fleet
from tests.redis_farm import until

SENT_BACK = {"queue_unavailable", "queue_read_only"}  # what a submit may hear until there is a new primary with a replica


@dataclass
class Customer:
    """Submits one job after the other, each under a key of its own, and again under the same key until it is accepted."""

    url: str
    name: str
    accepted: dict[str, str] = field(default_factory=dict)  # key -> id of the job
    refusals: set[str] = field(default_factory=set)
    enough: threading.Event = field(default_factory=threading.Event)

    def shop(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=30) as http:
            while not self.enough.is_set():
                key = f"{self.name}-{len(self.accepted)}"
                answer = submit(http, key)
                if answer.status_code in (200, 202):
                    self.accepted[key] = answer.json()["id"]
                else:
                    assert answer.status_code == 503, answer.text
                    self.refusals.add(answer.json()["error"]["code"])
                self.enough.wait(0.05)

    def until_more(self, count: int) -> None:
        goal = len(self.accepted) + count
        until(lambda: len(self.accepted) >= goal, "submits do not get through")


def submit(http: httpx2.Client, key: str) -> httpx2.Response:
    body = {"prompt": "a red apple", "steps": 3 + len(key) % 3, "seed": 7}
    return http.post("/generate", json=body, headers={"Idempotency-Key": key})


@contextlib.contextmanager
def shopping(fleet: Fleet, name: str) -> Iterator[Customer]:
    """He submits as long as this is entered."""
    customer = Customer(fleet.url, name)
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(customer.shop)
        try:
            yield customer
        finally:
            customer.enough.set()
            work.result()


def accepted(fleet: Fleet, key: str) -> str:
    """The id of the job, however often it must be asked for."""
    ids: list[str] = []

    def ask() -> bool:
        answer = submit(fleet.client, key)
        if answer.status_code in (200, 202):
            ids.append(answer.json()["id"])
        return bool(ids)

    fleet.until(ask)
    return ids[0]


def ended(fleet: Fleet, job_id: str) -> dict[str, Any]:
    fleet.until(lambda: fleet.client.get(f"/jobs/{job_id}").json().get("finished_at"))
    return fleet.job(job_id)


def judge(fleet: Fleet, customer: Customer) -> None:
    """Every accepted job ends well, or was forgotten and its key brings it back."""
    for key, job_id in customer.accepted.items():
        again = accepted(fleet, key)
        assert again == job_id or fleet.client.get(f"/jobs/{job_id}").status_code == 404
        job = ended(fleet, again)
        assert job["status"] == "succeeded", job
        assert fleet.picture(job)
