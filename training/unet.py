"""Train the U-Net and the text encoder together on cached latents: `python -m training.unet`.

v-prediction with zero terminal SNR, on the continuous cosine ladder unless asked otherwise (`training.noise`). Progress is counted
in pictures seen; every schedule is a function of the fraction done, so `--total` may be lowered on resume to let the decay finish earlier.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.captions import caption
from training.checkpoint import Average, Clock, descend, generator, learning_rate, load, same_run, save, save_grid, to_the_end, told
from training.compositor import Scene
from training.machine import CPU, Machine, add_arguments, machine_of
from training.noise import COSINE, STEPS, Noise, noise_of
from training.noise import add_arguments as add_noise
from training.slices import finished
from training.text import build_text_encoder, build_tokenizer, inherit, save_tokenizer, tokenize
from training.vae import averaged, fingerprint, to_pictures

GRID_PROMPTS = (
    "a red apple", "a car", "a cat", "a dog on a blue background", "a frog", "a banana on a pink background", "pizza", "a castle",
    "a purple octopus", "a tree", "a house on a yellow background", "two green hearts", "a flat icon of a cat",
    "a cartoon of a car on a green background", "a pencil drawing of a fish", "a pencil sketch of a dog on a yellow background",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    total: int = 184_000
    batch: int = 32
    peak: float = 6e-4
    text_peak: float = 2e-4
    drop: float = 0.1  # captions replaced by the empty prompt
    coloured: float = 0.0  # share of a batch that is drawn from coloured things alone, besides those among the rest
    decay: float = 0.998
    save_every: int = 9_600
    seed: int = 0


def build_unet(channels: tuple[int, ...] = (96, 192, 256), context: int = 192, groups: int = 32, heads: int = 4) -> UNet2DConditionModel:
    """Cross-attention everywhere but at the top level."""
    cross = len(channels) - 1
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * cross,
        up_block_types=("CrossAttnUpBlock2D",) * cross + ("UpBlock2D",),
        cross_attention_dim=context, attention_head_dim=heads, norm_num_groups=groups,
    )  # fmt: skip


def stratified_timesteps(count: int, rng: np.random.Generator) -> torch.Tensor:
    """One timestep from each of `count` equal parts of the ladder, shuffled."""
    u = (rng.permutation(count) + rng.random(count)) / count
    return torch.from_numpy((u * STEPS).astype(np.int64))


def draw_rows(scenes: np.ndarray, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Which pictures a step sees, by row of `scenes` [n, 5]."""
    rows = rng.integers(len(scenes), size=settings.batch)
    some = round(settings.coloured * settings.batch)
    if some:
        coloured = np.flatnonzero(scenes[:, 2] >= 0)
        rows[:some] = coloured[rng.integers(len(coloured), size=some)]
    return rows


def diffusion_loss(run: Run, x0: torch.Tensor, context: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """v-prediction (Salimans and Ho, 2022), weight (min(snr, 5) + 1) / (snr + 1), which stays 1 at zero SNR."""
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in run.noise.level(timestep))
    x = alpha * x0 + sigma * noise
    target = alpha * noise - sigma * x0
    v = run.network(run.noise.seen(x, timestep).contiguous(), timestep, context).sample
    snr = (alpha / sigma).square()
    weight = (snr.clamp(max=5) + 1) / (snr + 1)
    return (weight * (v.float() - target).square()).mean()


def ddim_sample(
    run: Run, context: torch.Tensor, empty: torch.Tensor, x: torch.Tensor, steps: int = 20, guidance: float = 3.0
) -> torch.Tensor:
    """The slow obvious loop for sample grids: trailing timesteps, guidance on v, rescale 0.7. `x` [B, 4, h, w] is noise."""
    both = torch.cat([empty.expand(len(x), -1, -1), context])
    timesteps = torch.arange(steps, 0, -1, device=x.device) * (STEPS // steps) - 1
    for i, now in enumerate(timesteps):
        at = now.expand(len(x))
        with run.machine.autocast():
            uncond, cond = run.unet(run.noise.seen(x, at).repeat(2, 1, 1, 1), now, both).sample.float().chunk(2)
        v = uncond + guidance * (cond - uncond)
        v = v * (0.3 + 0.7 * cond.std((1, 2, 3), keepdim=True) / v.std((1, 2, 3), keepdim=True))
        alpha, sigma = run.noise.level(now)
        denoised, left = alpha * x - sigma * v, sigma * x + alpha * v
        if i + 1 < steps:
            alpha, sigma = run.noise.level(timesteps[i + 1])
            x = alpha * denoised + sigma * left
    return denoised


class Run:
    """Everything a checkpoint holds."""

    def __init__(
        self, folder: Path, settings: Settings, unet: UNet2DConditionModel, text: CLIPTextModel, machine: Machine = CPU,
        noise: Noise = COSINE,
    ) -> None:  # fmt: skip
        self.folder, self.settings, self.machine, self.noise, self.images = folder, settings, machine, noise, 0
        self.begun = told(settings, noise)  # and what of the data and the first weights, as `train` and `start` know it
        self.unet, self.text = machine.place(unet), text.to(machine.device)
        self.network = machine.compile(unet)
        groups = [
            {"params": list(unet.parameters()), "peak": settings.peak},
            {"params": list(text.parameters()), "peak": settings.text_peak},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=settings.peak, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
        self.average = Average([unet, text], settings.decay)

    def restore(self) -> None:
        path = self.folder / "unet.pt"
        if path.exists():
            state = load(path)
            same_run(path, state, self.begun)
            self.unet.load_state_dict(state["unet"])
            self.text.load_state_dict(state["text"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.restore(state["average"])
            self.images = state["images"]

    def save(self) -> None:
        parts = {"unet": self.unet.state_dict(), "text": self.text.state_dict(), "optimiser": self.optimiser.state_dict()}
        save(self.folder / "unet.pt", **parts, average=self.average.shadow, images=self.images, settings=self.begun)

    def step(self, loss: torch.Tensor) -> None:
        descend(self.optimiser, loss, partial(learning_rate, self.images / self.settings.total))
        self.images += self.settings.batch
        self.average.update(self.images // self.settings.batch)


def draw_grid(run: Run, tokenizer: CLIPTokenizer, vae: AutoencoderKL, stats: np.ndarray) -> None:
    """Sixteen prompts from the averaged weights, always with the same noise."""
    run.average.swap()
    with torch.no_grad():
        context, empty = (run.text(run.machine.on(tokenize(tokenizer, texts))).last_hidden_state for texts in (list(GRID_PROMPTS), [""]))
        noise = torch.randn(len(GRID_PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(0))
        z = ddim_sample(run, context, empty, run.machine.on(noise))
        mean, std = (run.machine.on(torch.from_numpy(s).view(1, 4, 1, 1)) for s in stats)
        pictures = to_pictures(vae.decode(z * std + mean).sample)
    run.average.swap()
    save_grid(run.folder / "grids" / f"unet-{run.images:07d}.png", pictures, 8)


def train(run: Run, tokenizer: CLIPTokenizer, vae: AutoencoderKL, data: Path, minutes: float = 1e9) -> None:
    latents, scenes, stats = (np.load(data / f"{name}.npy") for name in ("latents", "scenes", "latent_stats"))
    settings, machine = run.settings, run.machine
    vae = vae.to(machine.device)
    run.begun |= {"latents": finished(data / "encode.json")}
    run.restore()
    saved_at = run.images
    with Clock("unet", settings.total, run.images, minutes) as clock:
        while run.images < settings.total and not clock.out_of_time:
            rng = generator(settings.seed, run.images)
            rows = draw_rows(scenes, settings, rng)
            texts = ["" if rng.random() < settings.drop else caption(Scene(*map(int, scenes[r])), rng) for r in rows]
            x0 = torch.from_numpy(latents[rows].astype(np.float32))  # [B, 4, 16, 16]
            noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
            timestep = stratified_timesteps(settings.batch, rng)
            with machine.autocast():
                context = run.text(machine.on(tokenize(tokenizer, texts))).last_hidden_state  # [B, 32, width]
                loss = diffusion_loss(run, machine.on(x0), context, machine.on(timestep), machine.on(noise))
            run.step(loss)
            clock.tick(run.images, float(loss.detach()))
            if run.images - saved_at >= settings.save_every:
                run.save()
                draw_grid(run, tokenizer, vae, stats)
                saved_at = run.images
    run.save()
    draw_grid(run, tokenizer, vae, stats)


def start(folder: Path, settings: Settings, machine: Machine, noise: Noise, init: Path | None = None) -> tuple[Run, CLIPTokenizer]:
    """A run with the pretrained text encoder; `train` restores its own checkpoint if there is one.

    With `init`, U-Net and text encoder of that checkpoint folder are trained on, with the words of today.
    """
    torch.manual_seed(settings.seed)
    if init:
        tokenizer = build_tokenizer()
        save_tokenizer(tokenizer, folder / "tokenizer")
        unet, text = UNet2DConditionModel.from_pretrained(init / "unet", torch_dtype=torch.float32), inherit(init, tokenizer)
    else:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        unet, text = build_unet(), build_text_encoder(tokenizer)
        text.load_state_dict(load(folder / "text.pt")["text"])
    first = fingerprint(unet) if init else ""
    run = Run(folder, settings, unet, text, machine, noise)
    run.begun |= {"init": first}
    return run, tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    add_arguments(parser)
    add_noise(parser)
    parser.add_argument("--batch", type=int, default=Settings.batch, help="pictures a step; 512 on a GPU, with --peak")
    parser.add_argument("--peak", type=float, default=Settings.peak, help="highest learning rate of the U-Net")
    parser.add_argument("--coloured", type=float, default=Settings.coloured, help="share of each batch drawn from coloured things alone")
    parser.add_argument("--init", type=Path, help="a checkpoint folder to train on from, instead of from random weights")
    args = parser.parse_args()
    settings = replace(Settings(), total=args.total or Settings.total, batch=args.batch, peak=args.peak, coloured=args.coloured)
    run, tokenizer = start(args.root, settings, machine_of(args), noise_of(args), args.init)
    train(run, tokenizer, averaged(args.root), args.root / "data", args.minutes)
    to_the_end("unet", run.images, settings.total)


if __name__ == "__main__":
    main()
