"""The promises of the order, on whole days of simulated traffic: seeded, and through the scripts that the service runs."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from redis.asyncio import Redis

from tests.job_samples import Clock
from tests.queue_simulation import Simulation, served

SLOTS = 8


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_thousand_jobs_delay_a_single_one_by_at_most_one_batch(redis: Redis, clock: Clock, seed: int) -> None:
    random_ = random.Random(seed)
    simulation = Simulation(redis, clock, workers=2, slots=SLOTS)
    longest = 3
    for _ in range(1000):
        simulation.arrive(0, "greedy", random_.randint(1, longest))
    single = [simulation.arrive(20 * n + random_.uniform(0, 19), f"modest-{n}", 2) for n in range(30)]
    await simulation.run()
    waits = [simulation.told[id_].started - simulation.told[id_].at for id_ in single]
    assert max(waits) <= longest * SLOTS  # what is running when it comes, and nothing after
    last = max(told.ended for told in simulation.told.values() if told.job.client == "greedy") - 1_000_000
    assert last > 30 * max(waits)  # in the order of arrival they would have waited for all of that


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_clients_with_work_get_their_shares_at_all_times(redis: Redis, clock: Clock, seed: int) -> None:
    """The bound of start-time fair queueing (Goyal, Vin, Cheng 1996, theorem 1): while both have jobs ready, two clients'
    shares differ over any interval by no more than one longest job of each."""
    random_ = random.Random(seed)
    weights = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}
    longest = {"a": 2, "b": 20, "c": 7, "d": 5}
    simulation = Simulation(redis, clock, workers=3, slots=4)
    for client, weight in weights.items():
        await simulation.queue.set_weight(client, weight)
        for _ in range(2 * 600 // longest[client]):
            simulation.arrive(0, client, random_.randint(1, longest[client]))
    await simulation.run()
    left = {client: sum(t.job.client == client for t in simulation.told.values()) for client in weights}
    backlogged = []
    for id_, sums in zip(simulation.claims, served(simulation, list(weights)), strict=True):
        left[simulation.told[id_].job.client] -= 1
        backlogged.append(sums)
        if not all(left.values()):
            break
    assert len(backlogged) > 100
    for one, other in itertools.combinations(weights, 2):
        gaps = [sums[one] / weights[one] - sums[other] / weights[other] for sums in backlogged]
        assert max(gaps) - min(gaps) <= longest[one] / weights[one] + longest[other] / weights[other]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_promised_deadline_is_met(redis: Redis, clock: Clock, seed: int) -> None:
    random_ = random.Random(seed)
    simulation = Simulation(redis, clock, workers=2, slots=SLOTS)
    for n in range(400):
        simulation.arrive(0, f"crowd-{n % 4}", random_.randint(1, 4))
    timed = [simulation.arrive(random_.uniform(0, 300), f"timed-{n % 5}", random_.randint(1, 3), deadline_s=70.0) for n in range(40)]
    await simulation.run()
    spare = [told.job.deadline_at - told.ended for told in map(simulation.told.__getitem__, timed) if told.job.deadline_at]
    assert len(spare) == 40
    assert min(spare) >= 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_forecasts_are_about_right(redis: Redis, clock: Clock, seed: int) -> None:
    random_ = random.Random(seed)
    simulation = Simulation(redis, clock, workers=2, slots=SLOTS)
    for n in range(500):
        simulation.arrive(
            random_.uniform(0, 500), f"client-{n % 7}", random_.randint(1, 4), service_class=random_.choice(["normal", "batch"])
        )
    await simulation.run()
    errors = [abs(t.ended - t.at - t.eta_s) / (t.ended - t.at) for t in simulation.told.values()]
    assert statistics.median(errors) < 0.5
