"""What sampler tests compare with: ladders, models with a closed form, and diffusers' schedulers driven step by step."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch

from pipelines.ladder import Float, Ladder
from pipelines.step_table import STATE, StepTable

Model = Callable[[Float, float], Float]  # (x, timestep) -> raw output

EPSILON = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def _cosine_betas(steps: int = 1000) -> list[float]:
    bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return [*(1 - b / a for a, b in itertools.pairwise(bar[:-1])), 1.0]


ZERO_SNR = {
    "trained_betas": _cosine_betas(),
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
CONFIGS = {"epsilon": EPSILON, "zero_snr": ZERO_SNR}

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {"clip_sample": False}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_heun": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    "dpmpp_3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "dpmpp_1s": ("DPMSolverSinglestepScheduler", {"solver_order": 1}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
    "dpmpp_3s": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "sa_solver": ("SASolverScheduler", {}),
}


def accepts(sampler: str, setting: str) -> bool:
    return setting in inspect.signature(getattr(diffusers, REFERENCES[sampler][0])).parameters


def scheduler(sampler: str, config: dict[str, Any], **settings: Any) -> Any:
    """diffusers' scheduler for a sampler on a ladder, clipping and thresholding off."""
    name, own = REFERENCES[sampler]
    wanted = {**config, **own, **settings}
    ladder = Ladder.from_config(config)
    patched = ladder.zero_snr and not accepts(sampler, "rescale_betas_zero_snr")
    if patched:  # many do not know zero terminal SNR: they get the cap that the others write
        wanted |= {"trained_betas": [*config["trained_betas"][:-1], 0.999]}
    with patch.object(torch.Tensor, "sqrt", _rounded_sqrt):
        made = getattr(diffusers, name)(**{k: v for k, v in wanted.items() if accepts(sampler, k)})
    if patched:
        made.alphas_cumprod = torch.tensor(ladder.capped, dtype=torch.float32)
        made.sigmas = ((1 - made.alphas_cumprod) / made.alphas_cumprod) ** 0.5
    return made


def _rounded_sqrt(x: torch.Tensor) -> torch.Tensor:
    """Rounded once. On some processors MKL's float32 root misses the last digit, and zero terminal SNR magnifies that."""
    return torch.pow(x.double(), 0.5).to(x.dtype)


class _InFloat64:
    """torch or numpy, whose float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.float32 = module.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


class Brownian:
    """One Brownian motion in sigma, told in falling order of its times by the given normals: what a torchsde tree stands for."""

    def __init__(self, noises: Iterator[Float]) -> None:
        self._noises, self._known = noises, {}

    def __call__(self, start: Any, end: Any) -> Any:
        start, end = float(start), float(end)
        if start not in self._known:
            self._known = {start: 0.0}
        latest = min(self._known)
        if end not in self._known:
            self._known[end] = self._known[latest] + math.sqrt(latest - end) * next(self._noises)
        return torch.tensor((self._known[end] - self._known[start]) / math.sqrt(start - end))


def drive(
    reference: Any,
    model: Model,
    steps: int,
    noises: Iterator[Float],
    *,
    clean: bool = True,
    picture: Float | None = None,
    strength: float = 1.0,
    **step: Any,
) -> Float:
    """A whole trajectory of a diffusers scheduler, fed with given noise, in float64: what the model saw, and the end.

    With a `picture` it is image-to-image, as StableDiffusionImg2ImgPipeline drives it.
    `clean` also lifts the float32 that is written into most of these classes: at sigma = 4096 it costs them digits.
    """
    module, patches = inspect.getmodule(type(reference)), ExitStack()
    with patches:
        if hasattr(module, "randn_tensor"):
            patches.enter_context(patch.object(module, "randn_tensor", lambda *_, **__: torch.tensor(next(noises))))
        if hasattr(module, "BrownianTreeNoiseSampler"):
            patches.enter_context(patch.object(module, "BrownianTreeNoiseSampler", lambda *_: Brownian(noises)))
        if clean:
            patches.enter_context(patch.object(module, "torch", _InFloat64(torch)))
            patches.enter_context(patch.object(module, "np", _InFloat64(np)))
            reference.alphas_cumprod = reference.alphas_cumprod.double()
        reference.set_timesteps(steps)
        first = (steps - min(int(steps * strength), steps)) * reference.order
        if hasattr(reference, "set_begin_index"):
            reference.set_begin_index(first)  # else equal timesteps make it skip a level
        timesteps, noise = reference.timesteps[first:], torch.tensor(next(noises))
        if first and isinstance(reference, diffusers.PNDMScheduler):  # its first step asks twice at the second level, also of a part
            timesteps = torch.cat([timesteps[1:3], timesteps[2:]])
        x = noise * reference.init_noise_sigma
        if picture is not None:
            x = reference.add_noise(torch.tensor(picture), noise, timesteps[:1])
        path = []
        for t in timesteps:
            path.append(reference.scale_model_input(x, t).double().numpy())
            x = reference.step(torch.tensor(model(path[-1], float(t))), t, x, **step).prev_sample
    return np.stack([*path, x.double().numpy()])


def run_table(
    table: StepTable, model: Model, noises: Iterator[Float], *, picture: Float | None = None, unguided: Model | None = None
) -> Float:
    """The slow executor of a table in the same form; without guidance, or with a second model for what is not guided."""
    first, path = next(noises), []
    x = table.init * first if picture is None else table.alpha[0] * picture + table.sigma[0] * first
    registers = dict.fromkeys(STATE, np.zeros_like(first)) | {"x": x}
    for row, timestep in enumerate(table.timestep.tolist()):
        path.append(registers["x"] * (table.c_in[row] or 1.0 / registers["x"].std()))
        denoised = table.c_skip[row] * registers["x"] + table.c_out[row] * model(path[-1], timestep)
        plain = denoised if unguided is None else table.c_skip[row] * registers["x"] + table.c_out[row] * unguided(path[-1], timestep)
        noise = next(noises) if table.noisy[row] else np.zeros_like(first)
        registers = table.advance(row, registers | {"denoised": denoised, "denoised_uncond": plain, "noise": noise})
    return np.stack([*path, registers["x"]])


def difference(ours: Float, theirs: Float) -> float:
    """Largest difference on a whole trajectory, relative to its largest value."""
    return float(abs(ours - theirs).max() / abs(theirs).max())


def noises(shape: tuple[int, ...], seed: int = 0) -> Iterator[Float]:
    rng = np.random.default_rng(seed)
    while True:
        yield rng.standard_normal(shape)


class Mixture:
    """A mixture of isotropic Gaussians in latent space, whose denoised is known exactly."""

    def __init__(self, channels: int = 4, seed: int = 7) -> None:
        rng = np.random.default_rng(seed)
        self.means = rng.normal(0.0, 0.7, (3, channels, 1, 1))
        self.deviations = np.array([0.35, 0.5, 0.8])
        self.logits = np.log([0.5, 0.3, 0.2])

    def denoised(self, x: Float, alpha: float, sigma: float) -> Float:
        """E[x0 | x] of x [B, C, H, W], every cell a draw of its own."""
        variance = (alpha * self.deviations) ** 2 + sigma**2  # [3]
        away = x[:, None] - alpha * self.means  # [B, 3, C, H, W]
        logits = self.logits - 0.5 * x.shape[1] * np.log(variance)
        logits = logits[:, None, None] - 0.5 * (away**2).sum(2) / variance[:, None, None]  # [B, 3, H, W]
        weight = np.exp(logits - logits.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        gain = (alpha * self.deviations**2 / variance)[:, None, None, None]
        return np.asarray((weight[:, :, None] * (self.means + gain * away)).sum(1))

    def output(self, x: Float, alpha: float, sigma: float, prediction_type: str) -> Float:
        denoised = self.denoised(x, alpha, sigma)
        if prediction_type == "sample":
            return denoised
        if prediction_type == "epsilon":
            return (x - alpha * denoised) / sigma
        return (alpha * x - denoised) / sigma

    def network(self, ladder: Ladder, *, rounds: bool = True) -> Model:
        """The same as a network sees it: by timestep, in float32 (as diffusers keeps it) where it `rounds`."""

        def model(x: Float, timestep: float) -> Float:
            ratio = float(ladder.ratio_at(np.float32(timestep) if rounds else np.float64(timestep)))
            alpha = 1.0 / math.sqrt(1.0 + ratio**2)
            return self.output(x, alpha, ratio * alpha, ladder.prediction_type)

        return model


@cache
def tiny_unet(*, rounds: bool = True) -> Model:
    """A random U-Net of diffusers, as a model of timesteps; float64."""
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
    }
    unet = diffusers.UNet2DConditionModel(sample_size=8, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4, **blocks)
    unet, words = unet.double().eval(), torch.randn(1, 3, 8, dtype=torch.float64)

    @torch.inference_mode()
    def model(x: Float, timestep: float) -> Float:
        told = torch.tensor(timestep, dtype=torch.float32 if rounds else torch.float64)
        with one_thread():
            return unet(torch.from_numpy(x), told, encoder_hidden_states=words).sample.numpy()

    return model


@contextmanager
def one_thread() -> Iterator[None]:
    """So little work is done before a second thread has woken; on a busy machine they would wait for each other."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
