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
RANKS = ("interactive", "normal", "batch")


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


async def test_what_cannot_be_in_time_is_refused_and_what_is_taken_is(redis: Redis, clock: Clock) -> None:
    """More work with deadlines than can be done: nothing is accepted that then fails, and every refusal tells a time past its deadline."""
    random_ = random.Random(4)
    simulation = Simulation(redis, clock, workers=2, slots=2)
    for n in range(300):
        simulation.arrive(random_.uniform(0, 200), f"timed-{n % 9}", random_.randint(1, 5), deadline_s=random_.uniform(5, 60))
    await simulation.run()
    assert 50 < len(simulation.refused) < 250
    assert all(eta_s > deadline_s for deadline_s, eta_s in simulation.refused.values())
    spare = [told.job.deadline_at - told.ended for told in simulation.told.values() if told.job.deadline_at]
    assert len(spare) == 300 - len(simulation.refused)
    assert min(spare) >= 0


async def test_a_stream_of_interactive_jobs_starves_no_class(redis: Redis, clock: Clock) -> None:
    """More interactive work than the workers can do, all the time: of ten jobs that are taken, one is normal and one is batch."""
    random_ = random.Random(5)
    simulation = Simulation(redis, clock, workers=2, slots=2)
    for n in range(600):
        simulation.arrive(n / 4, f"hasty-{n % 5}", random_.randint(1, 2), service_class="interactive")
    patient = {name: [simulation.arrive(5, name, service_class=name) for _ in range(20)] for name in ("normal", "batch")}
    await simulation.run()
    since = next(n for n, id_ in enumerate(simulation.claims) if simulation.told[id_].started >= simulation.told[patient["batch"][0]].at)
    for ids in patient.values():
        turns = [simulation.claims.index(id_) - since for id_ in ids]
        assert all(turn <= 10 * n for n, turn in enumerate(turns, start=1))


async def test_better_classes_wait_less_and_all_are_served(redis: Redis, clock: Clock) -> None:
    random_ = random.Random(6)
    simulation = Simulation(redis, clock, workers=2, slots=4)
    for n in range(600):
        service_class = random_.choice(("interactive", "normal", "batch"))
        simulation.arrive(random_.uniform(0, 500), f"client-{n % 7}", random_.randint(1, 3), service_class=service_class)
    await simulation.run()
    waits = {name: [t.started - t.at for t in simulation.told.values() if t.job.service_class == name] for name in RANKS}
    assert sum(map(len, waits.values())) == len(simulation.claims) == 600
    interactive, normal, batch = (statistics.mean(waits[name]) for name in RANKS)
    assert interactive < normal / 2 < batch / 4


async def test_a_stream_of_important_jobs_holds_up_a_low_priority_for_so_long_and_no_longer(redis: Redis, clock: Clock) -> None:
    """One step of priority is worth ten minutes; what was submitted before those were over goes first, nothing after."""
    simulation = Simulation(redis, clock, workers=1, slots=1)
    low = simulation.arrive(0.5, "ada", priority=0)
    ids = [simulation.arrive(n * 0.8, "ada", priority=1) for n in range(1000)]  # a second of work every 0.8 s
    await simulation.run()
    before = simulation.claims[: simulation.claims.index(low)]
    assert before == ids[: len(before)]
    assert [simulation.told[ids[len(before) + n]].at - simulation.told[low].at > 600 for n in (-1, 0)] == [False, True]


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
