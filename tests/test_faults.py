"""Real workers whose model hangs, whose process dies of one job, or whose storage never answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.client import Redis

from tests.fleet import Fleet
from training.toy import write_toy
from workers.watch import STALLED

pytestmark = pytest.mark.timeout(300)  # whole processes start here, on whatever machine this is

SEED = 13


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("model") / "toy", prediction="v_prediction", seed=1)


@pytest.fixture
def fleet(redis_url: str, model: Path, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(redis_url, tmp_path, model)
    try:
        fleet.gateway()
        yield fleet
    finally:
        fleet.close()


def test_a_worker_whose_model_hangs_ends_and_another_goes_on(fleet: Fleet, redis_url: str) -> None:
    """With a status that says why, although its thread is stuck; the picture is the one that nothing interrupted."""
    wanted = {"prompt": "a secret apple", "seed": SEED, "steps": 60, "sampler": "heun", "num_images": 2}
    worker = fleet.faulty_worker("hang", SEED, CELADON_STALL_S="4", CELADON_CHECKPOINT_S="0.2")
    job = fleet.submit(**wanted)
    with Redis.from_url(redis_url) as redis:
        fleet.until(lambda: int(redis.hget(f"{{q0}}:k:{job['id']}", "steps") or 0) > 0)
    fleet.fault.touch()
    assert worker.wait(timeout=60) == STALLED
    said = (fleet.folder / "log").read_text()
    assert "stalled" in said and job["id"] in said.split("stalled")[1] and "secret" not in said
    fleet.worker()
    done, again = fleet.finished(job["id"]), fleet.finished(fleet.submit(**wanted)["id"])
    requeued = [data for _, kind, data in fleet.events(job["id"]) if kind == "requeued"]
    assert [data["reason"] for data in requeued] == ["worker_lost"] and requeued[0]["steps_done"] > 0
    assert [fleet.picture(done, i) for i in range(2)] == [fleet.picture(again, i) for i in range(2)]


def test_a_store_that_hangs_fails_its_job_alone_and_keeps_nobody(fleet: Fleet) -> None:
    """The job may be tried again; the worker goes on with others, and goes when it is told to."""
    worker = fleet.faulty_worker("store", SEED, CELADON_STORE_S="1")
    fleet.fault.touch()
    hung, good = fleet.submit(seed=SEED), fleet.submit(seed=1)
    failed = fleet.finished(hung["id"])
    assert (failed["status"], failed["error"]["code"], failed["error"]["retryable"]) == ("failed", "storage_unavailable", True)
    assert fleet.finished(good["id"])["status"] == "succeeded"
    assert fleet.finished(fleet.submit(seed=2)["id"])["status"] == "succeeded"
    worker.terminate()
    assert worker.wait(timeout=20) == 0


def test_a_job_that_kills_every_worker_takes_nobody_along(fleet: Fleet) -> None:
    """The process dies five times over, and starts again each time. Then the poison is a dead letter, and can be tried again."""
    fleet.faulty_worker("die", SEED, FAULT_LIVES="many", CELADON_CHECKPOINT_S="60")
    poison, *others = [fleet.submit(seed=seed, steps=60, sampler="heun") for seed in (SEED, 0, 1, 2)]
    fleet.until(lambda: all(fleet.job(job["id"])["status"] == "running" for job in (poison, *others)))
    fleet.fault.touch()
    failed = fleet.finished(poison["id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "worker_lost")
    assert {fleet.finished(job["id"])["status"] for job in others} == {"succeeded"}
    crashes = {job["id"]: [kind for _, kind, _ in fleet.events(job["id"])].count("requeued") for job in (poison, *others)}
    assert crashes.pop(poison["id"]) == 4, "the fifth time was the last"
    assert set(crashes.values()) <= {0, 1, 2} and any(crashes.values()), "they were beside it, and then no more"
    dead = jobs_command(fleet, "dead")
    assert poison["id"] in dead and all(f"(attempt {attempt})" in dead for attempt in range(1, 6))
    assert not any(job["id"] in dead for job in others)
    assert "worker_lost" in jobs_command(fleet, "show", poison["id"])
    fleet.fault.unlink()  # the cause is mended
    retried = jobs_command(fleet, "retry", poison["id"]).split()[-1]
    assert fleet.finished(retried)["status"] == "succeeded"
    assert "no dead letters" in jobs_command(fleet, "dead")


def jobs_command(fleet: Fleet, *arguments: str) -> str:
    """What `celadon jobs` says, at a wide terminal."""
    environment = os.environ | {"CELADON_URL": fleet.url, "COLUMNS": "220"}
    command = [sys.executable, "-m", "celadon", "jobs", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
