"""A model's own network that doubles its pictures: the same on both backends, alone or before a second pass, through every door."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from pipelines.card import ModelCard
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import describe
from pipelines.graphs import tiny_unet
from pipelines.graphs.runtime import openvino
from pipelines.graphs.weights import Weights
from pipelines.infotext import infotext
from pipelines.known import Known
from pipelines.loading import Checkpoint, load
from pipelines.openvino_model import Compiler, OpenVinoStages
from pipelines.params import GenerationParams
from pipelines.text_to_image import TorchStages, encode_picture, generate
from pipelines.tiny_unet import Shape, TinyUNet, load_network
from pipelines.upscaler import PART, Recipe, Upscaler, features, shuffled
from service.sdapi import Txt2ImgRequest
from service.sdapi_hires import second_pass
from tests import test_drawing, test_upscale
from tests.cards import card
from tests.fleet import Fleet, shared
from tests.live_gateway import Live, assert_error, running
from tests.picture_samples import as_url, sample_picture
from tests.test_drawing import Studio
from training.superres.export import write_upscaler
from training.toy import write_toy
from workers.messages import Draw, Drawn

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

RECIPE = Recipe(steps=2, schedule="cosine", ladder=1000, deviation=0.05)
SMALL = Shape(width=6, deep=4, blocks=(1, 1, 1))
SHAPE = {"state": 12, "width": 6, "deep": 4, "blocks": [1, 1, 1]}  # the same in a config
DOUBLED = {"width": 128, "height": 128, "method": "superres"}


def with_upscaler(folder: Path, shape: Shape = SMALL) -> Path:
    """A checkpoint folder that brings one, of random weights that do something."""
    torch.manual_seed(0)
    network = TinyUNet(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    write_upscaler(folder, network, RECIPE)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return with_upscaler(write_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Checkpoint:
    return load(model, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def studio(checkpoint: Checkpoint) -> Iterator[Studio]:
    studio = Studio(checkpoint, slots=2)
    yield studio
    studio.thread.stop()


# The network and what is made of it


@pytest.mark.parametrize("shape", [Shape(), Shape(width=7, deep=0, blocks=(1, 0, 2)), Shape(width=6, deep=10, blocks=(0, 2, 1))])
def test_the_graph_is_the_network(shape: Shape, tmp_path: Path) -> None:
    folder = with_upscaler(tmp_path, shape) / PART
    config = json.loads((folder / "config.json").read_text())
    network = load_network(folder, config, torch.device("cpu"))
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    graph = openvino.Core().compile_model(tiny_unet.build(Weights(folder), config), "CPU", hints)
    rng = np.random.default_rng(0)
    for size in ((8, 8), (6, 10)):
        state, low = rng.normal(size=(1, 12, *size)).astype(np.float32), rng.random((1, 3, *size)).astype(np.float32)
        wanted = network(state, low, 0.3)
        found = graph({"state": state, "low": low, "time": features(0.3)})[0]
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_picture_is_the_residual_over_bicubic_of_its_seed() -> None:
    seen: list[np.ndarray] = []

    def network(state: np.ndarray, low: np.ndarray, time: float) -> np.ndarray:
        seen.append(state)
        return np.full_like(state, -0.5) * (time == 1)  # from pure noise that is the residual, in deviations

    picture = sample_picture(16, 8)
    doubled = Upscaler(network, replace(RECIPE, steps=1))(picture, 7)
    low = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    wanted = F.interpolate(low, scale_factor=2, mode="bicubic") - 0.5 * RECIPE.deviation
    difference = doubled.astype(float) - (wanted[0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy()
    assert doubled.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3)
    assert np.abs(difference).max() <= 1
    Upscaler(network, replace(RECIPE, steps=1))(picture, 7)
    Upscaler(network, replace(RECIPE, steps=1))(picture, 8)
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_cells_are_shuffled_as_torch_does() -> None:
    residual = np.random.default_rng(0).normal(size=(2, 12, 3, 5)).astype(np.float32)
    np.testing.assert_array_equal(shuffled(residual), F.pixel_shuffle(torch.from_numpy(residual), 2).numpy())


def test_what_is_not_finite_is_no_picture() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        Upscaler(lambda state, low, time: state * np.float32(np.nan), RECIPE)(sample_picture(8, 8), 0)


def test_both_backends_double_alike(model: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    said = describe(model)
    assert said.card.upscalers == checkpoint.card.upscalers == ("superres",)
    stages = OpenVinoStages(said, Compiler(said, tmp_path, 1))
    picture = sample_picture(24, 16)
    one, two = stages.enlarge(picture, 3), TorchStages(checkpoint).enlarge(picture, 3)
    assert one.shape == (2 * picture.shape[0], 2 * picture.shape[1], 3) and np.abs(one.astype(int) - two).max() <= 1
    assert np.abs(one.astype(int) - stages.enlarge(picture, 4)).max() > 1, "the noise is the seed's"


@pytest.mark.parametrize(("change", "code"), [
    ({"steps": 0}, "bad_config"), ({"schedule": "none"}, "bad_config"), ({"deviation": -1}, "bad_config"), ({"ladder": "x"}, "bad_config"),
    ({"shape": SHAPE | {"width": 5}}, "weights_misfit"), ({"shape": SHAPE | {"depth": 5}}, "bad_config"),
    ({"shape": {"width": 5}}, "bad_config"), ({"shape": SHAPE | {"state": 0}}, "bad_config"), (None, "weights_missing"),
])  # fmt: skip
def test_one_that_cannot_work_is_refused_before_any_job(change: dict[str, Any] | None, code: str, tmp_path: Path) -> None:
    folder = with_upscaler(write_toy(tmp_path)) / PART
    if change is None:
        (folder / "model.safetensors").unlink()
    else:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, device=torch.device("cpu"), dtype=torch.float32)
    assert caught.value.code == code


# Jobs


def test_a_job_is_doubled_alone_or_before_a_second_pass(checkpoint: Checkpoint, studio: Studio) -> None:
    alone = test_drawing.job("alone", upscale=DOUBLED, num_images=2)
    over = test_drawing.job("over", upscale=DOUBLED | {"steps": 5, "strength": 0.5})
    plain = test_drawing.job("plain")
    assert [len(job.params.passes) for job in (alone, over, plain)] == [1, 2, 1]
    stages = TorchStages(checkpoint)
    for one in (alone, over, plain):
        studio.thread.put(Draw(one))
    for drawn in studio.until(Drawn, alone, 2):
        wanted = stages.enlarge(generate(checkpoint, plain.params, drawn.index), alone.params.image_seed(drawn.index))
        assert drawn.pixels.shape == (128, 128, 3) and np.abs(drawn.pixels.astype(int) - wanted).max() <= 2
    first, second = over.params.passes
    large = stages.enlarge(generate(checkpoint, first), over.params.seed)
    wanted = generate(checkpoint, second, 0, Known(encode_picture(checkpoint, large)))
    [drawn] = studio.until(Drawn, over)
    assert np.abs(drawn.pixels.astype(int) - wanted).max() <= 2
    assert studio.until(Drawn, plain)[0].pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("upscale", [DOUBLED, DOUBLED | {"steps": 4, "strength": 0.5}])
def test_it_goes_on_in_another_thread_bit_for_bit(checkpoint: Checkpoint, studio: Studio, upscale: dict[str, Any]) -> None:
    states, whole = test_upscale.every_state(checkpoint, test_drawing.job("one", upscale=upscale))
    assert len(states) == (3 if upscale is DOUBLED else 5)
    for row, saved in states.items():
        again = test_drawing.job(f"from {row}", upscale=upscale)
        studio.thread.put(Draw(again, {0: saved}))
        np.testing.assert_array_equal(studio.until(Drawn, again)[0].pixels, whole, err_msg=f"from row {row}")


# Doors


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    brings = card(upscalers=("superres",))
    with running(redis_url, tmp_path, brings, card(id="plain"), card(id="text-only", kinds=("text_to_image",), upscalers=("superres",)),
                 default_model=brings.id) as live:  # fmt: skip
        yield live


def asked(gateway: Live, **body: Any) -> tuple[dict[str, Any], int]:
    answer = gateway.post({"prompt": "a red apple", "steps": 10, "sampler": "euler"} | body)
    assert answer.status_code == 202, answer.text
    return answer.json()["params"], answer.json()["progress"]["steps_total"]


@pytest.mark.parametrize(("model", "names"), [
    (card(upscalers=("superres",)), ["Lanczos", "Superres", "Latent"]),
    (card(), ["Lanczos", "Latent"]),
    (card(kinds=("text_to_image",), upscalers=("superres",)), ["Superres"]),
    (card(kinds=("text_to_image",)), []),
])  # fmt: skip
def test_a1111_is_told_what_it_may_ask_for(redis_url: str, tmp_path: Path, model: ModelCard, names: list[str]) -> None:
    with running(redis_url, tmp_path, model, door_wait_s=1) as live:
        upscalers, modes = (live.http.get(f"/sdapi/v1/{what}").json() for what in ("upscalers", "latent-upscale-modes"))
        assert [one["name"] for one in upscalers + modes] == names and all(one.keys() == {"name"} for one in modes)
        for one in upscalers:
            scale = 2 if one["name"] == "Superres" else None
            assert one == {"name": one["name"], "model_name": None, "model_path": None, "model_url": None, "scale": scale}
        hires = {"prompt": "x", "width": 64, "height": 64, "steps": 4, "sampler_name": "Euler", "enable_hr": True}
        for name in ("Lanczos", "Superres", "Latent"):
            strength = 0 if name == "Superres" else 0.5
            answer = live.http.post("/sdapi/v1/txt2img", json=hires | {"hr_upscaler": name, "denoising_strength": strength})
            assert answer.status_code == (504 if name in names else 400), answer.text


def test_it_is_taken_where_nothing_else_is_said_and_needs_no_second_pass(gateway: Live) -> None:
    found, total = asked(gateway, upscale=2)
    assert (found["upscale"], total) == (DOUBLED, 10)
    assert asked(gateway, **found) == (found, total)
    over, total = asked(gateway, upscale={"strength": 0.5})
    assert (over["upscale"], total) == (DOUBLED | {"steps": 10, "strength": 0.5}, 15)
    assert asked(gateway, **over) == (over, total)
    assert asked(gateway, upscale={"steps": 20})[0]["upscale"] == DOUBLED | {"steps": 20, "strength": 0.4}
    assert asked(gateway, upscale=1.5)[0]["upscale"]["method"] == "lanczos"
    assert asked(gateway, upscale={"method": "latent"})[0]["upscale"]["strength"] == 0.6
    assert asked(gateway, upscale=2, model="plain")[0]["upscale"]["method"] == "lanczos"
    assert asked(gateway, upscale=2, model="text-only")[0]["upscale"] == DOUBLED
    large, _ = asked(gateway, upscale=2, width=256, height=128, image=as_url(sample_picture()))
    assert (large["upscale"]["width"], large["kind"]) == (512, "image_to_image"), "twice what the model draws"


@pytest.mark.parametrize(("body", "code", "param"), [
    ({"upscale": {"method": "superres", "factor": 1.5}}, "invalid_size", "upscale"),
    ({"upscale": {"method": "superres", "width": 128, "height": 64}}, "invalid_size", "upscale"),
    ({"upscale": {"method": "superres"}, "model": "plain"}, "not_supported", "upscale.method"),
    ({"upscale": {"method": "superres", "strength": 0}}, "invalid_value", "upscale.strength"),
    ({"upscale": {"strength": 0.5}, "model": "text-only"}, "kind_not_supported", "upscale"),
    ({"upscale": {"strength": 0.5}, "width": 256, "height": 128}, "invalid_size", "upscale"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(gateway: Live, body: dict[str, Any], code: str, param: str) -> None:
    assert_error(gateway.post({"prompt": "a red apple", "steps": 10, "sampler": "euler"} | body), 400, code, param)


def test_a1111_asks_for_it_by_name() -> None:
    asked = {"prompt": "a red apple", "enable_hr": True, "hr_upscaler": "Superres", "hr_scale": 2}
    assert second_pass(Txt2ImgRequest(**asked, denoising_strength=0)) == {"method": "superres", "factor": 2.0}
    assert second_pass(Txt2ImgRequest(**asked, denoising_strength=0.3)) == {"method": "superres", "factor": 2.0, "strength": 0.3}
    params = GenerationParams(**test_drawing.job("one", upscale=DOUBLED).params.to_dict())
    assert "Hires resize: 128x128, Hires upscaler: Superres, Model" in infotext(params, 1, "Euler", "0", "0")


@pytest.fixture(scope="module")
def fleet(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with shared(tmp_path_factory.mktemp("fleet"), model) as service:
        yield service


def test_through_the_service_it_is_the_model_s_own_picture_doubled(fleet: Fleet, checkpoint: Checkpoint) -> None:
    wanted: dict[str, Any] = {"width": 64, "height": 64, "steps": 3, "seed": 5, "sampler": "euler"}
    small = np.asarray(Image.open(io.BytesIO(fleet.picture(fleet.finished(fleet.submit(**wanted)["id"])))))
    job = fleet.finished(fleet.submit(**wanted, upscale=2)["id"])
    large = np.asarray(Image.open(io.BytesIO(fleet.picture(job))))
    assert (job["images"][0]["width"], job["progress"]["steps_total"]) == (128, 3)
    assert np.abs(large.astype(int) - TorchStages(checkpoint).enlarge(small, 5)).max() <= 1
