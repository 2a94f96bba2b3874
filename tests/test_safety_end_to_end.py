"""Checker and watermark in the real service: what is withheld, not judged, or marked by somebody else, and what its neighbours get."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from redis.asyncio import Redis
from structlog.testing import capture_logs

from jobs.job import JobStatus
from jobs.job_queue import JobQueue
from tests.fleet import Fleet, shared
from tests.onnx_files import reds
from tests.picture_samples import as_url, sample_picture
from tests.worker_bench import PIXELS, Bench, job
from training.toy import write_toy
from workers.messages import Command, Draw, Drawn, Report
from workers.safety import Checker, CheckerUnfit, Safety, Unjudged, Withheld, open_checker
from workers.watermark import Watermark

pytestmark = pytest.mark.timeout(300)  # whole processes start here, on whatever machine this is

TEXT = "acme"
WATERMARK = Watermark()
SECRET = "zanzibar"  # of prompts: must not be in the log
MASK = np.zeros((128, 128), np.uint8)
MASK[56:72, 56:72] = 255
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 200, 0)}
GREENISH = sample_picture(128, 128) // 4 + np.array([0, 90, 0], np.uint8)


def plain(colour: str) -> np.ndarray:
    return np.full((128, 128, 3), COLOURS[colour], np.uint8)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "reds.onnx").write_bytes(reds())
    with shared(folder, write_toy(folder / "toy"), CELADON_CHECKER=str(folder / "reds.onnx"), CELADON_WATERMARK=TEXT) as fleet:
        yield fleet


def around(picture: np.ndarray, **changes: Any) -> dict[str, Any]:
    """A little of it is drawn anew."""
    return {"prompt": f"a red apple, {SECRET}", "image": as_url(picture), "mask": as_url(MASK), "mask_feather": 0} | changes


def pixels(service: Fleet, done: dict[str, Any]) -> np.ndarray:
    assert done["status"] == "succeeded", done
    return np.asarray(Image.open(io.BytesIO(service.picture(done))))


def test_what_is_withheld_or_not_judged_fails_alone_and_the_log_tells_nothing_of_it(service: Fleet) -> None:
    jobs = {colour: service.submit(**around(plain(colour))) for colour in COLOURS}
    done = {colour: service.finished(job["id"]) for colour, job in jobs.items()}
    codes = {colour: (end["error"] or {}).get("code") for colour, end in done.items()}
    assert codes == {"red": "picture_withheld", "blue": "checker_failed", "green": None}
    assert WATERMARK.read(pixels(service, done["green"])) == TEXT
    assert not any(done[colour]["images"] for colour in ("red", "blue"))
    names = [path.as_posix() for path in service.folder.rglob("*.png")]
    assert [colour for colour, job in jobs.items() if any(job["id"] in name for name in names)] == ["green"]
    log = (service.folder / "log").read_text()
    told = {event: [line for line in log.splitlines() if f"event='{event}'" in line] for event in ("withheld", "unjudged")}
    assert [len(lines) for lines in told.values()] == [1, 1] and SECRET not in log
    for lines in told.values():
        assert {word.partition("=")[0] for word in lines[0].split()} == {"timestamp", "level", "event", "job", "request_id"}, lines


@pytest.mark.parametrize("strength", [0.6, 1.2, 2.4])
def test_a_picture_that_another_service_marked_is_drawn_upon_and_says_both(service: Fleet, strength: float) -> None:
    theirs = WATERMARK.mark(GREENISH, "other", strength)
    found = pixels(service, service.finished(service.submit(**around(theirs))["id"]))
    assert set(WATERMARK.texts(found)) == {TEXT, "other"}
    rest = MASK == 0
    assert np.square(found[rest].astype(float) - theirs[rest]).mean() < 6.6  # a PSNR of 40 dB: no harder mark than usual
    body = {"prompt": "a red apple", "image": as_url(theirs), "strength": 0.3}
    assert WATERMARK.says(pixels(service, service.finished(service.submit(**body)["id"])), TEXT)


def test_around_a_mask_a_picture_that_has_our_mark_is_not_marked_again(service: Fleet) -> None:
    ours = WATERMARK.mark(GREENISH, TEXT, 1.2)
    found = pixels(service, service.finished(service.submit(**around(ours))["id"]))
    assert WATERMARK.texts(found) == [TEXT]
    np.testing.assert_array_equal(found[MASK == 0], ours[MASK == 0])
    assert (found != ours).any()


def test_a_network_with_other_answers_is_no_checker(tmp_path: Path) -> None:
    for name, wrong in {"side": {"side": 200}, "one": {"scores": 1}, "three": {"scores": 3}, "no numbers": {"bias": -1.0}}.items():
        (tmp_path / f"{name}.onnx").write_bytes(reds(**wrong))
        with pytest.raises(CheckerUnfit, match="two scores"):
            open_checker(tmp_path / f"{name}.onnx", 0.8)


def test_what_was_not_judged_does_not_pass(tmp_path: Path) -> None:
    (tmp_path / "reds.onnx").write_bytes(reds())
    safety = Safety(open_checker(tmp_path / "reds.onnx", 0.8))
    safety.check(plain("green"))
    for colour, end in (("red", Withheld), ("blue", Unjudged)):
        with pytest.raises(end):
            safety.check(plain(colour))


class Stumbling(Checker):
    def score(self, pixels: np.ndarray) -> float:
        if pixels.any():
            raise RuntimeError(SECRET)
        return 0.0


async def test_a_checker_that_fails_at_one_picture_fails_its_job_alone(redis: Redis, tmp_path: Path) -> None:
    jobs = JobQueue(redis)

    def react(command: Command) -> list[Report]:
        light = np.full_like(PIXELS, 9)
        return [Drawn(command.job, 0, light if command.job.id == "light" else PIXELS, 0.1)] if isinstance(command, Draw) else []

    for name in ("light", "dark"):
        await jobs.submit(job(name))
    with capture_logs() as logs:
        bench = Bench(jobs, redis, tmp_path, react, safety=Safety(Stumbling(None, 0.8)))
        failed, fine = await bench.ended("light"), await bench.ended("dark")
        await bench.settled()
        await bench.stop()
    assert failed.error is not None and failed.error.code == "checker_failed" and fine.status is JobStatus.SUCCEEDED
    assert [path.parent.name for path in tmp_path.rglob("*.png")] == ["dark"]
    [told] = [entry for entry in logs if entry["event"] == "unjudged"]
    assert told["job"] == "light" and told["error"].startswith("RuntimeError at test_safety_end_to_end.py") and SECRET not in str(logs)
