"""Sentinel: a real primary with replicas and three sentinels, a real gateway and workers, and the primary killed under load."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from jobs.look import look
from tests.customer import SENT_BACK, accepted, ended, judge, shopping, submit
from tests.fleet import Fleet
from tests.redis_farm import ENCODED, PASSWORD, PRIMARY, SentinelFarm, until
from training.toy import write_toy

pytestmark = pytest.mark.timeout(240)  # whole processes start here, on whatever machine this is

REPLICAS = 3  # two failovers leave one


@dataclass(frozen=True)
class Stage:
    farm: SentinelFarm
    fleet: Fleet

    def heal(self) -> None:
        """Whoever is dead comes back empty, and the sentinels make it a replica, which takes them ten seconds."""
        for server in self.farm.servers:
            if server.process.poll() is not None:
                server.start()
        until(lambda: self.farm.primary.info("connected_slaves") == REPLICAS, "the replicas did not come back")

    def bind(self, replicas: int) -> None:
        """How many replicas a server must have to take a write."""
        for server in self.farm.servers:
            if server.process.poll() is None:
                server.ask("CONFIG", "SET", "min-replicas-to-write", replicas)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("failover")
    farm = SentinelFarm(folder, REPLICAS)
    fleet = Fleet(farm.url, folder, write_toy(folder / "toy"))
    try:
        fleet.gateway()
        fleet.crew(2)
        yield Stage(farm, fleet)
    finally:
        fleet.close()
        farm.close()


def kill_under_load(stage: Stage, name: str) -> None:
    """The primary dies between a customer's submits; they go on by themselves when there is another."""
    with shopping(stage.fleet, name) as customer:
        customer.until_more(6)
        stage.farm.primary.kill()
        customer.until_more(6)
    assert customer.refusals and customer.refusals <= SENT_BACK
    judge(stage.fleet, customer)


async def test_what_is_seen_of_sentinels(stage: Stage) -> None:
    seen = await look(stage.farm.url)
    assert seen.text.endswith(f", the primary {PRIMARY} at {stage.farm.primary.name} with {REPLICAS} replicas, by Sentinel")
    assert "min-replicas-to-write" in seen.remedy


def test_what_a_failover_forgets_the_key_brings_back_and_a_setting_prevents(stage: Stage) -> None:
    """Replicas that hear nothing: the primary accepts what only it knows, and dies."""
    fleet, old = stage.fleet, stage.farm.primary
    replicas = [server for server in stage.farm.servers if server is not old]
    for bound in (1, 0):
        stage.bind(bound)
        for replica in replicas:
            replica.stop()
        old.ask("CLIENT", "KILL", "TYPE", "replica")  # what lies in their sockets would reach them later
        answer = submit(fleet.client, "forgotten")
        if bound:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_read_only")
            for replica in replicas:
                replica.go_on()
            until(lambda: old.info("connected_slaves") == REPLICAS, "the replicas did not connect again")
    assert answer.status_code == 202
    old.kill()
    for replica in replicas:
        replica.go_on()
    fleet.until(lambda: fleet.client.get(f"/jobs/{answer.json()['id']}").status_code == 404)
    again = accepted(fleet, "forgotten")
    assert again != answer.json()["id"]
    assert ended(fleet, again)["status"] == "succeeded"


def test_a_primary_that_dies_under_load_stops_nobody_for_good(stage: Stage) -> None:
    stage.bind(1)
    kill_under_load(stage, "once")
    log = (stage.fleet.folder / "log").read_text()
    assert PASSWORD not in log and ENCODED not in log
    assert len(stage.fleet.workers()) == 2, "the workers were to go on by themselves"


@pytest.mark.slow
def test_primaries_die_one_after_the_other(stage: Stage) -> None:
    stage.heal()
    stage.bind(1)
    for number in range(4):
        kill_under_load(stage, f"again-{number}")
        stage.heal()
