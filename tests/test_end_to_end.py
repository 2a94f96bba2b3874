"""The main job through real processes: gateway, workers, Valkey, HTTP. The model is a small random one."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from redis.client import Redis

import jobs.valkey
from tests.fleet import Fleet, shared
from training.toy import write_toy
from workers.encode import read_metadata

pytestmark = pytest.mark.timeout(300)  # whole processes start here, on whatever machine this is

LONG = {"steps": 60, "sampler": "heun", "num_images": 4}  # hundreds of evaluations: time to interfere
CHECKPOINT_COSTS_S = 1.0  # an interval of 0.2 s in the tests, and writing it down on a busy machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "toy"
    write_toy(folder, prediction="v_prediction", seed=1)
    (folder / "solvers").mkdir()
    (folder / "solvers" / "learned.json").write_text(json.dumps(learned(folder)))
    return folder


def learned(folder: Path) -> dict[str, Any]:
    """A solver file: what explain prints of UniPC, under a name of its own."""
    command = [sys.executable, "-m", "celadon", "explain", "--model", str(folder), "--json"]
    said = subprocess.run([*command, "--sampler", "unipc", "--steps", "4"], capture_output=True, text=True, check=True, timeout=60)
    return {"schema": 1, "id": "learned", "name": "Learned", "tables": [json.loads(said.stdout)]}


@pytest.fixture(scope="module")
def fleet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with shared(tmp_path_factory.mktemp("shared"), model) as fleet:
        yield fleet


@pytest.fixture
def own_fleet(redis_url: str, model: Path, tmp_path: Path) -> Iterator[Fleet]:
    """For tests that kill: an empty Redis, a gateway, and no worker yet."""
    fleet = Fleet(redis_url, tmp_path, model)
    try:
        fleet.gateway()
        yield fleet
    finally:
        fleet.close()


def mixed(index: int) -> dict[str, Any]:
    samplers = ("ddim", "euler", "euler_a", "heun", "dpm2", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "ddpm")
    return {
        "prompt": f"a red apple {index}",
        "sampler": samplers[index % 10],
        "schedule": ("auto", "karras", "cosine")[index % 3],
        "steps": 3 + index % 7,
        "guidance": (1.0, 3.0, 7.5)[index % 3],
        "width": (64, 96, 128)[index % 3],
        "height": (128, 64)[index % 2],
        "seed": index,
        "num_images": 1 + index % 3,
        "output_format": ("png", "jpeg", "webp")[index % 3],
    }


def test_twenty_mixed_jobs_at_once(fleet: Fleet) -> None:
    jobs = [fleet.submit(**mixed(i)) for i in range(20)]
    assert len({j["id"] for j in jobs}) == 20
    for index, job in enumerate(jobs):
        wanted, done = mixed(index), fleet.finished(job["id"])
        assert done["status"] == "succeeded", done
        assert done["progress"]["steps_done"] == done["progress"]["steps_total"] > 0
        assert [i["seed"] for i in done["images"]] == [index + i for i in range(wanted["num_images"])]
        for number, image in enumerate(done["images"]):
            picture = Image.open(io.BytesIO(fleet.picture(done, number)))
            assert picture.size == (wanted["width"], wanted["height"]) == (image["width"], image["height"])
            assert picture.get_format_mimetype() == image["media_type"] == f"image/{wanted['output_format']}"


def test_the_same_seed_gives_the_same_bytes_alone_and_in_a_crowd(fleet: Fleet) -> None:
    wanted = {"sampler": "euler_a", "steps": 9, "seed": 77, "guidance": 4.0}
    alone = fleet.picture(fleet.finished(fleet.submit(**wanted)["id"]))
    crowd = [fleet.submit(**mixed(i)) for i in range(6)]
    among = fleet.submit(**wanted)
    crowd += [fleet.submit(**mixed(i)) for i in range(6, 12)]
    assert fleet.picture(fleet.finished(among["id"])) == alone
    assert fleet.picture(fleet.finished(fleet.submit(**wanted | {"seed": 76, "num_images": 2})["id"]), 1) == alone
    for job in crowd:
        fleet.finished(job["id"])


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_carries_what_draws_it_again(fleet: Fleet, output_format: str) -> None:
    options = {"variant": "apg", "momentum": -0.5, "rescale": 0.3, "curve": "linear", "end": 0.8}
    said = {"prompt": 'grün "apple" 苹果', "seed": 5, "output_format": output_format}
    first = fleet.picture(fleet.finished(fleet.submit(**said, guidance_options=options)["id"]))
    assert first != fleet.picture(fleet.finished(fleet.submit(**said)["id"]))
    record = read_metadata(first)
    assert record["request"]["guidance_options"].items() >= options.items()
    assert record["request"]["prompt"] == 'grün "apple" 苹果'
    assert fleet.picture(fleet.finished(fleet.submit(**record["request"])["id"])) == first


def test_a_solver_from_a_file_draws_what_its_table_says(fleet: Fleet) -> None:
    [entry] = [s for s in fleet.client.get("/samplers").json() if s["id"] == "learned"]
    assert entry["only_steps"] == [4] and entry["only_schedules"] == ["auto"]
    jobs = [fleet.submit(sampler=sampler, steps=4, seed=8) for sampler in ("learned", "unipc")]
    pictures = [Image.open(io.BytesIO(fleet.picture(done := fleet.finished(job["id"])))) for job in jobs]
    assert pictures[0].tobytes() == pictures[1].tobytes() and done["progress"]["steps_total"] == 4
    refused = fleet.client.post("/generate", json={"prompt": "", "sampler": "learned", "steps": 5})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "steps"


def test_prefer_wait_answers_with_the_picture(fleet: Fleet) -> None:
    answer = fleet.client.post("/generate", json={"prompt": "a red apple", "steps": 3}, headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert answer.json()["status"] == "succeeded"
    assert fleet.picture(answer.json()).startswith(b"\x89PNG")


def test_previews_ride_on_the_events_when_asked_for(fleet: Fleet) -> None:
    job = fleet.submit(preview=True, **LONG)
    previews = [data["preview"] for _, kind, data in fleet.events(job["id"]) if kind == "progress" and data.get("preview")]
    assert previews
    assert all(p.startswith("data:image/jpeg;base64,") for p in previews)
    quiet = fleet.submit(**LONG | {"num_images": 1})
    assert not any(data.get("preview") for _, _, data in fleet.events(quiet["id"]))


def test_events_resumed_in_the_middle_miss_nothing(fleet: Fleet) -> None:
    job = fleet.submit(**LONG)
    first = []
    for event in fleet.events(job["id"]):
        first.append(event)
        if event[1] == "progress":
            break  # the connection is cut here
    rest = list(fleet.events(job["id"], after=first[-1][0]))
    whole = list(fleet.events(job["id"]))
    assert first + rest == whole
    assert rest[-1][1] == "succeeded"
    steps = [data["steps_done"] for _, kind, data in whole if kind == "progress"]
    assert steps == sorted(set(steps))


def test_an_idempotency_key_makes_one_job(fleet: Fleet) -> None:
    headers = {"Idempotency-Key": "order-4711"}
    first, second = (fleet.submit(headers=headers, seed=9) for _ in range(2))
    assert first["id"] == second["id"]
    assert fleet.finished(first["id"])["status"] == "succeeded"
    assert fleet.submit(headers=headers, seed=9)["status"] == "succeeded"


def test_a_long_prompt_is_cut_with_a_warning(fleet: Fleet) -> None:
    done = fleet.finished(fleet.submit(prompt="a red apple and " * 40)["id"])
    assert done["status"] == "succeeded"
    assert "prompt_truncated" in {w["code"] for w in done["warnings"]}


def test_cancel_while_running(fleet: Fleet) -> None:
    job = fleet.submit(**LONG)
    fleet_events = fleet.events(job["id"])
    assert any(kind == "progress" for _, kind, _ in fleet_events)
    assert fleet.client.delete(f"/jobs/{job['id']}").status_code in (200, 202)
    *_, last = fleet_events
    assert last[1] == "canceled"
    done = fleet.job(job["id"])
    assert done["status"] == "canceled"
    assert done["progress"]["steps_done"] < done["progress"]["steps_total"]
    assert done["images"] == []
    assert fleet.finished(fleet.submit()["id"])["status"] == "succeeded", "the worker goes on"


def test_cancel_while_queued(own_fleet: Fleet) -> None:
    own_fleet.worker(CELADON_SLOTS="1")
    busy = own_fleet.submit(**LONG | {"num_images": 8})
    own_fleet.running(busy["id"])
    waiting = own_fleet.submit()
    assert waiting["status"] == "queued"
    canceled = own_fleet.client.delete(f"/jobs/{waiting['id']}").json()
    assert canceled["status"] == "canceled"
    assert canceled["progress"]["steps_done"] == 0
    own_fleet.client.delete(f"/jobs/{busy['id']}")
    assert own_fleet.finished(busy["id"])["status"] == "canceled"
    assert own_fleet.job(waiting["id"])["status"] == "canceled"


def test_a_worker_killed_in_the_middle_loses_no_job(own_fleet: Fleet) -> None:
    victim = own_fleet.worker()
    job = own_fleet.submit(seed=3, **LONG)
    own_fleet.running(job["id"])
    victim.send_signal(signal.SIGKILL)
    own_fleet.worker()
    done = own_fleet.finished(job["id"])
    assert done["status"] == "succeeded"
    assert [kind for _, kind, _ in own_fleet.events(job["id"])].count("requeued") == 1
    again = own_fleet.finished(own_fleet.submit(seed=3, **LONG)["id"])
    assert [own_fleet.picture(done, i) for i in range(4)] == [own_fleet.picture(again, i) for i in range(4)]


def test_sigterm_releases_what_it_cannot_finish(own_fleet: Fleet) -> None:
    leaving = own_fleet.worker(CELADON_DRAIN_S="0")
    job = own_fleet.submit(**LONG)
    own_fleet.running(job["id"])
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(timeout=20) == 0
    assert own_fleet.job(job["id"])["status"] == "queued"
    assert own_fleet.workers() == set()
    own_fleet.worker()
    assert own_fleet.finished(job["id"])["status"] == "succeeded"


def test_sigterm_finishes_what_it_can(own_fleet: Fleet) -> None:
    leaving = own_fleet.worker(CELADON_DRAIN_S="60")
    job = own_fleet.submit(**LONG)
    own_fleet.running(job["id"])
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(timeout=60) == 0
    assert own_fleet.job(job["id"])["status"] == "succeeded"


def test_a_gateway_restart_loses_nothing(own_fleet: Fleet) -> None:
    own_fleet.worker()
    done = own_fleet.finished(own_fleet.submit()["id"])
    running, queued = own_fleet.submit(**LONG), own_fleet.submit()
    own_fleet.restart_gateway()
    assert own_fleet.job(done["id"])["status"] == "succeeded"
    assert own_fleet.picture(done) == own_fleet.picture(own_fleet.job(done["id"])), "URLs of the old gateway still open"
    for job in (running, queued):
        assert own_fleet.finished(job["id"])["status"] == "succeeded"


def test_valkey_killed_in_the_middle_loses_no_job(model: Path, tmp_path: Path) -> None:
    """Worker and gateway wait for the server, and what was accepted is still there."""
    server = jobs.valkey.start(tmp_path)
    fleet = Fleet(jobs.valkey.url(tmp_path), tmp_path, model)
    try:
        fleet.gateway()
        fleet.worker()
        running, queued = fleet.submit(**LONG), fleet.submit()
        fleet.running(running["id"])
        server.kill()
        server.wait()
        answer = fleet.client.post("/generate", json={"prompt": "a red apple"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
        server = jobs.valkey.start(tmp_path)
        for job in (running, queued):
            fleet.until(lambda job=job: fleet.client.get(f"/jobs/{job['id']}").status_code == 200)
            assert fleet.finished(job["id"])["status"] == "succeeded"
    finally:
        fleet.close()
        server.kill()
        server.wait()


def steps_of(fleet: Fleet, job: dict[str, Any]) -> list[tuple[str, int]]:
    return [(kind, data["steps_done"]) for kind, data in ((e[1], e[2]) for e in fleet.events(job["id"]))]


def until_saved(fleet: Fleet, job: dict[str, Any], redis: Redis, *, evaluations: int) -> int:
    """Waits for a checkpoint of at least so many evaluations; how many there are in it."""
    found: list[int] = []

    def saved() -> bool:
        steps = redis.hget(f"{{q0}}:k:{job['id']}", "steps")
        found.append(int(steps or 0))
        return found[-1] >= evaluations

    fleet.until(saved)
    return found[-1]


def test_a_killed_worker_costs_at_most_what_came_after_the_checkpoint(own_fleet: Fleet, redis_url: str) -> None:
    """Another worker goes on where the checkpoint stands, pictures that were finished keep their keys, all bytes are equal.

    The evaluations that are done again are those of the last moments: of one interval, and what it takes to write a checkpoint down.
    """
    victim = own_fleet.worker(CELADON_CHECKPOINT_S="0.2", CELADON_SLOTS="1")
    job = own_fleet.submit(seed=3, **LONG)
    with Redis.from_url(redis_url) as redis:
        saved = until_saved(own_fleet, job, redis, evaluations=150)  # an image has 119: one is finished, one in flight
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        finished = [image["key"] for image in json.loads(redis.hget(f"{{q0}}:k:{job['id']}", "images") or "[]")]
    stored = {key: (own_fleet.folder / "images" / key).read_bytes() for key in finished}
    own_fleet.worker(CELADON_SLOTS="2")
    done = own_fleet.finished(job["id"])
    assert done["status"] == "succeeded"
    keys = [image["key"] for image in done["images"]]
    assert 0 < len(finished) < 4 and keys[: len(finished)] == finished
    assert all(key.split("/")[1].startswith("2-") for key in keys[len(finished) :]), "the others are of the second attempt"
    assert stored == {key: own_fleet.picture(done, index) for index, key in enumerate(finished)}
    story = [(float(id_.split("-")[0]) / 1000, kind, data["steps_done"]) for id_, kind, data in own_fleet.events(job["id"])]
    cut = [kind for _, kind, _ in story].index("requeued")
    before, resumed = [e for e in story[:cut] if e[1] == "progress"], story[cut][2]
    assert min(step for _, kind, step in story[cut:] if kind == "progress") > resumed >= saved
    killed_s, _, done_then = before[-1]
    redone = done_then - resumed
    late = [step for at, _, step in before if at > killed_s - CHECKPOINT_COSTS_S]
    assert redone <= done_then - min(late), "evaluations of the time since the last checkpoint alone"
    again = own_fleet.finished(own_fleet.submit(seed=3, **LONG)["id"])
    assert [own_fleet.picture(done, i) for i in range(4)] == [own_fleet.picture(again, i) for i in range(4)]


def test_a_drained_worker_hands_its_images_on_in_flight(own_fleet: Fleet) -> None:
    leaving = own_fleet.worker(CELADON_DRAIN_S="0")
    job = own_fleet.submit(seed=4, **LONG)
    own_fleet.running(job["id"])
    leaving.send_signal(signal.SIGTERM)
    assert leaving.wait(timeout=20) == 0
    waiting = own_fleet.job(job["id"])
    assert waiting["status"] == "queued"
    assert waiting["progress"]["steps_done"] > 0
    own_fleet.worker()
    assert own_fleet.finished(job["id"])["status"] == "succeeded"
    steps = [step for kind, step in steps_of(own_fleet, job) if kind == "progress"]
    assert steps == sorted(steps), "nothing was done twice"


def test_an_urgent_job_takes_the_slots_of_a_batch_job(own_fleet: Fleet) -> None:
    own_fleet.worker(CELADON_SLOTS="1")
    batch = own_fleet.submit(service_class="batch", **LONG | {"num_images": 8})
    own_fleet.running(batch["id"])
    urgent = own_fleet.finished(own_fleet.submit(service_class="interactive")["id"])
    assert urgent["status"] == "succeeded"
    assert own_fleet.job(batch["id"])["status"] != "succeeded", "the batch job had to wait"
    assert own_fleet.finished(batch["id"])["status"] == "succeeded"
    steps = [step for kind, step in steps_of(own_fleet, batch) if kind == "progress"]
    assert steps == sorted(steps), "and lost nothing"


def test_a_zombie_changes_nothing(own_fleet: Fleet) -> None:
    """Stopped past its lease, then woken: its pictures are not published, and its files go away."""
    zombie = own_fleet.worker()
    job = own_fleet.submit(seed=5, **LONG)
    own_fleet.running(job["id"])
    zombie.send_signal(signal.SIGSTOP)
    own_fleet.worker()
    done = own_fleet.finished(job["id"])
    assert done["status"] == "succeeded"
    zombie.send_signal(signal.SIGCONT)
    keys = {image["key"] for image in done["images"]}
    assert own_fleet.job(job["id"]) == done
    assert own_fleet.finished(own_fleet.submit()["id"])["status"] == "succeeded"
    folder = own_fleet.folder / "images" / job["id"]
    own_fleet.until(lambda: {f"{job['id']}/{path.name}" for path in folder.iterdir()} == keys)
