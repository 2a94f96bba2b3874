"""Pictures in, through real processes: gateway, Valkey, storage and a worker without torch, with the loop of diffusers' twin beside it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.known import Known
from pipelines.loading import load
from pipelines.masks import latent_mask, put_back
from pipelines.params import GenerationParams
from pipelines.text_to_image import encode_picture, generate
from tests.fleet import Fleet, shared
from tests.picture_samples import as_file, as_url, sample_mask, sample_picture
from training.toy import write_toy
from workers.encode import read_metadata

pytestmark = pytest.mark.timeout(300)

PICTURE, MASK = sample_picture(96, 64), sample_mask(96, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_toy(tmp_path_factory.mktemp("model") / "toy", seed=1)


@pytest.fixture(scope="module")
def fleet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with shared(tmp_path_factory.mktemp("shared"), model) as fleet:
        yield fleet


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_kinds_mixed_with_text_are_what_the_slow_loop_draws(fleet: Fleet, model: Path) -> None:
    jobs = [
        fleet.submit(image=as_url(PICTURE), strength=0.6, steps=7, sampler="dpmpp_2m", seed=5, num_images=2),
        fleet.submit(width=96, height=64, steps=6, sampler="euler", seed=6),
        fleet.submit(image=as_url(PICTURE), mask=as_url(MASK), steps=6, sampler="euler_a", seed=7, mask_feather=6),
        fleet.submit(image=as_url(PICTURE), mask=as_url(MASK), steps=8, sampler="unipc", seed=8, strength=0.5, mask_feather=0),
    ]
    checkpoint = load(model, device=torch.device("cpu"), dtype=torch.float32)
    posterior = encode_picture(checkpoint, PICTURE)
    for submitted in jobs:
        job = fleet.finished(submitted["id"])
        assert job["status"] == "succeeded" and job["progress"]["steps_done"] == job["progress"]["steps_total"], job
        params = GenerationParams.from_dict(job["params"])
        mask = latent_mask(MASK, (8, 12)) if params.mask else None
        known = Known(posterior, mask, from_noise=bool(params.mask) and params.strength == 1) if params.image else None
        for index in range(params.num_images):
            wanted, found = generate(checkpoint, params, index, known), pixels(fleet.picture(job, index))
            if params.mask:
                wanted = put_back(wanted, PICTURE, MASK, params.mask_feather)
                np.testing.assert_array_equal(found[:, :40], PICTURE[:, :40])
            assert np.abs(found.astype(int) - wanted).max() <= 2


def test_a_drawn_picture_can_be_drawn_upon_and_says_nothing_of_its_key(fleet: Fleet) -> None:
    first = fleet.finished(fleet.submit(width=96, height=64, steps=3, seed=1)["id"])
    key = first["images"][0]["key"]
    wanted: dict[str, Any] = {"image": key, "strength": 0.5, "steps": 4, "seed": 2}
    one, two = (fleet.picture(fleet.finished(fleet.submit(**wanted)["id"])) for _ in range(2))
    assert one == two
    record = read_metadata(one)["request"]
    assert record["strength"] == 0.5 and "image" not in record and key.encode() not in one


def test_an_uploaded_picture_is_drawn_upon_until_it_is_taken_back(fleet: Fleet) -> None:
    files = {"file": ("a.png", as_file(PICTURE), "image/png")}
    key = fleet.client.post("/uploads", files=files).json()["key"]
    wanted: dict[str, Any] = {"mask": as_url(MASK), "steps": 3, "seed": 4}
    uploaded = fleet.finished(fleet.submit(image=key, **wanted)["id"])
    assert uploaded["status"] == "succeeded" and uploaded["params"]["image"] == key
    assert fleet.picture(uploaded) == fleet.picture(fleet.finished(fleet.submit(image=as_url(PICTURE), **wanted)["id"]))
    fleet.client.delete(f"/uploads/{key}")
    answer = fleet.client.post("/generate", json={"prompt": "a red apple", "image": key, **wanted})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "picture_not_found")


def test_a_picture_that_is_gone_when_its_job_begins(fleet: Fleet) -> None:
    held = [fleet.submit(steps=120, num_images=8, width=128, height=128) for _ in range(3)]  # fill the slots
    waiting = fleet.submit(image=as_url(sample_picture(64, 64, seed=3)), steps=4)
    (fleet.folder / "images" / waiting["params"]["image"]).unlink()
    for job in held:
        fleet.client.delete(f"/jobs/{job['id']}")
    job = fleet.finished(waiting["id"])
    assert (job["status"], job["error"]["code"], job["error"]["retryable"]) == ("failed", "upload_expired", False)
