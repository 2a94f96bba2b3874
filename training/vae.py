"""Train the autoencoder (`python -m training.vae`), write every picture's latent (`--encode`), train the decoder on (`--refine`).

Progress is counted in full pictures. The first 60 % are crops of 64 px, four to a picture, which train faster; the rest are full
pictures, because the statistics of group normalisation depend on the size.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from training.checkpoint import Average, Clock, descend, generator, learning_rate, load, same_run, save, save_grid, to_the_end, told
from training.machine import CPU, Machine, add_arguments, machine_of
from training.slices import Slices, finished

CHANNELS = (16, 32, 64, 128)


@dataclass(frozen=True)
class Settings:
    total: int = 17_600  # full pictures
    batch: int = 4  # full pictures a step, or 16 crops
    crops_until: float = 0.6
    peak: float = 1.2e-3
    kl_weight: float = 4e-4
    hold: float = 0.5
    decay: float = 0.998
    latent_noise: float = 0.03  # for the decoder alone
    seed: int = 0


REFINE = Settings(total=32_000, peak=1e-3, hold=0.2, decay=0.99)


def build_vae(channels: tuple[int, ...] = CHANNELS, groups: int = 8, size: int = 128) -> AutoencoderKL:
    n = len(channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * n, up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=channels,
        layers_per_block=1, latent_channels=4, norm_num_groups=groups, sample_size=size, scaling_factor=1.0,
    )  # fmt: skip


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] in -1..1."""
    x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float()
    return (x / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_pictures(x: torch.Tensor) -> np.ndarray:
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def draw_batch(pictures: np.ndarray, settings: Settings, images: int) -> torch.Tensor:
    """Crops of half the size first, whole pictures later."""
    rng = generator(settings.seed, images)
    if images >= settings.crops_until * settings.total:
        return to_tensor(pictures[np.sort(rng.integers(len(pictures), size=settings.batch))])
    half = pictures.shape[1] // 2
    chosen = rng.integers(len(pictures), size=4 * settings.batch)
    corners = rng.integers(0, half + 1, size=(len(chosen), 2))
    return to_tensor(np.stack([pictures[i, y : y + half, x : x + half] for i, (y, x) in zip(chosen, corners, strict=True)]))


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    """L1 + L1 of the gradients, for crisp edges. Second value: L1 alone."""
    error = y.float() - x
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    l1 = error.abs().mean()
    return l1 + 0.5 * edges, float(l1.detach())


def loss_of(run: Run, x: torch.Tensor, noise: torch.Generator) -> tuple[torch.Tensor, float]:
    """Reconstruction and a little KL, which makes latents that forgive small errors."""
    with run.machine.autocast():
        mean, logvar = (part.float() for part in run.encoder(x))
        z = mean + (0.5 * logvar).exp() * run.machine.on(torch.randn(mean.shape, generator=noise))
        y = run.decoder(z)
    loss, l1 = reconstruction_loss(y, x)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return loss + run.settings.kl_weight * kl, l1


class Encoder(torch.nn.Module):
    """[n, 3, h, w] -> mean and log-variance of its latent, each [n, 4, h/8, w/8]; what `torch.compile` is given."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.vae.encode(x).latent_dist
        return posterior.mean, posterior.logvar


class Decoder(torch.nn.Module):
    """[n, 4, h/8, w/8] -> [n, 3, h, w]."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(z).sample


class Run:
    """What a checkpoint holds, and the loop both stages share. Only `parts` are trained."""

    def __init__(
        self, path: Path, settings: Settings, vae: AutoencoderKL, parts: list[torch.nn.Module], pictures: np.ndarray, machine: Machine,
        **origin: object,
    ) -> None:  # fmt: skip
        """`origin` is what beside the settings makes the run what it is."""
        self.path, self.settings, self.pictures, self.machine, self.images = path, settings, pictures, machine, 0
        self.begun = told(settings) | origin
        self.vae = machine.place(vae, own_norm=True)
        self.encoder = machine.compile(Encoder(vae))
        self.decoder = machine.compile(Decoder(vae))
        self.average = Average(parts, settings.decay)
        self.optimiser = torch.optim.AdamW(self.average.params, lr=settings.peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        if path.exists():
            state = load(path)
            same_run(path, state, self.begun)
            vae.load_state_dict(state["vae"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.restore(state["average"])
            self.images = state["images"]

    def save(self) -> None:
        """Also a grid: pictures and what the averaged weights make of them."""
        parts = {"optimiser": self.optimiser.state_dict(), "average": self.average.shadow, "images": self.images}
        parts["settings"] = self.begun
        save(self.path, vae=self.vae.state_dict(), **parts)
        self.average.swap()
        with torch.no_grad():
            x = self.machine.on(to_tensor(self.pictures[:24]))
            both = torch.stack([x, self.vae.decode(self.vae.encode(x).latent_dist.mean).sample], 1).flatten(0, 1)
        self.average.swap()
        save_grid(self.path.parent / "grids" / f"{self.path.stem}-{self.images:06d}.png", to_pictures(both), 12)

    def loop(self, loss_at: Callable[[int], tuple[torch.Tensor, float]], minutes: float) -> None:
        settings, saved_at = self.settings, self.images
        with Clock(self.path.stem, settings.total, self.images, minutes) as clock:
            while self.images < settings.total and not clock.out_of_time:
                loss, l1 = loss_at(self.images)
                descend(self.optimiser, loss, partial(learning_rate, self.images / settings.total, hold=settings.hold))
                self.images += settings.batch
                self.average.update(self.images // settings.batch)
                clock.tick(self.images, float(loss.detach()), f"l1 {l1:.4f}")
                if self.images - saved_at >= 2000:
                    self.save()
                    saved_at = self.images
        self.save()
        self.average.swap()


def train(
    pictures: np.ndarray, folder: Path, settings: Settings, minutes: float = 1e9, vae: AutoencoderKL | None = None, machine: Machine = CPU
) -> AutoencoderKL:
    """The whole autoencoder, new or (given one) trained on."""
    torch.manual_seed(settings.seed)
    first = fingerprint(vae) if vae else ""
    vae = vae or build_vae()
    run = Run(folder / "vae.pt", settings, vae, [vae], pictures, machine, init=first, pictures_of=fingerprint_of(pictures))

    def loss_at(images: int) -> tuple[torch.Tensor, float]:
        return loss_of(run, machine.on(draw_batch(pictures, settings, images)), torch.Generator().manual_seed(images))

    run.loop(loss_at, minutes)
    return vae


def refine(
    pictures: np.ndarray, data: Path, settings: Settings, vae: AutoencoderKL, minutes: float = 1e9, machine: Machine = CPU
) -> AutoencoderKL:
    """Train the decoder on from cached latents; the encoder and so the latents stay, and the U-Net may train meanwhile."""
    latents, stats = np.load(data / "latents.npy", mmap_mode="r"), np.load(data / "latent_stats.npy")
    mean, std = (torch.from_numpy(s).view(1, 4, 1, 1) for s in stats)
    vae.requires_grad_(True)
    parts = [vae.post_quant_conv, vae.decoder]
    run = Run(data.parent / "decoder.pt", settings, vae, parts, pictures, machine, encoder=fingerprint(vae.encoder))

    def loss_at(images: int) -> tuple[torch.Tensor, float]:
        rng = generator(settings.seed, images)
        rows = np.sort(rng.integers(len(pictures), size=settings.batch))
        z = latents[rows].astype(np.float32)
        z = torch.from_numpy(z + settings.latent_noise * rng.standard_normal(z.shape, dtype=np.float32))
        with machine.autocast():
            y = run.decoder(machine.on(z * std + mean))
        return reconstruction_loss(y, machine.on(to_tensor(pictures[rows])))

    run.loop(loss_at, minutes)
    return vae


def averaged(folder: Path, vae: AutoencoderKL | None = None) -> AutoencoderKL:
    """The trained autoencoder with averaged weights, frozen; with the refined decoder if there is one.

    Raises SystemExit where that decoder belongs to another encoder.
    """
    vae = vae or build_vae()
    for path, parts in ((folder / "vae.pt", [vae]), (folder / "decoder.pt", [vae.post_quant_conv, vae.decoder])):
        if path.exists():
            state = load(path)
            if path.stem == "decoder" and state["settings"]["encoder"] != fingerprint(vae.encoder):
                raise SystemExit(f"{path} refines the decoder of another autoencoder: delete it, and refine again")
            average = Average(parts, 0.0)
            average.restore(state["average"])
            average.swap()
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def encode(pictures: np.ndarray, vae: AutoencoderKL, folder: Path, batch: int = 16, machine: Machine = CPU, minutes: float = 1e9) -> Slices:
    """Write latents.npy [n, 4, h/8, w/8] float16, normalised per channel, and latent_stats.npy [2, 4]: mean and deviation.

    As they come the means lie in encoded.npy, in single precision; the statistics of all of them come last. Raises SystemExit for
    pictures that are not all composed.
    """
    of = {"weights": fingerprint(vae), "pictures": finished(folder / "compose.json")}
    encoder = machine.compile(Encoder(machine.place(vae)))
    slices = Slices(folder / "encode.json", of, len(pictures), minutes, batch)
    shape = (len(pictures), 4, *(side // 8 for side in pictures.shape[1:3]))
    z = np.lib.format.open_memmap(folder / "encoded.npy", "w+" if slices.new else "r+", np.float32, shape)
    with torch.no_grad(), machine.autocast():
        for block in slices:
            part = slice(block.start, block.stop)
            z[part] = encoder(machine.on(to_tensor(pictures[part])))[0].float().cpu().numpy()
    if slices.complete:
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        np.save(folder / "latent_stats.npy", np.stack([mean, std]))
        np.save(folder / "latents.npy", ((z - mean[:, None, None]) / std[:, None, None]).astype(np.float16))
    return slices


def fingerprint(module: torch.nn.Module) -> str:
    """Of a module's weights."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def fingerprint_of(pictures: np.ndarray) -> str:
    """Of how many there are, and of some of them."""
    return hashlib.sha256(str(pictures.shape).encode() + pictures[:: max(1, len(pictures) // 64)].tobytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(".training"))
    add_arguments(parser)
    parser.add_argument("--encode", action="store_true")
    parser.add_argument("--refine", action="store_true")
    parser.add_argument("--init", type=Path, help="a checkpoint folder whose autoencoder is trained on instead of a new one")
    parser.add_argument("--batch", type=int, help="full pictures a step; more on a GPU")
    args = parser.parse_args()
    machine, data = machine_of(args), args.root / "data"
    finished(data / "compose.json")
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    if args.encode:
        slices = encode(pictures, averaged(args.root), data, machine=machine, minutes=args.minutes)
        to_the_end("encode", slices.done, slices.total)
        return
    settings = REFINE if args.refine else Settings()
    settings = replace(settings, total=settings.total if args.total is None else args.total, batch=args.batch or settings.batch)
    if args.refine:
        refine(pictures, data, settings, averaged(args.root), args.minutes, machine)
    else:
        start = AutoencoderKL.from_pretrained(args.init / "vae") if args.init else None
        train(pictures, args.root, settings, args.minutes, start, machine)
    stage = "decoder" if args.refine else "vae"
    to_the_end(stage, load(args.root / f"{stage}.pt")["images"], settings.total)


if __name__ == "__main__":
    main()
