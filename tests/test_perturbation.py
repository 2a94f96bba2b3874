"""PAG and SEG: disturbed rows against diffusers' own, undisturbed rows bit for bit, whole pictures against its PAG pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPAGPipeline
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0

from pipelines.denoiser_torch import TorchDenoiser
from pipelines.engine.engine import Engine
from pipelines.guidance_plan import plan
from pipelines.loading import Checkpoint, load
from pipelines.perturbation import disturbed, self_attentions
from pipelines.text_to_image import denoise
from tests.fakes import RowwiseDenoiser
from tests.test_engine import run, sample
from tests.test_pipeline import latents_of, new_engine, request, sample_of
from training.toy import write_toy

GUIDED: list[tuple[str, float, dict[str, Any]]] = [
    ("ddim", 4.0, {"pag_scale": 3.0}),
    ("euler", 1.0, {"pag_scale": 2.0, "start": 0.2, "end": 0.9}),
    ("heun", 5.0, {"seg_scale": 3.0, "rescale": 0.5}),
    ("dpmpp_2m", 3.0, {"variant": "apg", "momentum": -0.5, "seg_scale": 2.0, "end": 0.6}),
    ("euler_a", 6.0, {"variant": "tcfg", "pag_scale": 1.0, "curve": "linear"}),
    ("unipc", 4.0, {}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return Path(write_toy(tmp_path_factory.mktemp("toy") / "epsilon", prediction="epsilon", seed=3))


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    loaded = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():  # random weights attend almost evenly: sharpen them, or a disturbed row would hardly differ
        for layer in self_attentions(loaded.unet):
            layer.to_q.weight *= 8
    return loaded


def rows(checkpoint: Checkpoint, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((count, *checkpoint.latent_shape(64, 64)), dtype=np.float32)
    context = rng.standard_normal((count, 77, checkpoint.unet.config.cross_attention_dim), dtype=np.float32)
    return x, np.linspace(900, 100, count, dtype=np.float32), context


def sample_with(checkpoint: Checkpoint, index: int) -> Any:
    sampler, guidance, options = GUIDED[index]
    params = request(checkpoint, sampler=sampler, guidance=guidance, guidance_options=options, seed=index)
    return params, replace(sample_of(checkpoint, params, str(index)), guidance_options=options)


def test_marked_rows_are_those_of_diffusers_and_the_others_do_not_notice(checkpoint: Checkpoint) -> None:
    x, t, context = rows(checkpoint, 4)
    denoiser = TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)
    plain = denoiser(x, t, context)
    mixed = denoiser(x, t, context, ["", "pag", "seg", ""])
    np.testing.assert_array_equal(mixed[[0, 3]], plain[[0, 3]])
    np.testing.assert_array_equal(denoiser(x, t, context), plain)  # nothing is left behind
    layers = self_attentions(checkpoint.unet)
    kept = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = PAGIdentitySelfAttnProcessor2_0()  # its second half is disturbed
    pag = denoiser(x[[1, 1]], t[[1, 1]], context[[1, 1]])[1]
    for layer, processor in zip(layers, kept, strict=True):
        layer.processor = processor
    hooks = [layer.to_q.register_forward_hook(lambda _, __, q: q.mean(1, keepdim=True).expand_as(q)) for layer in layers]
    seg = denoiser(x[2:3], t[2:3], context[2:3])[0]
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(mixed[1], pag, rtol=0, atol=1e-5 * abs(pag).max())
    np.testing.assert_allclose(mixed[2], seg, rtol=0, atol=1e-5 * abs(seg).max())
    for i in (1, 2):
        assert abs(mixed[i] - plain[i]).max() > 1e-3 * abs(plain[i]).max()


def test_an_error_within_leaves_the_layers_as_they_were(checkpoint: Checkpoint) -> None:
    before = [layer.processor for layer in self_attentions(checkpoint.unet)]
    assert before
    with pytest.raises(RuntimeError), disturbed(checkpoint.unet, ["pag"]):
        raise RuntimeError
    assert [layer.processor for layer in self_attentions(checkpoint.unet)] == before


def test_disturbed_and_undisturbed_samples_in_one_batch_equal_their_solo_runs(checkpoint: Checkpoint) -> None:
    crowd = new_engine(checkpoint, rows=4)
    for index in range(len(GUIDED)):
        crowd.add(sample_with(checkpoint, index)[1])
    together = latents_of(crowd)
    for index in range(len(GUIDED)):
        alone = new_engine(checkpoint, rows=4)
        alone.add(sample_with(checkpoint, index)[1])
        np.testing.assert_array_equal(together[str(index)], latents_of(alone)[str(index)])


@pytest.mark.parametrize("index", range(len(GUIDED)))
def test_the_slow_loop_draws_what_the_engine_draws(checkpoint: Checkpoint, index: int) -> None:
    params, one = sample_with(checkpoint, index)
    engine = new_engine(checkpoint)
    engine.add(one)
    slow = denoise(checkpoint, params)
    # Most agree to 1e-6 of the largest; Euler without guidance makes a thousandfold of what float32 rounds on these weights.
    np.testing.assert_allclose(latents_of(engine)[str(index)], slow, rtol=0, atol=2e-3 * abs(slow).max())


@pytest.mark.parametrize(("guidance", "rescale"), [(4.0, 0.4), (1.0, 0.0)])
def test_the_same_latents_as_diffusers_pag_pipeline(checkpoint: Checkpoint, folder: Path, guidance: float, rescale: float) -> None:
    params = request(checkpoint, guidance=guidance, guidance_options={"pag_scale": 3.0, "rescale": rescale})
    pipe = StableDiffusionPAGPipeline.from_pretrained(folder, safety_checker=None, pag_applied_layers=["mid"])
    pipe.unet.load_state_dict(checkpoint.unet.state_dict())
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        params.prompt,
        negative_prompt=params.negative_prompt,
        num_inference_steps=params.steps,
        guidance_scale=guidance,
        guidance_rescale=rescale,
        pag_scale=3.0,
        width=params.width,
        height=params.height,
        generator=torch.Generator("cpu").manual_seed(params.seed),
        output_type="latent",
    ).images[0]
    engine = new_engine(checkpoint)
    engine.add(replace(sample_of(checkpoint, params, "s"), guidance_options=params.guidance_options))
    ours = latents_of(engine)["s"]
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3)
    assert not np.allclose(ours, denoise(checkpoint, replace(params, guidance_options={})), rtol=1e-2, atol=1e-2)


class Marked(RowwiseDenoiser):
    """Disturbed rows answer with half of what they should."""

    def __call__(self, x: Any, timestep: Any, context: Any, marks: Any = ()) -> Any:
        out = super().__call__(x, timestep, context)
        return out * np.array([0.5 if mark else 1.0 for mark in marks or [""] * len(x)], np.float32)[:, None, None, None]


@pytest.mark.parametrize(
    ("guidance", "options", "calls"),
    [(4.0, {"pag_scale": 2.0}, [3] * 5), (1.0, {"seg_scale": 2.0}, [2] * 5), (4.0, {"pag_scale": 2.0, "start": 0.4}, [1, 1, 3, 3, 3])],
)
def test_a_disturbed_output_costs_one_more_row(guidance: float, options: dict[str, Any], calls: list[int]) -> None:
    denoiser = Marked()
    engine = Engine(denoiser)
    engine.add(sample("s", guidance=guidance, guidance_options=options))
    run(engine)
    assert denoiser.calls == calls
    made = plan(guidance, 0.0, options, np.arange(5))
    assert [made.unet_rows(row) for row in range(5)] == calls
