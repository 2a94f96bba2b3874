"""Distil the trained U-Net to few steps: `python -m training.lcm`, a latent consistency model (arXiv 2310.04378, algorithm 1).

Teacher and first student are the averaged weights of `training.unet`. The guidance of the card is baked in, so the student is drawn
without guidance, at half the cost of a step, in 1 to 8 steps of diffusers' LCMScheduler or the `lcm` sampler.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import caption
from training.checkpoint import Average, Clock, descend, generator, learning_rate, load, same_run, save, to_the_end, told
from training.compositor import Scene
from training.export import trained
from training.machine import CPU, Machine, add_arguments, machine_of
from training.noise import COSINE, STEPS, Noise, noise_of
from training.noise import add_arguments as add_noise
from training.slices import finished
from training.text import tokenize
from training.unet import stratified_timesteps
from training.vae import fingerprint

SIGMA_DATA = 0.5  # of the boundary condition; LCMScheduler's
TIMESTEP_SCALING = 10.0


@dataclass(frozen=True)
class Settings:
    total: int = 60_000
    batch: int = 16
    peak: float = 1e-4
    guidance: float = 3.0
    rescale: float = 0.7
    stride: int = 20  # the teacher's DDIM step, in timesteps
    decay: float = 0.99  # of the target network
    huber: float = 1e-3
    seed: int = 0


def boundary(timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """c_skip and c_out [B, 1, 1, 1]: at timestep 0 the student returns its input (arXiv 2303.01469, appendix C, as in LCMScheduler)."""
    scaled = timestep.float().view(-1, 1, 1, 1) * TIMESTEP_SCALING
    whole = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / whole, scaled / whole.sqrt()


class Run:
    """What a checkpoint holds. The text encoder stays as it is."""

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        unet: UNet2DConditionModel,
        text: CLIPTextModel,
        machine: Machine = CPU,
        noise: Noise = COSINE,
    ) -> None:
        self.folder, self.settings, self.machine, self.noise, self.images = folder, settings, machine, noise, 0
        self.begun = told(settings, noise) | {"teacher": fingerprint(unet)}
        self.text = text.to(machine.device).requires_grad_(False)
        self.teacher = machine.place(copy.deepcopy(unet)).requires_grad_(False)
        self.target = machine.place(copy.deepcopy(unet)).requires_grad_(False)
        self.student = machine.place(unet)
        self.networks = [machine.compile(part) for part in (self.teacher, self.target, self.student)]
        self.average = Average([self.student], settings.decay)
        self.optimiser = torch.optim.AdamW(self.average.params, lr=settings.peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def restore(self) -> None:
        path = self.folder / "lcm.pt"
        if path.exists():
            state = load(path)
            same_run(path, state, self.begun)
            self.student.load_state_dict(state["unet"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.restore(state["average"])
            self.images = state["images"]

    def save(self) -> None:
        parts = {"unet": self.student.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average.shadow}
        save(self.folder / "lcm.pt", **parts, images=self.images, settings=self.begun)

    def denoised(self, network: UNet2DConditionModel, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """f(x, t) of the consistency model [B, 4, h, w]."""
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.noise.level(timestep))
        v = network(self.noise.seen(x, timestep), timestep, context).sample.float()
        skip, out = boundary(timestep)
        return skip * x + out * (alpha * x - sigma * v)

    def taught(self, x: torch.Tensor, now: torch.Tensor, later: torch.Tensor, context: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
        """x at `later`, by one guided DDIM step of the teacher."""
        both, twice = torch.cat([empty.expand(len(x), -1, -1), context]), now.repeat(2)
        uncond, cond = self.networks[0](self.noise.seen(x, now).repeat(2, 1, 1, 1), twice, both).sample.float().chunk(2)
        v = uncond + self.settings.guidance * (cond - uncond)
        shrunk = cond.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True)
        v = v * (1 - self.settings.rescale + self.settings.rescale * shrunk)
        (alpha, sigma), (alpha2, sigma2) = ((u.view(-1, 1, 1, 1) for u in self.noise.level(t)) for t in (now, later))
        return alpha2 * (alpha * x - sigma * v) + sigma2 * (sigma * x + alpha * v)

    def loss(self, x0: torch.Tensor, noise: torch.Tensor, now: torch.Tensor, context: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
        """Pseudo-Huber distance of the student at `now` and the target one teacher step on (arXiv 2310.14189, equation 6)."""
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in self.noise.level(now))
        x, later = alpha * x0 + sigma * noise, (now - self.settings.stride).clamp(min=0)
        _, target, student = self.networks
        with torch.no_grad():
            wanted = self.denoised(target, self.taught(x, now, later, context, empty), later, context)
        error = self.denoised(student, x, now, context) - wanted
        return ((error.square() + self.settings.huber**2).sqrt() - self.settings.huber).mean()

    def step(self, loss: torch.Tensor) -> None:
        descend(self.optimiser, loss, partial(learning_rate, self.images / self.settings.total, hold=0.6, floor=1e-6))
        self.images += self.settings.batch
        self.average.update(self.images // self.settings.batch)
        self.follow()

    def follow(self) -> None:
        """The target network is the student's average."""
        with torch.no_grad():
            for p, s in zip(self.target.parameters(), self.average.shadow, strict=True):
                p.copy_(s)


def train(run: Run, tokenizer: CLIPTokenizer, data: Path, minutes: float = 1e9) -> None:
    latents, scenes = (np.load(data / f"{name}.npy") for name in ("latents", "scenes"))
    settings, machine = run.settings, run.machine
    run.begun |= {"latents": finished(data / "encode.json")}
    run.restore()
    run.follow()
    saved_at = run.images
    with torch.no_grad():
        empty = run.text(machine.on(tokenize(tokenizer, [""]))).last_hidden_state
    with Clock("lcm", settings.total, run.images, minutes) as clock:
        while run.images < settings.total and not clock.out_of_time:
            rng = generator(settings.seed, run.images)
            rows = rng.integers(len(latents), size=settings.batch)
            texts = [caption(Scene(*map(int, scenes[r])), rng) for r in rows]
            x0 = torch.from_numpy(latents[rows].astype(np.float32))  # [B, 4, 16, 16]
            noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
            now = stratified_timesteps(settings.batch, rng).clamp(min=settings.stride, max=STEPS - 1)
            with machine.autocast():
                with torch.no_grad():
                    context = run.text(machine.on(tokenize(tokenizer, texts))).last_hidden_state
                loss = run.loss(machine.on(x0), machine.on(noise), machine.on(now), context, empty)
            run.step(loss)
            clock.tick(run.images, float(loss.detach()))
            if run.images - saved_at >= 4800:
                run.save()
                saved_at = run.images
    run.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    add_arguments(parser)
    add_noise(parser)
    parser.add_argument("--batch", type=int, default=Settings.batch)
    args = parser.parse_args()
    unet, text, tokenizer, _ = trained(args.root, noise_of(args))
    settings = replace(Settings(), total=args.total or Settings.total, batch=args.batch)
    run = Run(args.root, settings, unet, text, machine_of(args), noise_of(args))
    train(run, tokenizer, args.root / "data", args.minutes)
    to_the_end("lcm", run.images, settings.total)


if __name__ == "__main__":
    main()
