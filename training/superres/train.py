"""Train a variant of super-resolution: `python -m training.superres.train cosine`.

The same command goes on where an earlier one ended, to the same weights. Progress is counted in pictures seen.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.superres import SCHEDULES, area, denoised, doubling, draw
from pipelines.tiny_unet import TinyUNet
from training.checkpoint import Average, Clock, descend, generator, learning_rate, load, same_run, save, to_the_end, told
from training.machine import CPU, Machine, add_arguments, machine_of
from training.superres.sets import SETS, Pictures
from training.superres.variants import REPORTED, VARIANTS, Variant


@dataclass(frozen=True)
class Settings:
    total: int = 200_000
    batch: int = 64
    peak: float = 2.5e-3
    first: float = 0.25  # of a batch are at the noisiest time, where every sampler begins and a single step ends
    distilled: int = 5  # steps of the sampler that a student learns to skip
    decay: float = 0.998
    save_every: int = 24_000
    seed: int = 0


SETTINGS = {
    "cifar10": Settings(total=600_000, batch=32, first=0.5),
    "renders": Settings(total=60_000, batch=16, save_every=6_000),
}


class Restorer(nn.Module):
    """A variant's networks. Residuals are in units of `deviation`, pictures [B, 3, h, w] in 0..1."""

    def __init__(self, variant: Variant, deviation: float) -> None:
        super().__init__()
        self.variant, self.deviation = variant, deviation
        self.network = TinyUNet(variant.shape)
        self.base = TinyUNet(variant.base) if variant.base else None

    def raw(self, x: torch.Tensor, low: torch.Tensor, at: torch.Tensor | float) -> torch.Tensor:
        """The network as `pipelines.superres` calls it; `at` [B] or one time for all."""
        when = at if isinstance(at, torch.Tensor) else torch.full((len(low),), at, device=low.device)
        return self.network(x.contiguous(memory_format=torch.channels_last), low, when.to(low.dtype)).float()

    def first(self, low: torch.Tensor) -> torch.Tensor:
        """What a plain network adds to bicubic, [B, 12, h, w]."""
        if self.base is None:
            return torch.zeros(len(low), 12, *low.shape[2:], device=low.device)
        return self.base(low[:, :0], low, torch.ones(len(low), device=low.device)).float()

    def residual(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """What bicubic lacks, [B, 12, h, w]."""
        return F.pixel_unshuffle(high - bicubic(low), 2) / self.deviation

    def picture(self, low: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return bicubic(low) + self.deviation * F.pixel_shuffle(residual, 2)


def bicubic(low: torch.Tensor) -> torch.Tensor:
    down, across = (torch.from_numpy(doubling(side)).to(low.device) for side in low.shape[2:])
    return down @ low @ across.T


def times_of(variant: Variant, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """One time for each picture of a batch, from equal parts of the ladder; some are the noisiest."""
    n = settings.batch
    at = np.ceil((rng.permutation(n) + rng.random(n)) / n * variant.ladder).clip(1) / variant.ladder
    at[: round(settings.first * n)] = 1
    return at


def columns(*values: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(v.astype(np.float32)).view(-1, 1, 1, 1) for v in values)


def diffusion_loss(run: Run, low: torch.Tensor, high: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The error of the network in units in which its target has variance 1; that of the plain network beside it."""
    model, machine = run.model, run.machine
    target = model.residual(low, high)
    first = model.first(low)
    error = (first - target).square().mean() if model.base else 0.0
    target = target - first.detach()
    at = times_of(model.variant, run.settings, rng)
    alpha, sigma = (machine.on(v) for v in columns(*SCHEDULES[model.variant.schedule](at)))
    size = (alpha.square() + sigma.square()).sqrt()
    x = alpha * target + sigma * machine.on(normal(target.shape, rng))
    wanted = (target - alpha / size.square() * x) * size / sigma
    return error + (model.raw(x / size, low, machine.on(torch.from_numpy(at))) - wanted).square().mean()


def distillation_loss(run: Run, low: torch.Tensor, high: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """SinSR (arXiv 2311.14760, section 3.3): the teacher's picture in one step, the way back to its noise, and the truth from there."""
    model, variant, target = run.model, run.model.variant, run.model.residual(low, high)
    noise = run.machine.on(normal(target.shape, rng))
    level = tuple(float(v) for v in SCHEDULES[variant.schedule](np.asarray(1.0)))
    with torch.no_grad():
        wanted = draw(run.teacher.raw, low, noise, run.settings.distilled, variant.schedule, variant.ladder)
    found = denoised(model.raw, level[1] * noise, low, 1.0, level)
    back = model.raw(wanted, low, 0.0)
    with torch.no_grad():
        guessed = model.raw(target, low, 0.0)
    truth = denoised(model.raw, level[1] * guessed, low, 1.0, level)
    return (found - wanted).square().mean() + (back - noise).square().mean() + (truth - target).square().mean()


def normal(shape: tuple[int, ...], rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


class Run:
    """Everything a checkpoint holds, and for a student its teacher."""

    def __init__(
        self, folder: Path, data: str, name: str, settings: Settings, deviation: float, machine: Machine = CPU,
        teacher: Restorer | None = None,
    ) -> None:  # fmt: skip
        self.path, self.settings, self.machine, self.images, self.cpu_s = folder / f"{data}-{name}.pt", settings, machine, 0, 0.0
        variant = VARIANTS[name]
        decides = {name: value for name, value in asdict(variant).items() if name not in REPORTED}
        self.begun = told(settings) | {"deviation": deviation} | decides
        torch.manual_seed(settings.seed)
        self.model, self.teacher = machine.place(Restorer(variant, deviation)), teacher
        if teacher:
            self.model.load_state_dict(teacher.state_dict())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=settings.peak, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.average = Average([self.model], settings.decay)

    def restore(self) -> None:
        if self.path.exists():
            state = load(self.path)
            same_run(self.path, state, self.begun)
            self.model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.average.restore(state["average"])
            self.images, self.cpu_s = state["images"], state["cpu_s"]

    def save(self) -> None:
        parts = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "average": self.average.shadow}
        save(self.path, **parts, images=self.images, total=self.settings.total, cpu_s=self.cpu_s, settings=self.begun)

    def step(self, low: torch.Tensor, high: torch.Tensor, rng: np.random.Generator) -> float:
        with self.machine.autocast():
            loss = (distillation_loss if self.teacher else diffusion_loss)(self, low, high, rng)
        descend(self.optimiser, loss, partial(learning_rate, self.images / self.settings.total))
        self.images += self.settings.batch
        self.average.update(self.images // self.settings.batch)
        return float(loss.detach())


def trained(folder: Path, data: str, name: str, device: str = "cpu") -> tuple[Restorer, dict]:
    """A finished variant with its averaged weights, and its checkpoint. Raises SystemExit where it has not ended."""
    path = folder / f"{data}-{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run python -m training.superres.train {name} --data {data}")
    state = load(path)
    to_the_end(f"{data} {name}", state["images"], state["total"])
    model = Restorer(VARIANTS[name], state["settings"]["deviation"]).to(device)
    model.load_state_dict(state["model"])
    Average([model], 0).restore(state["average"])
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), state["average"], strict=True):
            parameter.copy_(value)
    return model.to(memory_format=torch.channels_last).eval(), state


def batch_of(pictures: Pictures, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Small and large pictures, all turned and mirrored in one of eight ways."""
    high = np.rot90(pictures.draw(count, rng), int(rng.integers(4)), (1, 2))
    high = np.ascontiguousarray(high[:, :, ::-1] if rng.integers(2) else high)
    return as_numbers(area(high)), as_numbers(high)


def as_numbers(pixels: np.ndarray) -> torch.Tensor:
    """[n, h, w, 3] uint8 -> [n, 3, h, w] in 0..1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def train(run: Run, pictures: Pictures, minutes: float = 1e9) -> None:
    settings, machine = run.settings, run.machine
    run.restore()
    saved_at, since = run.images, time.process_time() - run.cpu_s
    with Clock(run.path.stem, settings.total, run.images, minutes) as clock:
        while run.images < settings.total and not clock.out_of_time:
            rng = generator(settings.seed, run.images)
            low, high = (machine.on(part) for part in batch_of(pictures, settings.batch, rng))
            loss = run.step(low, high, rng)
            run.cpu_s = time.process_time() - since
            clock.tick(run.images, loss)
            if run.images - saved_at >= settings.save_every:
                run.save()
                saved_at = run.images
    run.save()


def start(folder: Path, data: str, name: str, settings: Settings, pictures: Pictures, machine: Machine = CPU) -> Run:
    """A run from its beginning; `train` restores its checkpoint if there is one. A student begins as its teacher."""
    variant = VARIANTS[name]
    settings = replace(settings, total=round(settings.total * variant.share))
    teacher = trained(folder, data, variant.teacher, machine.device)[0] if variant.teacher else None
    return Run(folder, data, name, settings, pictures.deviation, machine, teacher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=sorted(VARIANTS))
    parser.add_argument("--data", choices=sorted(SETS), default="cifar10")
    parser.add_argument("--root", type=Path, default=Path(".training"))
    add_arguments(parser)
    args = parser.parse_args()
    pictures = SETS[args.data](args.root, "train")
    settings = replace(SETTINGS[args.data], total=args.total or SETTINGS[args.data].total)
    run = start(args.root / "superres", args.data, args.variant, settings, pictures, machine_of(args))
    train(run, pictures, args.minutes)
    to_the_end(run.path.stem, run.images, run.settings.total)


if __name__ == "__main__":
    main()
