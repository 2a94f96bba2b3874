"""What small GPUs need, as far as a CPU can show it: modules that take turns, and a VAE that works in tiles as diffusers' does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from pipelines.checkpoint_folder import describe
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.loading import Checkpoint, load_described
from pipelines.text_to_image import TorchStages, decode, denoise, encode_picture, generate
from tests import checkpoints
from tests.picture_samples import sample_picture
from tests.test_architectures import asked
from workers.model import ModelRefused, open_backend
from workers.model_torch import LITTLE_MEMORY, tiled
from workers.settings import WorkerSettings

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return checkpoints.write(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Which module went where, as (its class, device)."""
    seen: list[tuple[str, str]] = []
    plain = torch.nn.Module.to

    def to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], str | torch.device):
            seen.append((type(module).__name__, str(args[0])))
        return plain(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "to", to)
    return seen


def test_modules_that_take_turns_draw_the_same_picture(folder: Path, moves: list[tuple[str, str]]) -> None:
    """The device is a CPU here, which shows the order of the turns and that nothing else changes; not that memory is spared."""
    said = describe(folder)
    plain, turning = load_described(said, **CPU), load_described(said, **CPU, offload=True)
    params = asked(folder.name, cache_interval=2)
    assert np.array_equal(denoise(turning, params), denoise(plain, params)) and np.array_equal(
        generate(turning, params), generate(plain, params)
    )
    picture = sample_picture(56, 40)
    assert np.array_equal(encode_picture(turning, picture).mean, encode_picture(plain, picture).mean)
    moves.clear()
    stages = TorchStages(turning)
    context = stages.encode("a red apple").states
    text = list(moves)
    assert [name for name, where in text[:2]] == ["AutoencoderKL", "CLIPTextModel"], "the VAE was there"
    x, told = np.zeros((1, 4, 10, 14), np.float32), np.zeros((1, turning.told.width), np.float32)
    denoiser = TorchDenoiser(turning.unet, **CPU, told=turning.told)
    for _ in range(2):
        denoiser(x, np.ones(1, np.float32), context[None], (), told)
    last = text[-1][0]
    assert moves[len(text) :] == [(last, "cpu"), ("UNet2DConditionModel", "cpu")], "once, and it stays"
    decode(turning, x[0])
    assert moves[-2:] == [("UNet2DConditionModel", "cpu"), ("AutoencoderKL", "cpu")]


def in_tiles(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.vae.enable_tiling()
    return checkpoint


def test_tiles_are_those_of_diffusers(folder: Path) -> None:
    """The VAE was made for 64 pixels a side; 160 x 96 are several tiles."""
    said = describe(folder)
    plain, tiles = load_described(said, **CPU), in_tiles(load_described(said, **CPU))
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.vae.enable_tiling()
    latents, picture = np.random.default_rng(0).standard_normal((4, 24, 40), dtype=np.float32), sample_picture(160, 96)
    with torch.inference_mode():
        wanted = pipe.vae.decode(torch.from_numpy(latents)[None] / pipe.vae.config.scaling_factor)[0]
        [wanted] = pipe.image_processor.postprocess(wanted, output_type="np")
        pixels = pipe.image_processor.preprocess(picture[None] / np.float32(255))
        mean = pipe.vae.encode(pixels).latent_dist.mean[0].numpy() * pipe.vae.config.scaling_factor
    found = decode(tiles, latents)
    assert np.abs(found / 255 - wanted).max() <= 0.51 / 255 + 1e-5
    assert np.abs(encode_picture(tiles, picture).mean - mean).max() < 1e-4
    assert (found != decode(plain, latents)).any(), "else nothing would be in tiles"
    small = latents[:, :16, :16]
    assert np.array_equal(decode(tiles, small), decode(plain, small)), "what fits into one tile is what it was"


def test_where_tiles_are_taken() -> None:
    assert [tiled("auto", memory) for memory in (None, LITTLE_MEMORY - 1, LITTLE_MEMORY)] == [False, True, False]
    assert tiled("always", None) and not tiled("never", LITTLE_MEMORY - 1)


@pytest.mark.parametrize(("said", "why"), [
    ({"backend": "torch", "offload": "model", "loras": "."}, "CELADON_LORAS"),
    ({"backend": "openvino", "offload": "model"}, "CELADON_OFFLOAD"),
    ({"backend": "openvino", "vae_tiling": "always"}, "CELADON_VAE_TILING"),
])  # fmt: skip
def test_what_does_not_go_together_stops_the_start(folder: Path, said: dict[str, Any], why: str) -> None:
    with pytest.raises(ModelRefused, match=why):
        open_backend(WorkerSettings(redis_url="redis://localhost", model=str(folder), device="cpu", **said))


def test_a_worker_takes_its_settings(folder: Path) -> None:
    settings = WorkerSettings(
        redis_url="redis://localhost", model=str(folder), device="cpu", backend="torch", offload="model", vae_tiling="always"
    )
    stages: Any = open_backend(settings).stages
    assert stages._checkpoint.vae.use_tiling and hasattr(stages._checkpoint.unet, "_hf_hook")
