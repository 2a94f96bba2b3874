"""Other architectures than the shipped model's through the real service: gateway, queue and worker as processes, over HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipelines.params import GenerationParams
from tests import checkpoints
from tests.fleet import Fleet, shared
from tests.test_architectures import reference
from training.toy import write_toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # whole processes start here, on whatever machine this is

LITTLE = {"CELADON_MODEL_MEMORY_MB": "4", "CELADON_MODEL_STAY_S": "1"}
ROUNDED = 0.51 / 255 + 1e-3  # of a picture that is compared with one in whole numbers


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker with three models, of which two fit at a time."""
    folder = tmp_path_factory.mktemp("service")
    made = [checkpoints.write(folder / name, name) for name in ("sdxl", "lcm")]
    with shared(folder, write_toy(folder / "toy"), CELADON_MODELS=",".join(map(str, [*made, folder / "toy"])), **LITTLE) as fleet:
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
    body = {"model": "sdxl", "prompt": "a red apple", "sampler": "euler", "width": 56, "height": 40, "seed": 3, "size_conditioning": sizes}
    picture, params = drawn(service, **body)
    told = {"original_size": (40, 96), "crops_coords_top_left": (8, 4), "target_size": (40, 56)}
    assert np.abs(picture - reference(service.folder / "sdxl", params, **told)).max() <= ROUNDED
    models = {model["id"]: model for model in service.client.get("/models").json()}
    assert models["sdxl"]["size_conditioning"] and not models["sdxl"]["distilled_guidance"]
    [worker] = service.client.get("/workers").json()
    assert worker["backend"].startswith("torch") and set(worker["models"]) == set(models) == {"sdxl", "lcm", "toy"}


@pytest.mark.parametrize(
    "sizes", [{"crop": [1]}, {"crop": [1, -1]}, {"original_size": [1, 99999]}, {"original_size": "big"}, {"other": [1, 1]}]
)
def test_sizes_that_are_none_are_refused(service: Fleet, sizes: dict[str, object]) -> None:
    answer = service.client.post("/generate", json={"model": "sdxl", "prompt": "a", "size_conditioning": sizes})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("size_conditioning")


def test_a_model_that_is_told_the_scale(service: Fleet) -> None:
    picture, params = drawn(service, model="lcm", prompt="a red apple", negative_prompt="", width=56, height=40, seed=3, guidance=6.0)
    assert (params.sampler, params.steps) == ("lcm", 4)
    assert np.abs(picture - reference(service.folder / "lcm", params)).max() <= ROUNDED
    refused = service.client.post("/generate", json={"model": "lcm", "prompt": "a", "guidance_options": {"rescale": 0.5}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guidance_options")
    warned = service.submit(model="lcm", prompt="a", negative_prompt="b")
    assert "negative_prompt_unused" in {warning["code"] for warning in warned["warnings"]}


def test_what_a_model_is_not_told_is_refused(service: Fleet) -> None:
    refused = service.client.post("/generate", json={"model": "toy", "prompt": "a", "size_conditioning": {"crop": [0, 0]}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "size_conditioning")


def picture_url(size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_all_models_and_kinds_in_one_run_equal_their_solo_runs(service: Fleet) -> None:
    """Models change while others wait; every picture is the same, byte for byte, as when nothing else is there."""
    wanted = []
    for i, model in enumerate(("sdxl", "toy", "lcm", "toy", "sdxl", "lcm", "toy", "sdxl")):
        body: dict[str, object] = {"model": model, "prompt": f"a red apple {i}", "width": 64, "height": 64, "steps": 4, "seed": i}
        if i >= 4:
            body |= {"image": picture_url((64, 64)), "strength": 0.5}
        if i in (4, 6):
            body |= {"mask": picture_url((64, 64)), "strength": 1.0}
        wanted.append(body)
    jobs = [service.submit(**body) for body in wanted]
    together = [service.picture(service.finished(job["id"])) for job in jobs]
    alone = [service.picture(service.finished(service.submit(**body)["id"])) for body in wanted]
    assert [i for i, (one, other) in enumerate(zip(together, alone, strict=True)) if one != other] == []
    log = (service.folder / "log").read_text()
    assert log.count("event='model_came'") >= 2 and log.count("event='model_left'") >= 2


def test_every_door_lists_the_models_and_refuses_others(service: Fleet) -> None:
    names = {"sdxl", "lcm", "toy"}
    assert {model["id"] for model in service.client.get("/v1/models").json()["data"]} == names
    assert {model["model_name"] for model in service.client.get("/sdapi/v1/sd-models").json()} == names
    asked = {
        "/generate": {"prompt": "a", "model": "nobody"},
        "/v1/images/generations": {"prompt": "a", "model": "nobody"},
        "/sdapi/v1/txt2img": {"prompt": "a", "override_settings": {"sd_model_checkpoint": "nobody"}},
    }
    for path, body in asked.items():
        answer = service.client.post(path, json=body)
        assert 400 <= answer.status_code < 500, path
        assert all(name in answer.text for name in names), answer.text
    for path, body in (
        ("/v1/images/generations", {"prompt": "a", "model": "lcm", "size": "64x64", "response_format": "b64_json"}),
        ("/sdapi/v1/txt2img", {"prompt": "a", "width": 64, "height": 64, "override_settings": {"sd_model_checkpoint": "sdxl"}, "steps": 2}),
    ):
        answer = service.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
