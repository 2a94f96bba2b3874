"""Two passes in one job: what two jobs draw one after the other, counted as one, resumed anywhere, and refused where it cannot be."""

from __future__ import annotations

import io
import queue
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.arguments import place
from jobs.job import Job
from pipelines.card import SamplerInfo
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.engine.sample import Saved
from pipelines.known import Known, Posterior
from pipelines.loading import Checkpoint
from pipelines.params import GenerationParams
from pipelines.resample import bilinear
from pipelines.text_to_image import TorchStages, denoise, encode_picture, generate
from tests import test_drawing
from tests.cards import card
from tests.fleet import Fleet
from tests.live_gateway import Live, assert_error, depth, running
from tests.picture_samples import as_url, sample_mask, sample_picture
from tests.test_drawing import Studio
from workers.drawing import DrawingThread
from workers.messages import Advanced, Draw, Drawn, Exported, Hold, Inputs, Report, Save

pytestmark = pytest.mark.timeout(300)  # whole services start here, on machines that may be busy

checkpoint = test_drawing.checkpoint
studio = test_drawing.studio
LANCZOS: dict[str, Any] = {"width": 128, "height": 96, "steps": 7, "strength": 0.6, "method": "lanczos"}
PICTURE = as_url(sample_picture())


@pytest.mark.parametrize("cells", [(16, 24), (12, 9), (8, 13)])
def test_latents_are_enlarged_as_torch_does(cells: tuple[int, int]) -> None:
    latents = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(latents)[None], size=cells, mode="bilinear")[0]
    np.testing.assert_allclose(bilinear(latents, cells), wanted.numpy(), atol=2e-6)


def two_jobs(checkpoint: Checkpoint, params: GenerationParams, index: int, known: Known | None = None) -> np.ndarray:
    """The slow twin, with the slow loop of each pass."""
    first, second = params.passes
    size = second.width, second.height
    if params.upscale["method"] == "latent":
        mean = bilinear(denoise(checkpoint, first, index, known), (size[1] // 8, size[0] // 8))
        return generate(checkpoint, second, index, Known(Posterior(mean, np.zeros_like(mean))))
    large = Image.fromarray(generate(checkpoint, first, index, known)).resize(size, Image.Resampling.LANCZOS)
    return generate(checkpoint, second, index, Known(encode_picture(checkpoint, np.asarray(large))))


def test_one_job_draws_what_two_would_beside_jobs_of_one_pass(checkpoint: Checkpoint, studio: Studio) -> None:
    picture = sample_picture(64, 64)
    pixels = test_drawing.job("pixels", num_images=2, upscale=LANCZOS, sampler="euler_a")
    latents = test_drawing.job("latents", upscale=LANCZOS | {"method": "latent", "strength": 0.9}, sampler="dpmpp_2m")
    over = test_drawing.job("over", upscale=LANCZOS, kind="image_to_image", image="k", strength=0.5)
    plain = test_drawing.job("plain", steps=9)
    for one in (pixels, latents, over, plain):
        studio.thread.put(Draw(one, inputs=Inputs(picture, None) if one is over else None))
    known = {"over": Known(encode_picture(checkpoint, picture))}
    for one in (pixels, latents, over, plain):
        for drawn in studio.until(Drawn, one, one.params.num_images):
            draw = generate if one is plain else two_jobs
            wanted = draw(checkpoint, one.params, drawn.index, known.get(one.id))
            assert drawn.pixels.shape == wanted.shape and np.abs(drawn.pixels.astype(int) - wanted).max() <= 2, one.id
    done = [told.done for told in studio.seen if isinstance(told, Advanced) and told.job is latents]
    assert done == list(range(1, 4 + 6 + 1)), "the steps of both passes are one count"


def every_state(checkpoint: Checkpoint, one: Job) -> tuple[dict[int, Saved], np.ndarray]:
    """Where its one image stood after each row but the last, and the picture."""
    reports: queue.Queue[Report] = queue.Queue()

    def told(report: Report) -> None:
        reports.put(report)
        if isinstance(report, Advanced):
            thread.put(Save(one))  # obeyed before the next row

    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    thread = DrawingThread(told)
    thread.put(Hold(one.params.model, TorchStages(checkpoint), Engine(denoiser, slots=1, rows=4)))
    thread.start()
    thread.put(Draw(one))
    states: dict[int, Saved] = {}
    while not isinstance(report := reports.get(timeout=test_drawing.TIMEOUT_S), Drawn):
        if isinstance(report, Exported):
            states |= {saved.row: saved for saved in report.images.values()}
    thread.stop()
    return states, report.pixels


@pytest.mark.parametrize("method", ["lanczos", "latent"])
def test_it_goes_on_in_another_thread_from_every_row_bit_for_bit(checkpoint: Checkpoint, studio: Studio, method: str) -> None:
    asked: dict[str, Any] = {"steps": 6, "sampler": "euler_a", "upscale": LANCZOS | {"method": method}}
    states, whole = every_state(checkpoint, test_drawing.job("one", **asked))
    assert sorted(states) == list(range(1, 10)) and {saved.rows for saved in states.values()} == {6 + 4}
    for row, saved in states.items():
        again = test_drawing.job(f"from {row}", **asked)
        studio.thread.put(Draw(again, {0: saved}))
        [resumed] = studio.until(Drawn, again)
        np.testing.assert_array_equal(resumed.pixels, whole, err_msg=f"from row {row}")
        assert [told.done for told in studio.seen if isinstance(told, Advanced) and told.job is again] == list(range(row + 1, 11))


def test_the_queue_is_told_what_both_passes_cost() -> None:
    """Ten evaluations, four of them at a third of the pixels."""
    one = test_drawing.job("one", upscale={"width": 128, "height": 96, "steps": 6, "strength": 1.0, "method": "latent"})
    assert place(test_drawing.job("plain"))[4:] == (0, "64x64")
    counted = replace(one, steps_total=10)
    assert place(counted)[4:] == (round(6 + 4 / 3), "128x96")


@pytest.fixture
def gateway(redis_url: str, tmp_path: Path) -> Iterator[Live]:
    learned = SamplerInfo(id="learned", name="Learned", only_steps=(10,))
    with running(redis_url, tmp_path, card(samplers=(*card().samplers, learned)), card(id="text-only", kinds=("text_to_image",)),
                 default_model="celadon-test") as live:  # fmt: skip
        yield live


def params(gateway: Live, **body: Any) -> tuple[dict[str, Any], int]:
    answer = gateway.post({"prompt": "a red apple", "steps": 10, "sampler": "euler"} | body)
    assert answer.status_code == 202, answer.text
    return answer.json()["params"], answer.json()["progress"]["steps_total"]


def test_what_is_not_said_of_the_second_pass(gateway: Live) -> None:
    found, total = params(gateway, upscale=2)
    assert found["upscale"] == {"width": 128, "height": 128, "steps": 10, "strength": 0.4, "method": "lanczos"}
    assert (found["width"], found["kind"], total) == (64, "text_to_image", 14)
    assert params(gateway, **found) == (found, total)
    found, total = params(gateway, upscale={"method": "latent", "factor": 1.3, "steps": 5}, num_images=2, image=PICTURE)
    assert found["upscale"] == {"width": 80, "height": 80, "steps": 5, "strength": 0.6, "method": "latent"}
    assert (found["kind"], total) == ("image_to_image", 2 * (8 + 3))
    assert params(gateway, upscale={"width": 256, "height": 64, "strength": 1})[1] == 20
    assert params(gateway, upscale={})[0]["upscale"] == {} and params(gateway, upscale=None)[1] == 10


@pytest.mark.parametrize(("body", "code", "param"), [
    ({"upscale": 1}, "invalid_value", "upscale.factor"),
    ({"upscale": 4.5}, "invalid_value", "upscale.factor"),
    ({"upscale": True}, "invalid_value", "upscale"),
    ({"upscale": 3}, "invalid_size", "upscale"),  # higher than the model draws
    ({"upscale": 1.01}, "invalid_size", "upscale"),  # rounded to what it is
    ({"upscale": {"width": 128}}, "invalid_value", "upscale"),
    ({"upscale": {"width": 128, "height": 128, "factor": 2}}, "invalid_value", "upscale"),
    ({"upscale": {"width": 100, "height": 128}}, "invalid_size", "upscale"),
    ({"upscale": {"width": 64, "height": 64}}, "invalid_size", "upscale"),
    ({"upscale": {"steps": 5000}}, "invalid_value", "upscale.steps"),
    ({"upscale": {"strength": 0.05}}, "invalid_value", "upscale.strength"),
    ({"upscale": {"strength": 1.5}}, "invalid_value", "upscale.strength"),
    ({"upscale": {"method": "nearest"}}, "invalid_value", "upscale.method"),
    ({"upscale": {"scale": 2}}, "unknown_field", "upscale.scale"),
    ({"upscale": 2, "image": PICTURE, "mask": as_url(sample_mask())}, "invalid_value", "upscale"),
    ({"upscale": 2, "image": PICTURE, "end": 0.8}, "invalid_value", "end"),
    ({"upscale": 2, "model": "text-only"}, "kind_not_supported", "upscale"),
    ({"upscale": 2, "sampler": "learned"}, "invalid_value", "upscale"),
    ({"upscale": 2, "guidance_options": {"scales": [3] * 10}}, "invalid_value", "guidance_options"),
])  # fmt: skip
def test_what_cannot_be_enlarged_is_refused(gateway: Live, redis_url: str, body: dict[str, Any], code: str, param: str) -> None:
    assert_error(gateway.post({"prompt": "a red apple", "steps": 10, "sampler": "euler"} | body), 400, code, param)
    assert sum(depth(redis_url).values()) == 0


def test_through_the_service_it_is_the_picture_of_two_jobs(fleet: Fleet) -> None:
    wanted: dict[str, Any] = {"width": 64, "height": 64, "steps": 5, "sampler": "euler_a", "seed": 3}
    one = fleet.finished(fleet.submit(**wanted, upscale={"strength": 0.6})["id"])
    assert one["progress"]["steps_done"] == one["progress"]["steps_total"] == 8
    assert (one["images"][0]["width"], one["images"][0]["height"]) == (128, 128)
    small = fleet.finished(fleet.submit(**wanted)["id"])["images"][0]["key"]
    two = fleet.finished(fleet.submit(**wanted | {"image": small, "width": 128, "height": 128, "strength": 0.6})["id"])
    found, chained = (np.asarray(Image.open(io.BytesIO(fleet.picture(job)))) for job in (one, two))
    np.testing.assert_array_equal(found, chained)
