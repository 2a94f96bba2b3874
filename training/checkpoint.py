"""What every training stage shares: schedules as functions of pictures seen, checkpoints, the average of weights, progress."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

MAY_CHANGE = ("total", "save_every")  # on resume


def learning_rate(done: float, peak: float, *, warmup: float = 0.02, hold: float = 0.4, floor: float = 1e-5) -> float:
    """Linear warm-up, constant, then cosine to `floor`; `done` is the fraction of all pictures seen."""
    if done < warmup:
        return peak * max(done, 0.02 * warmup) / warmup
    if done < hold:
        return peak
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - hold) / (1 - hold))))


def generator(seed: int, images: int) -> np.random.Generator:
    """The randomness of the step that starts at `images`: a resumed run draws what the unbroken one would have."""
    return np.random.default_rng((seed, images))


class Average:
    """Exponential moving average of several modules' weights, with a warm-up so that it never lags a young run."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.params = [p for m in modules for p in m.parameters()]
        self.shadow = [p.detach().clone() for p in self.params]
        self.decay = decay

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self.shadow, [p.detach() for p in self.params], 1 - decay)

    def restore(self, shadow: list[torch.Tensor]) -> None:
        self.shadow = [s.to(p.device) for p, s in zip(self.params, shadow, strict=True)]

    def swap(self) -> None:
        """Exchange weights and averages; call twice to come back."""
        with torch.no_grad():
            for p, s in zip(self.params, self.shadow, strict=True):
                kept = p.detach().clone()
                p.copy_(s)
                s.copy_(kept)


def save(path: Path, **parts: object) -> None:
    """Write a checkpoint so that a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(parts, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True, map_location="cpu")


def descend(optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: Callable[[float], float], longest: float = 1.0) -> None:
    """One step down: `rate` tells the learning rate from each group's own peak, `longest` bounds the gradient's norm."""
    for group in optimiser.param_groups:
        group["lr"] = rate(group.get("peak", optimiser.defaults["lr"]))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], longest)
    optimiser.step()


def told(*settings: Any) -> dict[str, Any]:
    """What a checkpoint keeps of the settings of its run; `total` and the like may change on the way."""
    return {name: value for part in settings for name, value in asdict(part).items() if name not in MAY_CHANGE}


def same_run(path: Path, state: dict, now: dict[str, Any]) -> None:
    """Raises SystemExit where a checkpoint was begun with other settings: going on would be no run that anybody could repeat."""
    begun = state.get("settings", {})
    other = [f"{name} {begun.get(name)!r}, not {value!r}" for name, value in now.items() if begun.get(name) != value]
    if other:
        raise SystemExit(f"{path} was begun with {', '.join(other)}: ask for the same, or for another --root")


def to_the_end(stage: str, done: int, total: int) -> None:
    """Raises SystemExit, with the line that says how far a stage came, where it has not ended: what comes next must not begin."""
    if done < total:
        raise SystemExit(f"{stage}: {done:,} of {total:,}; the same command goes on from there")


class Clock:
    """Progress bar on a terminal, one line every half minute in a log; also the `--minutes` budget."""

    def __init__(self, title: str, total: int, images: int, minutes: float) -> None:
        self.deadline = time.monotonic() + minutes * 60
        self.total, self.images = total, images
        self.started, self.started_at = time.monotonic(), images
        self.printed, self.loss = time.monotonic(), 0.0
        self.console = Console()
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(title, total=total, completed=images, note="")
        self.title = title

    def __enter__(self) -> Clock:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def tick(self, images: int, loss: float | None = None, note: str = "") -> None:
        if loss is not None:
            self.loss = loss if not self.loss else 0.98 * self.loss + 0.02 * loss
        self.images, now = images, time.monotonic()
        speed = (images - self.started_at) / max(now - self.started, 1e-6)
        text = f"{'' if loss is None else f'loss {self.loss:.4f}  '}{speed:.1f}/s {note}"
        self.bar.update(self.task, completed=images, note=text)
        if not self.console.is_terminal and now - self.printed > 30:
            self.printed = now
            eta = (self.total - images) / max(speed, 1e-6) / 60
            print(f"{self.title} {images}/{self.total}  {text}  eta {eta:.1f} min", flush=True)

    @property
    def out_of_time(self) -> bool:
        return time.monotonic() > self.deadline


def save_grid(path: Path, pictures: np.ndarray, columns: int) -> None:
    """[n, h, w, 3] uint8 -> one PNG."""
    n, h, w, _ = pictures.shape
    rows = -(-n // columns)
    sheet = np.full((rows * columns, h, w, 3), 255, np.uint8)
    sheet[:n] = pictures
    sheet = sheet.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
