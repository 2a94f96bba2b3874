"""Other architectures than the shipped model's through the real service: gateway, queue and worker as processes, over HTTP."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipelines.params import GenerationParams
from tests import checkpoints
from tests.fleet import Fleet, shared
from tests.test_architectures import reference

ROUNDED = 0.51 / 255 + 1e-3  # of a picture that is compared with one in whole numbers


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("service")
    with shared(folder, checkpoints.write(folder / "sdxl", "sdxl")) as fleet:
        yield fleet


def drawn(service: Fleet, **body: object) -> tuple[np.ndarray, GenerationParams]:
    """The picture in 0..1, and what it was drawn from."""
    job = service.finished(service.submit(**body)["id"])
    assert job["status"] == "succeeded", job
    picture = np.asarray(Image.open(io.BytesIO(service.picture(job)))) / 255
    return picture, GenerationParams.from_dict(job["params"])


def test_an_sdxl_checkpoint_runs_unchanged(service: Fleet) -> None:
    """OpenVINO has no graph of it, so torch takes over."""
    sizes = {"original_size": [96, 40], "crop": [4, 8]}
    body = {"prompt": "a red apple", "sampler": "euler", "width": 56, "height": 40, "seed": 3, "size_conditioning": sizes}
    picture, params = drawn(service, **body)
    told = {"original_size": (40, 96), "crops_coords_top_left": (8, 4), "target_size": (40, 56)}
    assert np.abs(picture - reference(service.folder / "sdxl", params, **told)).max() <= ROUNDED
    [model] = service.client.get("/models").json()
    assert model["size_conditioning"] and not model["distilled_guidance"]
    [worker] = service.client.get("/workers").json()
    assert worker["backend"].startswith("torch")


@pytest.mark.parametrize(
    "sizes", [{"crop": [1]}, {"crop": [1, -1]}, {"original_size": [1, 99999]}, {"original_size": "big"}, {"other": [1, 1]}]
)
def test_sizes_that_are_none_are_refused(service: Fleet, sizes: dict[str, object]) -> None:
    answer = service.client.post("/generate", json={"prompt": "a", "size_conditioning": sizes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("size_conditioning")
