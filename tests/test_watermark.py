"""The invisible watermark: what it says, what it survives, and that no picture is stored without it."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from redis.asyncio import Redis

from jobs.job import JobStatus
from jobs.job_queue import JobQueue
from service.settings import unknown_names
from tests.picture_samples import as_file, sample_picture
from tests.test_safety import Brightness
from tests.worker_bench import Bench, job
from workers import serving
from workers.marked import PLAINER, ROUGH, UNSEEN, Mark
from workers.messages import Command, Draw, Drawn, Report
from workers.safety import Safety, Unmarked, open_safety
from workers.settings import WorkerSettings
from workers.watermark import LEAST, Watermark
from workers.watermark_text import fits, places_of, text_of

TEXT = "celadon!"
WATERMARK = Watermark()
MARK = Mark(TEXT, WATERMARK)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def read(data: bytes) -> str | None:
    return WATERMARK.read(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@given(st.text(min_size=1, max_size=8).filter(fits))
def test_what_it_says_is_what_was_said(text: str) -> None:
    places = places_of(text)
    assert text_of(places) == text and all(0 <= place < 4096 for place in places)
    assert all(text_of([*places[:i], places[i] ^ 1, *places[i + 1 :]]) is None for i in range(7))


def test_noise_is_hardly_ever_a_text() -> None:
    places = np.random.default_rng(0).integers(0, 4096, (100_000, 7)).tolist()
    assert sum(text_of(seven) is not None for seven in places) <= 1


@pytest.mark.parametrize("text", ["", "celadon!!", "čéłåd", "a\0", "a\n"])
def test_texts_that_do_not_fit(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 to 8 bytes"):
        WATERMARK.mark(NOISE, text, 1.0)
    if text:
        with pytest.raises(ValidationError, match="8 bytes"):
            WorkerSettings(redis_url="redis://localhost:1", data_dir=tmp_path, watermark=text)


@pytest.mark.parametrize("grey", [0, 128, 255])
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 128), (320, 200)])
def test_plain_pictures_carry_it_and_change_little(size: tuple[int, int], grey: int) -> None:
    plain = np.full((size[1], size[0], 3), grey, np.uint8)
    marked = WATERMARK.mark(plain, TEXT, 1.0)
    assert WATERMARK.read(marked) == TEXT and WATERMARK.read(plain) is None
    assert np.abs(marked.astype(int) - plain).max() <= 5 and np.square(marked.astype(float) - plain).mean() <= 1.2


@pytest.mark.parametrize("size", [(128, 128), (192, 128), (256, 256)])
def test_it_survives_what_happens_to_pictures(size: tuple[int, int]) -> None:
    picture = sample_picture(*size)
    marked = Image.fromarray(WATERMARK.mark(picture, TEXT, 1.0))
    assert read(as_file(np.asarray(marked), "JPEG", quality=ROUGH)) == TEXT
    assert read(as_file(np.asarray(marked), "WEBP", quality=92)) == TEXT
    assert WATERMARK.read(np.asarray(marked.crop((11, 5, 11 + size[0] * 3 // 4, 5 + size[1] * 3 // 4)))) == TEXT
    for factor in (0.75, 2):
        resized = marked.resize((round(size[0] * factor), round(size[1] * factor)), Image.Resampling.BICUBIC)
        assert WATERMARK.find(np.asarray(resized)) == [TEXT]
    assert WATERMARK.find(picture) == []


def test_nothing_is_found_in_noise() -> None:
    """Nor would it be without the check: no mean of peaks comes near what a mark must reach."""
    rng = np.random.default_rng(1)
    heights = []
    for _ in range(200):
        peaks = WATERMARK.correlations(rng.integers(0, 256, (128, 128, 3), np.uint8))[1:, ::2, ::2]
        heights.append(peaks.reshape(7, -1).max(1).mean())
    assert max(heights) < LEAST


def test_the_least_strength_that_a_jpeg_survives_is_taken() -> None:
    picture, tried = sample_picture(128, 128), []

    def write(pixels: np.ndarray) -> bytes:
        tried.append(np.abs(pixels.astype(int) - picture).max())
        return as_file(pixels)

    data = MARK.file(picture, write)
    assert read(data) == TEXT and MARK.file(picture, as_file) == data
    assert 0 < len(tried) <= len(UNSEEN) and tried == sorted(tried)
    weaker = [WATERMARK.mark(picture, TEXT, strength) for strength in UNSEEN[: len(tried) - 1]]
    assert all(read(as_file(pixels, "JPEG", quality=ROUGH)) is None for pixels in weaker)


def test_a_rough_file_is_marked_harder_and_one_that_cannot_be_is_none() -> None:
    picture = sample_picture(128, 128)
    rough = MARK.file(picture, lambda pixels: as_file(pixels, "JPEG", quality=40))
    assert read(rough) == TEXT
    tried = []
    with pytest.raises(Unmarked):
        MARK.file(NOISE, lambda pixels: tried.append(0) or as_file(pixels))
    assert len(tried) == len(UNSEEN + PLAINER)


def test_a_picture_that_says_so_already_stays_as_it_is() -> None:
    marked = WATERMARK.mark(sample_picture(256, 256), TEXT, 1.2)
    assert MARK.file(marked, as_file) == as_file(marked)


@pytest.mark.parametrize("strength", [0.6, 1.2, 2.4])
@pytest.mark.parametrize("size", [64, 128, 320])
def test_a_picture_of_another_service_says_both_and_no_harder_mark_is_taken(size: int, strength: float) -> None:
    tried: list[float] = []
    picture = WATERMARK.mark(sample_picture(size, size), "other", strength)

    def write(pixels: np.ndarray) -> bytes:
        tried.append(np.abs(pixels.astype(float) - picture).max())
        return as_file(pixels)

    data = MARK.file(picture, write)
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    found = WATERMARK.texts(pixels)
    assert WATERMARK.says(pixels, TEXT) and not WATERMARK.says(pixels, "else") and len(tried) <= len(UNSEEN) + (size == 64)
    assert set(found) == {TEXT, "other"} or (size == 64 and set(found) <= {TEXT, "other"})  # the least picture may not hold both
    assert all(WATERMARK.says(pixels, text) for text in found)


def test_the_mark_of_a_picture_that_was_cropped_before_is_no_obstacle() -> None:
    cropped = WATERMARK.mark(sample_picture(256, 256), "other", 1.2)[11:203, 37:229]
    pixels = np.asarray(Image.open(io.BytesIO(MARK.file(cropped, as_file))))
    assert sorted(WATERMARK.texts(pixels)) == [TEXT, "other"]


def test_of_one_mark_one_text_is_read() -> None:
    """Places beside the highest ones are no second text, whatever they are put together to."""
    for seed in range(60):
        assert WATERMARK.texts(WATERMARK.mark(sample_picture(128, 128, seed), TEXT, 0.6 + seed / 30)) == [TEXT]


def drawing(pictures: dict[str, list[np.ndarray]]) -> object:
    def react(command: Command) -> list[Report]:
        drawn = pictures[command.job.id] if isinstance(command, Draw) else []
        return [Drawn(command.job, index, pixels, 0.1) for index, pixels in enumerate(drawn)]

    return react


async def test_a_picture_that_cannot_be_marked_fails_its_job_alone_and_is_stored_nowhere(redis: Redis, tmp_path: Path) -> None:
    jobs, fine = JobQueue(redis), sample_picture(128, 128)
    pictures = {"noise": [fine, NOISE], "fine": [fine, sample_picture(128, 128, seed=3)], "bright": [np.full_like(fine, 240)]}
    for name, images in pictures.items():
        await jobs.submit(job(name, params=replace(job(name).params, num_images=len(images))))
    safety = Safety(Brightness(None, 0.9), MARK)
    bench = Bench(jobs, redis, tmp_path, drawing(pictures), safety=safety)  # type: ignore[arg-type]
    ended = {name: await bench.ended(name) for name in pictures}
    await bench.settled()
    await bench.stop()
    codes = {name: done.error.code for name, done in ended.items() if done.error}
    assert codes == {"noise": "watermark_failed", "bright": "picture_withheld"}
    assert ended["fine"].status is JobStatus.SUCCEEDED and not ended["noise"].error.retryable  # type: ignore[union-attr]
    stored = {path.relative_to(tmp_path).as_posix(): read(path.read_bytes()) for path in tmp_path.rglob("*.png")}
    assert stored == {image.key: TEXT for image in ended["fine"].images} and len(stored) == 2


def test_the_worker_is_told_of_it_and_the_gateway_knows_the_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_safety("", 0.8, "") == Safety() and open_safety("", 0.8, "mine").mark.text == "mine"  # type: ignore[union-attr]
    assert unknown_names({"CELADON_WATERMARK": "mine"}) == []
    settings = WorkerSettings(redis_url="redis://localhost:1", data_dir=tmp_path, checker=str(tmp_path / "none"), watermark="mine")
    assert asyncio.run(serving.run(settings, asyncio.Event())) == serving.REFUSED
    assert capsys.readouterr().err.startswith("CELADON_CHECKER")


def test_a_worker_without_torch_can_mark() -> None:
    loaded = "import sys, workers.marked; print(sorted({'torch', 'openvino', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=55).stdout.strip() == "[]"
