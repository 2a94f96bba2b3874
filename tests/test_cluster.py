"""Cluster: three real primaries with a replica each, a real gateway and workers, and a primary killed under load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest
from redis.exceptions import RedisError

from jobs.job import Job, JobStatus
from jobs.job_queue import JobQueue
from jobs.shards import open_shards, shard_of
from tests.customer import SENT_BACK, judge, shopping
from tests.fleet import TIMEOUT_S, Fleet
from tests.redis_farm import ClusterFarm, until
from training.toy import write_toy

pytestmark = pytest.mark.timeout(240)  # whole processes start here, on whatever machine this is

CLIENTS = [f"client-{n}" for n in range(12)]


@dataclass(frozen=True)
class Stage:
    farm: ClusterFarm
    fleet: Fleet

    def heal(self) -> None:
        """Whoever is dead comes back, as a replica."""
        for node in self.farm.nodes:
            if node.process.poll() is not None:
                node.start()
        until(self.farm.whole, "the Cluster did not become whole again")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("cluster")
    farm = ClusterFarm(folder)
    fleet = Fleet(farm.url, folder, write_toy(folder / "toy"))
    try:
        fleet.gateway()
        fleet.crew(2)
        yield Stage(farm, fleet)
    finally:
        fleet.close()
        farm.close()


async def accepted(url: str, template: Job, key: str) -> list[Job]:
    """One job of each client, as the gateway would submit them if it knew more than one; asked for until it is accepted."""
    async with aclosing(open_shards(url)) as shards:
        queue = JobQueue(shards)

        async def insist(client: str) -> Job:
            job = Job(id=queue.new_id(client), client=client, params=template.params, steps_total=template.steps_total)
            while True:
                try:
                    return (await queue.submit(job, idempotency_key=key, fingerprint=key)).job
                except (RedisError, OSError):
                    await asyncio.sleep(0.05)

        return list(await asyncio.gather(*map(insist, CLIENTS)))


async def records(url: str, ids: Iterable[str]) -> list[Job]:
    async with aclosing(open_shards(url)) as shards:
        queue = JobQueue(shards)
        return [job for job_id in ids if (job := await queue.get(job_id))]


async def all_ended(url: str, ids: list[str]) -> list[Job]:
    """Their records, once all of them have ended. Not by the gateway, which shows a job to its own client alone."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await records(url, ids)
            if len(found) == len(ids) and all(job.done for job in found):
                return found
            await asyncio.sleep(0.1)


def kill_under_load(stage: Stage, name: str) -> None:
    """The node that serves a customer dies between his submits; they go on by themselves, and others' jobs all the time."""
    farm, fleet = stage.farm, stage.fleet
    with shopping(fleet, name) as customer:
        customer.until_more(4)
        [template] = asyncio.run(records(farm.url, list(customer.accepted.values())[:1]))
        farm.primary_of(f"{{q{shard_of(template.id)}}}").kill()
        jobs = asyncio.run(accepted(farm.url, template, name))
        customer.until_more(4)
    assert customer.refusals and customer.refusals <= SENT_BACK
    judge(fleet, customer)
    done = asyncio.run(all_ended(farm.url, [job.id for job in jobs]))
    assert [job.status for job in done] == [JobStatus.SUCCEEDED] * len(CLIENTS)
    served: dict[str | None, set[int]] = {}
    for job in done:
        served.setdefault(job.worker, set()).add(shard_of(job.id))
    assert len(set().union(*served.values())) >= 4, "the clients' jobs were to spread over the shards"
    assert any(len(numbers) >= 2 for numbers in served.values()), "a worker serves more shards than one"
    assert len(fleet.workers()) == 2


def test_a_node_that_dies_under_load_stops_nobody_for_good(stage: Stage) -> None:
    kill_under_load(stage, "once")


@pytest.mark.slow
def test_nodes_die_one_after_the_other(stage: Stage) -> None:
    for number in range(4):
        stage.heal()
        kill_under_load(stage, f"again-{number}")
