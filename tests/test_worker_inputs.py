"""Jobs that begin with a picture: fetched, decoded and drawn by a worker, or ended with the reason why not."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from redis.asyncio import Redis

from jobs.image_store import LocalImageStore
from jobs.job import JobStatus
from jobs.job_queue import JobQueue
from pipelines.known import Known
from pipelines.loading import Checkpoint
from pipelines.masks import latent_mask, put_back
from pipelines.text_to_image import encode_picture, generate
from tests import test_drawing
from tests.test_drawing import Studio
from tests.worker_bench import PIXELS, Bench, draw_at_once, job
from workers.inputs import NoInputs, _decoded, mask_pixels, pixels
from workers.messages import Advanced, Draw, Drawn, Exported, Inputs, Save, Warned
from workers.regions import whole

checkpoint, studio = test_drawing.checkpoint, test_drawing.studio


def encoded(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def with_picture(name: str, **changes: Any) -> Any:
    plain = job(name)
    return replace(plain, params=replace(plain.params, kind="image_to_image", image="up/1.png", strength=0.5, **changes))


@pytest.mark.parametrize(("stored", "code"), [
    ({}, "upload_expired"),
    ({"up/1.png": encoded(PIXELS)}, "upload_expired"),  # its mask has gone
    ({"up/1.png": b"\x89PNG\r\n\x1a\n and nothing more", "up/2.png": encoded(PIXELS)}, "bad_picture"),
    ({"up/1.png": encoded(PIXELS)[:45], "up/2.png": encoded(PIXELS)}, "bad_picture"),
    ({"up/1.png": encoded(PIXELS), "up/2.png": encoded(PIXELS, "GIF")}, "bad_picture"),
], ids=["picture gone", "mask gone", "no picture", "truncated", "mask of another format"])  # fmt: skip
async def test_a_job_without_its_pictures_fails_and_says_why(redis: Redis, tmp_path: Path, stored: dict[str, bytes], code: str) -> None:
    queue, store = JobQueue(redis), LocalImageStore(tmp_path)
    for key, data in stored.items():
        await store.put(key, data)
    await queue.submit(with_picture("a", mask="up/2.png"))
    await queue.submit(job("b"))
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    failed, fine = await bench.ended("a"), await bench.ended("b")
    await bench.stop()
    assert failed.status is JobStatus.FAILED and failed.error is not None
    assert failed.error.code == code and not failed.error.retryable
    assert fine.status is JobStatus.SUCCEEDED
    assert [command.job.id for command in bench.puppet.commands if isinstance(command, Draw)] == ["b"]


async def test_the_thread_gets_the_pictures_in_the_size_that_is_drawn(redis: Redis, tmp_path: Path) -> None:
    queue, store = JobQueue(redis), LocalImageStore(tmp_path)
    await store.put("up/1.png", encoded(np.full((32, 16, 3), 9, np.uint8)))
    await store.put("up/2.png", encoded(np.full((32, 16), 255, np.uint8)))
    await queue.submit(with_picture("a", mask="up/2.png"))
    bench = Bench(queue, redis, tmp_path, draw_at_once)
    await bench.ended("a")
    await bench.stop()
    [draw] = [command for command in bench.puppet.commands if isinstance(command, Draw)]
    assert draw.inputs is not None and draw.inputs.mask is not None
    np.testing.assert_array_equal(draw.inputs.picture, np.full((8, 8, 3), 9))
    np.testing.assert_array_equal(draw.inputs.mask, np.full((8, 8), 255))


def test_pictures_are_turned_as_their_camera_says_and_lose_what_is_not_a_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    lying = np.zeros((8, 24, 3), np.uint8)
    lying[:, :8] = 250
    found = pixels(encoded(lying, "JPEG", exif=exif, quality=100, subsampling=0), (8, 24))
    assert found.shape == (24, 8, 3) and found[:7].min() > 200 and found[9:].max() < 50
    assert pixels(encoded(np.full((8, 8), 200, np.uint8)), (8, 8)).shape == (8, 8, 3)
    with pytest.raises(NoInputs):
        pixels(encoded(PIXELS, "GIF"), (8, 8))


def test_what_is_transparent_is_white_but_where_the_picture_is_its_own_mask() -> None:
    clear = np.full((64, 64, 4), 100, np.uint8)
    clear[:, :32, 3], clear[:16, :32, 3], clear[:, 32:, 3] = 0, 51, 255
    white = pixels(encoded(clear), (64, 64), on_white=True)
    assert [set(part.flat) for part in (white[16:, :32], white[:16, :32], white[:, 32:])] == [{255}, {224}, {100}]
    for kind, mask, expected in (("image_to_image", "", white), ("inpaint", "m", white), ("inpaint", "up/1.png", clear[..., :3])):
        params = with_picture("a", width=64, height=64, mask=mask).params
        found = _decoded(replace(params, kind=kind), encoded(clear), encoded(clear) if mask else None)
        np.testing.assert_array_equal(found.picture, expected)
    dotted = Image.new("P", (64, 64))
    dotted.putpalette([10, 20, 30])
    buffer = io.BytesIO()
    dotted.save(buffer, "PNG", transparency=0)
    assert (pixels(buffer.getvalue(), (64, 64), on_white=True) == 255).all()


def test_of_a_mask_with_transparency_what_is_transparent_is_drawn() -> None:
    plain = np.zeros((8, 8), np.uint8)
    plain[2:5] = 255
    clear = np.full((8, 8, 4), 255, np.uint8)
    clear[2:5, :, 3] = 0
    np.testing.assert_array_equal(mask_pixels(encoded(plain), (8, 8)), plain)
    np.testing.assert_array_equal(mask_pixels(encoded(clear), (8, 8)), plain)
    opaque = np.dstack([plain, plain, plain, np.full_like(plain, 255)])
    np.testing.assert_array_equal(mask_pixels(encoded(opaque), (8, 8)), plain)


def test_the_thread_draws_from_pictures_beside_text_and_puts_what_is_known_back(checkpoint: Checkpoint, studio: Studio) -> None:
    rng = np.random.default_rng(0)
    picture, mask = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), np.zeros((64, 64), np.uint8)
    mask[8:40, 16:64] = 255
    text = test_drawing.job("text")
    image = test_drawing.job("image", kind="image_to_image", image="k", strength=0.5, num_images=2)
    inpaint = test_drawing.job("inpaint", kind="inpaint", image="k", mask="m", mask_feather=4, guidance=1.0)
    for one, inputs in ((text, None), (image, Inputs(picture, None)), (inpaint, whole(inpaint.params, picture, mask))):
        studio.thread.put(Draw(one, inputs=inputs))
    posterior = encode_picture(checkpoint, picture)
    known = {"text": None, "image": Known(posterior), "inpaint": Known(posterior, latent_mask(mask, (8, 8)), from_noise=True)}
    for one in (text, image, inpaint):
        for drawn in studio.until(Drawn, one, one.params.num_images):
            wanted = generate(checkpoint, one.params, drawn.index, known[one.id])
            if one is inpaint:
                wanted = put_back(wanted, picture, mask, 4)
                np.testing.assert_array_equal(drawn.pixels[48:], picture[48:])
            assert np.abs(drawn.pixels.astype(int) - wanted).max() <= 2


def test_a_mask_that_no_cell_sees_is_told(studio: Studio) -> None:
    one = test_drawing.job("thin", kind="inpaint", image="k", mask="m")
    mask = np.zeros((64, 64), np.uint8)
    mask[3, 3] = 255
    studio.thread.put(Draw(one, inputs=whole(one.params, np.zeros((64, 64, 3), np.uint8), mask)))
    assert [warned.warning.code for warned in studio.until(Warned, one)] == ["mask_empty"]


def test_an_image_job_goes_on_in_another_thread_bit_for_bit(checkpoint: Checkpoint) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    one = test_drawing.job("one", kind="inpaint", image="k", mask="m", sampler="euler_a", steps=40, strength=0.9)
    inputs = whole(one.params, picture, mask)
    first, second = Studio(checkpoint, slots=1), Studio(checkpoint, slots=1)
    first.thread.put(Draw(one, inputs=inputs))
    first.until(Advanced, one)
    first.thread.put(Save(one))
    [exported] = first.until(Exported, one)
    [drawn] = first.until(Drawn, one)
    second.thread.put(Draw(one, exported.images, inputs=inputs))
    [resumed] = second.until(Drawn, one)
    for studio in (first, second):
        studio.thread.stop()
    assert exported.images, "it was under way"
    np.testing.assert_array_equal(resumed.pixels, drawn.pixels)
