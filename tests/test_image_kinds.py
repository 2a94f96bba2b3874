"""Pictures in: engine = slow loop = diffusers' image-to-image and inpainting pipelines, mixed with text-to-image, resumed anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.known import Known
from pipelines.loading import Checkpoint, load
from pipelines.masks import latent_mask, put_back
from pipelines.params import GenerationParams
from pipelines.text_to_image import decode, denoise, encode_picture, generate
from tests.test_pipeline import latents_of, new_engine, request, sample_of
from training.toy import write_toy
from workers.settings import DEFAULT_MODEL

TOLERANCE = 1e-3  # on pixels in [0, 1], float32
SIZE = (64, 96)  # height, width

REFERENCES: dict[str, Any] = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "euler": EulerDiscreteScheduler.from_config,
    "euler_a": EulerAncestralDiscreteScheduler.from_config,
    "heun": HeunDiscreteScheduler.from_config,
    "dpm2": KDPM2DiscreteScheduler.from_config,
    "dpmpp_2m": DPMSolverMultistepScheduler.from_config,
    "unipc": UniPCMultistepScheduler.from_config,
}  # LMS and PNDM of diffusers take coefficients of a history that a part of the steps does not have


@pytest.fixture(scope="module", params=["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.set_num_threads(1)
    yield write_toy(tmp_path_factory.mktemp("toy") / request.param, prediction=request.param, seed=3)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(folder, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth, with an edge."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return np.stack([2 * x, 3 * y, 255 * (x > y)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[13:50, 21:77] = 255
    return mask


def asked(checkpoint: Checkpoint, **changes: Any) -> GenerationParams:
    plain = {"guidance_options": {"rescale": 0.0}}  # these pipelines of diffusers have no such thing
    return request(checkpoint, **{"height": SIZE[0], "width": SIZE[1], "kind": "image_to_image", "image": "k"} | plain | changes)


def known_of(checkpoint: Checkpoint, params: GenerationParams, picture: np.ndarray, mask: np.ndarray | None) -> Known:
    cells = checkpoint.latent_shape(params.width, params.height)[1:]
    posterior = encode_picture(checkpoint, picture)
    if mask is None:
        return Known(posterior)
    return Known(posterior, latent_mask(mask, cells), from_noise=params.kept[0] == 0)


@pytest.fixture
def comparable(folder: Path, request: pytest.FixtureRequest) -> None:
    """Not every answer of diffusers is one."""
    sampler, strength = (request.node.callspec.params[name] for name in ("sampler", "strength"))
    if folder.name == "v_prediction" and sampler in ("heun", "dpm2") and strength == 1.0:
        pytest.skip("at zero terminal SNR diffusers divides infinity by infinity")


def reference(kind: Any, folder: Path, params: GenerationParams, **inputs: Any) -> np.ndarray:
    """diffusers' picture [H, W, 3] in 0..1."""
    pipe = kind.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = REFERENCES[params.sampler](pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        params.prompt,
        negative_prompt=params.negative_prompt,
        num_inference_steps=params.steps,
        guidance_scale=params.guidance,
        strength=params.strength,
        generator=torch.Generator("cpu").manual_seed(params.seed),
        output_type="np",
        **inputs,
    ).images[0]


def pixels(checkpoint: Checkpoint, latents: np.ndarray) -> np.ndarray:
    """Not rounded: what rounding hides is compared too."""
    with torch.inference_mode():
        image = checkpoint.vae.decode(torch.from_numpy(latents)[None] / checkpoint.vae.config.scaling_factor).sample[0]
    return (image / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # diffusers' KDPM2
@pytest.mark.usefixtures("comparable")
@pytest.mark.parametrize("strength", [0.35, 1.0])
@pytest.mark.parametrize("sampler", REFERENCES)
def test_image_to_image_is_diffusers(checkpoint: Checkpoint, folder: Path, picture: np.ndarray, sampler: str, strength: float) -> None:
    params = asked(checkpoint, sampler=sampler, strength=strength, steps=9)
    wanted = reference(StableDiffusionImg2ImgPipeline, folder, params, image=Image.fromarray(picture))
    drawn = pixels(checkpoint, denoise(checkpoint, params, 0, known_of(checkpoint, params, picture, None)))
    assert np.abs(drawn - wanted).max() <= TOLERANCE


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.usefixtures("comparable")
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("sampler", [s for s in REFERENCES if s != "dpm2"])  # diffusers' KDPM2 puts the known part at a wrong level
def test_inpainting_is_diffusers(
    checkpoint: Checkpoint, folder: Path, picture: np.ndarray, mask: np.ndarray, sampler: str, strength: float
) -> None:
    params = asked(checkpoint, kind="inpaint", sampler=sampler, strength=strength, steps=8)
    wanted = reference(
        StableDiffusionInpaintPipeline, folder, params,
        image=Image.fromarray(picture), mask_image=Image.fromarray(mask), height=SIZE[0], width=SIZE[1],
    )  # fmt: skip
    drawn = pixels(checkpoint, denoise(checkpoint, params, 0, known_of(checkpoint, params, picture, mask)))
    assert np.abs(drawn - wanted).max() <= TOLERANCE


@pytest.fixture(scope="module")
def shipped() -> Checkpoint:
    return load(DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(("kind", "sampler", "strength"), [
    ("image_to_image", "unipc", 0.6), ("image_to_image", "euler_a", 0.8), ("inpaint", "ddim", 1.0), ("inpaint", "dpmpp_2m", 0.7),
])  # fmt: skip
def test_the_shipped_model_is_diffusers_too(
    shipped: Checkpoint, picture: np.ndarray, mask: np.ndarray, kind: Any, sampler: str, strength: float
) -> None:
    masked = mask if kind == "inpaint" else None
    params = asked(shipped, kind=kind, sampler=sampler, strength=strength, steps=6, guidance=3.0)
    inputs: dict[str, Any] = {"image": Image.fromarray(picture)}
    if masked is not None:
        inputs |= {"mask_image": Image.fromarray(mask), "height": SIZE[0], "width": SIZE[1]}
    pipeline = StableDiffusionImg2ImgPipeline if masked is None else StableDiffusionInpaintPipeline
    wanted = reference(pipeline, Path(DEFAULT_MODEL), params, **inputs)
    drawn = pixels(shipped, denoise(shipped, params, 0, known_of(shipped, params, picture, masked)))
    assert np.abs(drawn - wanted).max() <= TOLERANCE


def samples(checkpoint: Checkpoint, picture: np.ndarray, mask: np.ndarray) -> dict[str, tuple[GenerationParams, Known | None]]:
    """All kinds, several samplers and lengths, one latent shape."""
    asked_for = {
        "text": asked(checkpoint, kind="text_to_image", sampler="dpmpp_2m", image=""),
        "image": asked(checkpoint, sampler="unipc", strength=0.6, steps=7, seed=1),
        "start": asked(checkpoint, sampler="euler_a", start=0.4, steps=6, seed=2, guidance=1.0),
        "inpaint": asked(checkpoint, kind="inpaint", sampler="heun", seed=3),
        "part": asked(checkpoint, kind="inpaint", sampler="dpmpp_2m_sde", strength=0.7, steps=8, seed=4),
    }
    masks = {"inpaint": mask, "part": np.ascontiguousarray(mask[::-1, ::-1])}
    return {
        name: (params, known_of(checkpoint, params, picture, masks.get(name)) if params.image else None)
        for name, params in asked_for.items()
    }


def as_sample(checkpoint: Checkpoint, name: str, params: GenerationParams, known: Known | None) -> Sample:
    plain = sample_of(checkpoint, params, name)
    taken = ("id", "table", "shape", "seed", "cond", "uncond", "guidance")
    return Sample(**{field: getattr(plain, field) for field in taken}, guidance_options=params.guidance_options, known=known)


def alone(checkpoint: Checkpoint, sample: Sample) -> np.ndarray:
    engine = new_engine(checkpoint, rows=4)
    engine.add(sample)
    return latents_of(engine)[sample.id]


def test_all_kinds_in_one_batch_equal_their_solo_runs_and_the_slow_loop(
    checkpoint: Checkpoint, picture: np.ndarray, mask: np.ndarray
) -> None:
    mixed = samples(checkpoint, picture, mask)
    engine = new_engine(checkpoint, rows=4)
    for name, (params, known) in mixed.items():
        engine.add(as_sample(checkpoint, name, params, known))
    together = latents_of(engine)
    for name, (params, known) in mixed.items():
        np.testing.assert_array_equal(together[name], alone(checkpoint, as_sample(checkpoint, name, params, known)))
        slow = generate(checkpoint, params, 0, known)
        assert np.abs(decode(checkpoint, together[name]).astype(int) - slow).max() <= 1


@pytest.mark.parametrize("name", ["image", "start", "inpaint", "part"])
def test_an_image_with_a_picture_goes_on_from_every_row_bit_for_bit(
    checkpoint: Checkpoint, picture: np.ndarray, mask: np.ndarray, name: str
) -> None:
    params, known = samples(checkpoint, picture, mask)[name]
    sample = as_sample(checkpoint, name, params, known)
    engine = new_engine(checkpoint, rows=4)
    engine.add(sample)
    for _ in range(len(sample.table) - 1):
        engine.step(0.0)
        saved = engine.export(name)
        assert saved is not None
        engine = new_engine(checkpoint, rows=4)
        engine.add(sample, saved)
    [finished] = [event for event in engine.step(0.0) if isinstance(event, Finished)]
    np.testing.assert_array_equal(finished.latents, alone(checkpoint, sample))


def test_images_of_one_job_draw_their_own_latents_of_the_picture(checkpoint: Checkpoint, picture: np.ndarray) -> None:
    params = asked(checkpoint, strength=0.2, steps=5)
    known = known_of(checkpoint, params, picture, None)
    one, two = (denoise(checkpoint, params, index, known) for index in (0, 1))
    assert not np.array_equal(one, two)


def test_what_is_outside_of_the_mask_stays_to_the_bit(picture: np.ndarray, mask: np.ndarray) -> None:
    drawn = np.full_like(picture, 77)
    for feather in (0, 5):
        whole = put_back(drawn, picture, mask, feather)
        inside, outside = np.zeros(SIZE, bool), np.ones(SIZE, bool)
        inside[13 + feather : 50 - feather, 21 + feather : 77 - feather] = True
        outside[13 - feather : 50 + feather, 21 - feather : 77 + feather] = False
        np.testing.assert_array_equal(whole[inside], drawn[inside])
        np.testing.assert_array_equal(whole[outside], picture[outside])
        between = whole[30, 21 - feather : 21 + feather].astype(int) - picture[30, 21 - feather : 21 + feather]
        assert len(between) == 2 * feather
    edge = put_back(np.full_like(picture, 255), np.zeros_like(picture), mask, 5)[30, 15:28, 0].astype(int)
    assert (np.diff(edge) >= 0).all() and edge[0] == 0 and edge[-1] == 255 and len(set(edge.tolist())) > 8


def test_a_cell_of_the_latent_mask_takes_its_first_pixel() -> None:
    mask = np.random.default_rng(0).integers(0, 256, (48, 32)).astype(np.uint8)
    wanted = torch.nn.functional.interpolate((torch.from_numpy(mask)[None, None] >= 128).float(), size=(6, 4))[0].numpy()
    np.testing.assert_array_equal(latent_mask(mask, (6, 4)), wanted)
