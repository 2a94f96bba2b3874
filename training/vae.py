"""Train the autoencoder (`python -m training.vae`), then write every picture's latent (`python -m training.vae --encode`).

Progress is counted in full pictures. The first 60 % are crops of 64 px, four to a picture, which train faster; the rest are full
pictures, because the statistics of group normalisation depend on the size.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import AttnProcessor
from rich.progress import track

from training.checkpoint import Average, Clock, generator, learning_rate, load, save, save_grid
from training.norm import use_fast_group_norm

CHANNELS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Settings:
    total: int = 24_000  # full pictures
    batch: int = 4  # full pictures a step, or 16 crops
    crops_until: float = 0.6
    peak: float = 1.2e-3
    kl_weight: float = 4e-4
    seed: int = 0


def build_vae(channels: tuple[int, ...] = CHANNELS, groups: int = 8, size: int = 128) -> AutoencoderKL:
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=channels,
        layers_per_block=1, latent_channels=4, norm_num_groups=groups, sample_size=size, scaling_factor=1.0,
    )  # fmt: skip


def prepare(vae: AutoencoderKL) -> AutoencoderKL:
    """The fast way to train on a CPU: plain attention, channels last, our own normalisation backward."""
    vae.set_attn_processor(AttnProcessor())
    use_fast_group_norm(vae)
    return vae.to(memory_format=torch.channels_last)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] in -1..1."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_pictures(x: torch.Tensor) -> np.ndarray:
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def draw_batch(pictures: np.ndarray, settings: Settings, images: int) -> torch.Tensor:
    """Crops of half the size first, whole pictures later."""
    rng = generator(settings.seed, images)
    if images >= settings.crops_until * settings.total:
        return to_tensor(pictures[np.sort(rng.integers(len(pictures), size=settings.batch))])
    half = pictures.shape[1] // 2
    chosen = rng.integers(len(pictures), size=4 * settings.batch)
    corners = rng.integers(0, half + 1, size=(len(chosen), 2))
    return to_tensor(np.stack([pictures[i, y : y + half, x : x + half] for i, (y, x) in zip(chosen, corners, strict=True)]))


def loss_of(vae: AutoencoderKL, x: torch.Tensor, kl_weight: float, noise: torch.Generator) -> tuple[torch.Tensor, float]:
    """L1 + L1 of the gradients (crisp edges) + a little KL (latents that forgive small errors). Second value: L1 alone."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        z = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=noise)
        y = vae.decode(z).sample
    error = y.float() - x
    l1 = error.abs().mean()
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return l1 + 0.5 * edges + kl_weight * kl, float(l1.detach())


def train(pictures: np.ndarray, folder: Path, settings: Settings, minutes: float = 1e9, vae: AutoencoderKL | None = None) -> AutoencoderKL:
    torch.manual_seed(settings.seed)
    vae = prepare(vae or build_vae())
    optimiser = torch.optim.AdamW(vae.parameters(), lr=settings.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average = Average([vae], 0.998)
    images, path = 0, folder / "vae.pt"
    if path.exists():
        state = load(path)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        average.shadow, images = state["average"], state["images"]

    def checkpoint() -> None:
        save(path, vae=vae.state_dict(), optimiser=optimiser.state_dict(), average=average.shadow, images=images)
        average.swap()
        with torch.no_grad():
            x = to_tensor(pictures[: min(len(pictures), 24)])
            both = torch.stack([x, vae.decode(vae.encode(x).latent_dist.mean).sample], 1).flatten(0, 1)
        save_grid(folder / "grids" / f"vae-{images:06d}.png", to_pictures(both), 12)
        average.swap()

    with Clock("vae", settings.total, images, minutes) as clock:
        last_saved = images
        while images < settings.total and not clock.out_of_time:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(images / settings.total, settings.peak, hold=0.5)
            x = draw_batch(pictures, settings, images)
            loss, l1 = loss_of(vae, x, settings.kl_weight, torch.Generator().manual_seed(images))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            optimiser.step()
            images += settings.batch
            average.update(images // settings.batch)
            clock.tick(images, float(loss.detach()), f"l1 {l1:.4f}")
            if images - last_saved >= 2000:
                checkpoint()
                last_saved = images
    checkpoint()
    average.swap()
    return vae


def averaged(folder: Path, vae: AutoencoderKL | None = None) -> AutoencoderKL:
    """The trained autoencoder with averaged weights, frozen."""
    vae, state = vae or build_vae(), load(folder / "vae.pt")
    vae.load_state_dict(state["vae"])
    with torch.no_grad():
        for p, s in zip(vae.parameters(), state["average"], strict=True):
            p.copy_(s)
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def encode(pictures: np.ndarray, vae: AutoencoderKL, folder: Path, batch: int = 16) -> None:
    """Write latents.npy [n, 4, h/8, w/8] float16, normalised per channel, and latent_stats.npy [2, 4]: mean and deviation."""
    latents = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for i in track(range(0, len(pictures), batch), "encode"):
            latents.append(vae.encode(to_tensor(pictures[i : i + batch])).latent_dist.mean.float().numpy())
    z = np.concatenate(latents)
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    np.save(folder / "latent_stats.npy", np.stack([mean, std]))
    np.save(folder / "latents.npy", ((z - mean[:, None, None]) / std[:, None, None]).astype(np.float16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    parser.add_argument("--total", type=int, default=Settings.total)
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--encode", action="store_true")
    args = parser.parse_args()
    pictures = np.load(args.root / "data" / "pictures.npy", mmap_mode="r")
    if args.encode:
        encode(pictures, averaged(args.root), args.root / "data")
    else:
        train(pictures, args.root, Settings(total=args.total), args.minutes)


if __name__ == "__main__":
    main()
