"""Every kind of request on three models in one run of the real service: each picture is, byte for byte, what it is alone.

The service puts its watermark into all of them, and a worker that is killed changes none.
"""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fleet import Fleet, shared
from tests.picture_samples import as_file, as_url, sample_mask, sample_picture
from tests.test_inpaint_model import with_channels
from tests.test_upscaler import with_upscaler
from training.toy import write_toy
from workers.watermark import Watermark

pytestmark = pytest.mark.timeout(300)  # whole processes start here, on whatever machine this is

TEXT = "celadon!"
PICTURE, MASK = sample_picture(128, 128), sample_mask(128, 128)
NINE = "inpainting"  # the model whose U-Net has nine channels
WATERMARK = Watermark()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("service")
    made = {
        "one": with_upscaler(write_toy(folder / "one", seed=1)),
        "two": write_toy(folder / "two", prediction="epsilon", seed=2),
        NINE: with_channels(write_toy(folder / NINE, prediction="epsilon", seed=3), 9),
    }
    (folder / "models.json").write_text(json.dumps({name: str(place) for name, place in made.items()}))
    with shared(folder, made["one"], CELADON_MODELS=",".join(made), CELADON_WATERMARK=TEXT) as fleet:
        yield fleet


def bodies(key: str) -> dict[str, dict[str, Any]]:
    """By kind and model; `key` is of an uploaded picture."""
    kinds: dict[str, dict[str, Any]] = {
        "text_to_image": {"width": 128, "height": 128, "num_images": 2},
        "image_to_image": {"image": key, "strength": 0.6, "output_format": "webp"},
        "inpaint": {"image": as_url(PICTURE), "mask": as_url(MASK)},
        "outpaint": {"image": key, "outpaint": {"left": 32, "bottom": 16}},
        "variations": {"image": key, "kind": "variations", "output_format": "jpeg"},
        "upscale": {"width": 96, "height": 96, "upscale": {"factor": 2, "method": "lanczos", "steps": 3, "strength": 0.5}},
    }
    of = {kind: ("one", "two", NINE) if kind in ("inpaint", "outpaint") else ("one", "two") for kind in kinds}
    found = {f"{kind}, {model}": body | {"model": model} for kind, body in kinds.items() for model in of[kind]}
    found["doubled, one"] = {"model": "one", "width": 96, "height": 96, "upscale": 2}
    samplers = ("ddim", "euler_a", "dpmpp_2m", "heun", "unipc", "dpmpp_sde")
    return {
        name: {"prompt": f"a red apple, {i}", "seed": i, "steps": 4, "sampler": samplers[i % len(samplers)], "guidance": 3.0} | body
        for i, (name, body) in enumerate(found.items())
    }


@pytest.fixture(scope="module")
def wanted(service: Fleet) -> dict[str, dict[str, Any]]:
    answer = service.client.post("/uploads", files={"file": ("a.png", as_file(PICTURE), "image/png")})
    return bodies(answer.json()["key"])


@pytest.fixture(scope="module")
def alone(service: Fleet, wanted: dict[str, dict[str, Any]]) -> dict[str, list[bytes]]:
    """Each when there is nothing else."""
    return {name: pictures(service, service.submit(**body)) for name, body in wanted.items()}


def pictures(service: Fleet, job: dict[str, Any]) -> list[bytes]:
    done = service.finished(job["id"])
    assert done["status"] == "succeeded", done
    return [service.picture(done, index) for index in range(len(done["images"]))]


def test_all_kinds_and_models_in_one_run_equal_their_solo_runs(
    service: Fleet, wanted: dict[str, dict[str, Any]], alone: dict[str, list[bytes]]
) -> None:
    assert len(alone) == 15 and len({picture for found in alone.values() for picture in found}) == 17
    company = service.submit(model="two", steps=150, sampler="heun", num_images=8)  # so that none of them is ever alone
    service.running(company["id"])
    with ThreadPoolExecutor(len(wanted)) as clients:
        jobs = list(clients.map(lambda body: service.submit(**body), wanted.values()))
    together = {name: pictures(service, job) for name, job in zip(wanted, jobs, strict=True)}
    assert service.client.delete(f"/jobs/{company['id']}").json()["status"] == "running"
    assert [name for name in wanted if together[name] != alone[name]] == []


def test_every_picture_carries_the_mark_of_the_service(alone: dict[str, list[bytes]]) -> None:
    read = {
        name: [WATERMARK.read(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) for data in found] for name, found in alone.items()
    }
    assert read == {name: [TEXT] * len(found) for name, found in alone.items()}


def test_a_worker_that_is_killed_changes_no_picture(service: Fleet) -> None:
    body = {"model": "two", "width": 128, "height": 128, "steps": 60, "sampler": "heun", "num_images": 4, "seed": 9}
    [worker], job = service.workers(), service.submit(**body)
    service.running(job["id"])
    os.kill(int(worker.split("-")[-2]), signal.SIGKILL)  # host, process, a few random digits
    service.worker()
    found = pictures(service, job)
    assert [kind for _, kind, _ in service.events(job["id"])].count("requeued") == 1
    assert found == pictures(service, service.submit(**body))
