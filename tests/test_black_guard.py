"""Pictures that are black all over: decoded once more in float32, and told as what they are; on both backends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from redis.asyncio import Redis

from jobs.job import JobWarning
from jobs.job_queue import JobQueue
from pipelines.checkpoint_folder import describe
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.loading import load
from pipelines.openvino_model import Compiler, OpenVinoDenoiser, OpenVinoStages
from pipelines.planning import Seen, Stages, decoded
from pipelines.text_to_image import TorchStages
from tests import test_drawing
from tests.worker_bench import PIXELS, Bench, job
from training.toy import write_toy
from workers.beside import TOLD
from workers.messages import Command, Draw, Drawn, Report, Warned

Model = tuple[Stages, Any]
BACKENDS = ["torch", "openvino"]
LATENTS = np.random.default_rng(0).standard_normal((4, 8, 8), dtype=np.float32)


def darkened(output: torch.Tensor | np.ndarray) -> Any:
    return output * 0 - 2  # finite, and below all that can be seen


class Dark:
    """A decoder in half precision that gives nothing but black."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def infer(self, inputs: Any) -> Any:
        return {0: darkened(self._inner.infer(inputs)[0])}


def opened(backend: str, folder: Path, *, dark: str) -> Model:
    """`dark`: in which precisions the VAE's pictures are black, "half" or "both"."""
    checkpoint = load(write_toy(folder / "toy"), device=torch.device("cpu"), dtype=torch.float32)
    if dark == "both":
        with torch.no_grad():
            checkpoint.vae.decoder.conv_out.bias.fill_(-100.0)
        checkpoint.vae.save_pretrained(folder / "toy" / "vae")
    if backend == "torch":
        checkpoint.vae.half()
        if dark == "half":
            decoder = checkpoint.vae.decoder
            decoder.register_forward_hook(lambda _, __, output: darkened(output) if output.dtype == torch.float16 else output)
        return TorchStages(checkpoint), TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    said = describe(folder / "toy")
    compiler = Compiler(said, None, threads=1)
    stages = OpenVinoStages(said, compiler, "bfloat16")
    if dark == "half":
        stages._decoder = Dark(stages._decoder)  # type: ignore[assignment]
    return stages, OpenVinoDenoiser(compiler.forms("float32"), said.configs["unet"], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_that_is_black_in_half_precision_alone_is_decoded_again_and_told(backend: str, tmp_path: Path) -> None:
    model = opened(backend, tmp_path, dark="half")
    assert not model[0].decode(LATENTS).any()
    found, seen = decoded(model[0], LATENTS)
    np.testing.assert_array_equal(found, model[0].decode(LATENTS, exact=True))
    assert seen is Seen.BLACKENED and len(np.unique(found)) > 10
    begun, seen = decoded(model[0], LATENTS, model[0].begin(LATENTS))
    np.testing.assert_array_equal(begun, found)
    assert seen is Seen.BLACKENED
    pixels, told = test_drawing.drawn_alone(*model)
    assert told == ["vae_black"] and pixels.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_picture_that_is_black_in_float32_too_is_delivered_and_told(backend: str, tmp_path: Path) -> None:
    pixels, told = test_drawing.drawn_alone(*opened(backend, tmp_path, dark="both"))
    assert told == ["picture_black"] and pixels.shape == (64, 64, 3) and not pixels.any()


def test_a_picture_with_one_light_is_decoded_once() -> None:
    """The usual way asks for nothing more."""
    light = np.zeros((8, 8, 3), np.uint8)
    light[3, 4, 2] = 1

    class Once:
        def decode(self, latents: np.ndarray, *, exact: bool = False) -> np.ndarray:
            assert not exact, "a picture with a light in it is no black one"
            return light

    found, seen = decoded(Once(), LATENTS)  # type: ignore[arg-type]
    assert found is light and seen is Seen.FINE and TOLD[seen] is None


async def test_several_pictures_of_a_job_are_told_of_once(redis: Redis, tmp_path: Path) -> None:
    black, overflow = TOLD[Seen.BLACK], TOLD[Seen.OVERFLOWED]
    assert isinstance(black, JobWarning) and isinstance(overflow, JobWarning)

    def react(command: Command) -> list[Report]:
        if not isinstance(command, Draw):
            return []
        warned = [Warned(command.job, warning) for warning in (black, overflow, black)]
        return [*warned, *(Drawn(command.job, index, PIXELS, 0.1) for index in range(3))]

    jobs = JobQueue(redis)
    await jobs.submit(job("three", params=replace(job("three").params, num_images=3)))
    bench = Bench(jobs, redis, tmp_path, react)
    ended = await bench.ended("three")
    await bench.stop()
    assert ended.warnings == (black, overflow)
