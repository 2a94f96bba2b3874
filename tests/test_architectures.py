"""Each architecture as a small random checkpoint: what a worker draws is what diffusers' pipeline draws, alone and in any batch."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from jobs.job import Job
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import describe
from pipelines.denoiser import batch_invariant, place_invariant
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.known import Pixels
from pipelines.loading import Checkpoint, load
from pipelines.params import GenerationParams
from pipelines.text_to_image import TorchStages, generate
from tests import checkpoints
from tests.test_image_kinds import pixels
from workers.drawing import DrawingThread
from workers.messages import Broken, Draw, Drawn, Hold, Inputs

TOLERANCE = 1e-3  # on pixels in [0, 1], float32
SIZE = (40, 56)  # height, width

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {  # the pipeline, and what is asked for
    "sd1": ("StableDiffusionPipeline", {"sampler": "ddim", "steps": 5, "guidance": 4.0}),
    "sd2": ("StableDiffusionPipeline", {"sampler": "ddim", "steps": 5, "guidance": 4.0}),
    "turbo": ("StableDiffusionPipeline", {"sampler": "euler_a", "steps": 3, "guidance": 1.0}),
    "lcm": ("LatentConsistencyModelPipeline", {"sampler": "lcm", "schedule": "lcm", "steps": 4, "guidance": 8.5}),
    "sdxl": ("StableDiffusionXLPipeline", {"sampler": "euler", "steps": 5, "guidance": 5.0}),
    "sdxl-turbo": ("StableDiffusionXLPipeline", {"sampler": "euler_a", "steps": 2, "guidance": 1.0}),
    "sdxl-lcm": ("StableDiffusionXLPipeline", {"sampler": "lcm", "schedule": "lcm", "steps": 4, "guidance": 6.0}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = checkpoints.write(tmp_path_factory.mktemp("models") / name, name)
        return made[name]

    return folder


def opened(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


def asked(name: str, **changes: Any) -> GenerationParams:
    usual = {
        "prompt": "a red apple", "negative_prompt": "a blue car", "model": name, "width": SIZE[1], "height": SIZE[0], "schedule": "auto",
        "seed": 42,
    }  # fmt: skip
    return GenerationParams(**usual | ARCHITECTURES[name][1] | changes)


def reference(folder: Path, params: GenerationParams, kind: str = "", **further: Any) -> np.ndarray:
    """diffusers' picture [H, W, 3] in 0..1, by the pipeline and the scheduler that the checkpoint names."""
    pipe = getattr(diffusers, kind or ARCHITECTURES[folder.name][0]).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    negative = {} if folder.name == "lcm" else {"negative_prompt": params.negative_prompt or None}
    size = {} if kind.endswith("Img2ImgPipeline") else {"height": params.height, "width": params.width}
    return pipe(
        params.prompt, num_inference_steps=params.steps, guidance_scale=params.guidance, output_type="np",
        generator=torch.Generator("cpu").manual_seed(params.seed), **negative, **size, **further,
    ).images[0]  # fmt: skip


class Kept(TorchStages):
    """Keeps the latents that were decoded last."""

    latents: np.ndarray

    def decode(self, latents: Any, *, exact: bool = False) -> Pixels:
        self.latents = latents
        return super().decode(latents, exact=exact)


class Worker:
    """The part of a worker that draws, with calls of so many rows."""

    def __init__(self, checkpoint: Checkpoint, rows: int = 4) -> None:
        self.checkpoint, self._reports = checkpoint, queue.Queue[Any]()
        parts = {"told": checkpoint.told, "controlnets": checkpoint.controlnets}
        denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, **parts)
        self.stages = Kept(checkpoint)
        self._thread = DrawingThread(self._reports.put)
        self._thread.put(Hold(checkpoint.card.id, self.stages, Engine(denoiser, slots=8, rows=rows)))
        self._thread.start()

    def draw(self, *wanted: GenerationParams, inputs: Inputs | None = None, control: Pixels | None = None) -> list[Pixels]:
        """All at once."""
        for i, params in enumerate(wanted):
            shown = control if params.controlnet else None
            self._thread.put(Draw(Job(id=str(i), client="c", params=params, attempt=1), inputs=inputs, control=shown))
        found: dict[str, Pixels] = {}
        while len(found) < len(wanted):
            report = self._reports.get(timeout=60)
            assert not isinstance(report, Broken), report
            if isinstance(report, Drawn):
                found[report.job.id] = report.pixels
        return [found[str(i)] for i in range(len(wanted))]

    def exact(self, params: GenerationParams, inputs: Inputs | None = None, control: Pixels | None = None) -> np.ndarray:
        """One picture in 0..1, not rounded."""
        self.draw(params, inputs=inputs, control=control)
        return pixels(self.checkpoint, self.stages.latents)

    def stop(self) -> None:
        self._thread.stop()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_worker_draws_what_diffusers_draws(folders: Callable[[str], Path], name: str) -> None:
    worker, params = Worker(opened(folders(name))), asked(name)
    for one in (params, asked(name, negative_prompt="", seed=7)):
        wanted = reference(folders(name), one)
        assert np.abs(worker.exact(one) - wanted).max() <= TOLERANCE
        assert wanted.std() > 0.01, "a flat picture would make the comparison empty"
    slow = generate(worker.checkpoint, params)
    assert np.abs(slow.astype(int) - worker.draw(params)[0]).max() <= 1
    worker.stop()


def test_what_a_model_is_told_is_part_of_each_sample(folders: Callable[[str], Path]) -> None:
    """Prompts, sizes, scales and lengths mixed in one batch: every picture is its own, bit for bit."""
    for name in ("sdxl", "sdxl-lcm"):
        own = {} if name == "sdxl" else {"guidance": 2.5}
        wanted = [
            asked(name),
            asked(name, negative_prompt="", seed=1, steps=3),
            asked(name, prompt="two cats", size_conditioning={"original_size": [20, 99], "crop": [3, 11]}, **own),
            asked(name, width=48, height=48, seed=5),
            asked(name, prompt="a (red:1.3) apple, a [car], " * 12, prompt_syntax="a1111"),
        ]
        worker = Worker(opened(folders(name)))
        together = worker.draw(*wanted)
        for params, picture in zip(wanted, together, strict=True):
            np.testing.assert_array_equal(worker.draw(params)[0], picture)
            assert np.abs(generate(worker.checkpoint, params).astype(int) - picture).max() <= 1
        assert not np.array_equal(
            worker.draw(asked(name, **own))[0], worker.draw(asked(name, size_conditioning={"crop": [9, 0]}, **own))[0]
        )
        worker.stop()


def test_sizes_are_told_as_in_diffusers(folders: Callable[[str], Path]) -> None:
    sizes = {"original_size": [20, 99], "crop": [3, 11], "target_size": [64, 32]}
    params, worker = asked("sdxl", size_conditioning=sizes), Worker(opened(folders("sdxl")))
    told = {"original_size": (99, 20), "crops_coords_top_left": (11, 3), "target_size": (32, 64)}
    assert np.abs(worker.exact(params) - reference(folders("sdxl"), params, **told)).max() <= TOLERANCE
    worker.stop()


def test_sdxl_draws_from_a_picture_as_in_diffusers(folders: Callable[[str], Path]) -> None:
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    picture = np.stack([4 * x, 6 * y, 255 * (x > y)], axis=-1).astype(np.uint8)
    params, worker = asked("sdxl", kind="image_to_image", image="k", strength=0.6), Worker(opened(folders("sdxl")))
    wanted = reference(
        folders("sdxl"), params, "StableDiffusionXLImg2ImgPipeline", image=Image.fromarray(picture), strength=0.6,
        original_size=SIZE, target_size=SIZE,
    )  # fmt: skip
    assert np.abs(worker.exact(params, Inputs(picture, None)) - wanted).max() <= TOLERANCE
    worker.stop()


def test_a_mask_on_sdxl_keeps_what_it_covers(folders: Callable[[str], Path]) -> None:
    checkpoint = opened(folders("sdxl"))
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[:, 28:] = 255
    params, worker = asked("sdxl", kind="inpaint", image="k", mask="m", strength=0.8), Worker(checkpoint)
    wanted = reference(
        folders("sdxl"), params, "StableDiffusionXLInpaintPipeline", image=Image.fromarray(picture), mask_image=Image.fromarray(mask),
        strength=0.8, original_size=SIZE, target_size=SIZE,
    )  # fmt: skip
    assert np.abs(worker.exact(params, Inputs(picture, mask)) - wanted).max() <= TOLERANCE
    np.testing.assert_array_equal(worker.draw(params, inputs=Inputs(picture, mask))[0][:, :28], picture[:, :28])
    worker.stop()


def test_the_probe_asks_a_model_that_is_told_more(folders: Callable[[str], Path]) -> None:
    checkpoint = opened(folders("sdxl"))
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, told=checkpoint.told)
    states = TorchStages(checkpoint).encode("").states
    about = checkpoint.latent_shape(64, 64), states, checkpoint.told.width
    assert isinstance(batch_invariant(denoiser, *about), bool)
    assert place_invariant(denoiser, *about, 1), "one row has one place"


def test_a_place_that_changes_a_row_is_found(folders: Callable[[str], Path]) -> None:
    checkpoint = opened(folders("sdxl"))

    class Placed(TorchDenoiser):
        def __call__(self, *told: Any) -> Any:
            out = super().__call__(*told)
            out[1:] += np.float32(1e-6)
            return out

    denoiser = Placed(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, told=checkpoint.told)
    states = TorchStages(checkpoint).encode("").states
    assert not place_invariant(denoiser, checkpoint.latent_shape(64, 64), states, checkpoint.told.width, 2)


def test_where_numbers_lie_in_memory_changes_no_bit(folders: Callable[[str], Path]) -> None:
    checkpoint, rng = opened(folders("lcm")), np.random.default_rng(0)
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, told=checkpoint.told)
    states = np.stack([TorchStages(checkpoint).encode("a red apple").states] * 2)
    x, t, told = (
        rng.standard_normal((2, 4, 16, 16), dtype=np.float32),
        np.array([500, 100], np.float32),
        rng.random((2, 14), dtype=np.float32),
    )

    def at(array: np.ndarray, offset: int) -> np.ndarray:
        memory = np.empty(array.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        moved = memory[start : start + array.nbytes].view(np.float32).reshape(array.shape)
        moved[...] = array
        return moved

    wanted = denoiser(at(x, 0), t, at(states, 0), (), at(told, 0))
    for offset in (4, 8, 56):
        np.testing.assert_array_equal(denoiser(at(x, offset), t, at(states, offset), (), at(told, offset)), wanted)


def test_cards_say_what_the_model_is(folders: Callable[[str], Path]) -> None:
    cards = {name: describe(folders(name)).card for name in ARCHITECTURES}
    assert {n for n, c in cards.items() if c.size_conditioning} == {"sdxl", "sdxl-turbo", "sdxl-lcm"}
    assert {n for n, c in cards.items() if c.distilled_guidance} == {"lcm", "sdxl-lcm"}
    assert {n: (c.defaults.sampler, c.defaults.steps, c.defaults.guidance) for n, c in cards.items() if c.defaults.steps == 4} == {
        "turbo": ("euler_a", 4, 1.0), "sdxl-turbo": ("euler_a", 4, 1.0), "lcm": ("lcm", 4, 8.5), "sdxl-lcm": ("lcm", 4, 8.5),
    }  # fmt: skip
    for card in cards.values():
        assert type(card).from_dict(card.to_dict()) == card


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("model_index.json", {"text_encoder": [None, None]}, "refiner"),
        ("model_index.json", {"requires_aesthetics_score": True, "_class_name": "StableDiffusionXLImg2ImgPipeline"}, "refiner"),
        ("model_index.json", {"_class_name": "StableDiffusionXLControlNetPipeline"}, "StableDiffusionXLControlNetPipeline"),
        ("unet/config.json", {"addition_embed_type": "image"}, "takes image beside the text"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 36}, "refiner"),
        ("unet/config.json", {"projection_class_embeddings_input_dim": 59}, "pooled text of 23"),
        ("unet/config.json", {"addition_time_embed_dim": None}, "cannot run here"),
    ],
)
def test_other_kinds_of_sdxl_are_refused_with_the_reason(
    folders: Callable[[str], Path], tmp_path: Path, file: str, change: dict[str, Any], reason: str
) -> None:
    other = shutil.copytree(folders("sdxl"), tmp_path / "other")
    path = other / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=reason):
        describe(other)
