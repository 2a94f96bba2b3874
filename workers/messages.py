"""What passes between a worker's shell (asyncio) and its drawing thread: small frozen records, never shared state.

A report names the very `Job` that was claimed: after a lost lease the same id may come back as another attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jobs.job import Job, JobWarning
from pipelines.engine.engine import Engine
from pipelines.engine.sample import Saved
from pipelines.masks import Box
from pipelines.planning import Stages

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Kept:
    """What is put back around a mask: the picture in the size that is answered with, and the box of it that was drawn."""

    picture: Pixels  # [H, W, 3]
    mask: Pixels  # [H, W]
    box: Box


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a job begins with, in the size that is drawn."""

    picture: Pixels  # [H, W, 3]
    mask: Pixels | None  # [H, W], 255 where it is drawn
    kept: Kept | None = None  # where that is not just this

    @property
    def around(self) -> Kept | None:
        """What is put back around what was drawn."""
        if self.kept or self.mask is None:
            return self.kept
        height, width = self.mask.shape
        return Kept(self.picture, self.mask, Box(0, 0, width, height))


@dataclass(frozen=True, slots=True)
class Draw:
    """To the thread: draw every image of this job that is not `drawn` yet, from where `saved` left it."""

    job: Job
    saved: Mapping[int, Saved] = field(default_factory=dict)
    drawn: frozenset[int] = frozenset()
    inputs: Inputs | None = None
    control: Pixels | None = None  # what its ControlNet is shown [H, W, 3], of any size


@dataclass(frozen=True, slots=True)
class Save:
    """To the thread: export this job between two ticks; it goes on."""

    job: Job


@dataclass(frozen=True, slots=True)
class Drop:
    """To the thread: forget this job before the next tick."""

    job: Job


@dataclass(frozen=True, slots=True)
class Hold:
    """To the thread: jobs of this model may come."""

    model: str
    stages: Stages
    engine: Engine


@dataclass(frozen=True, slots=True)
class Forget:
    """To the thread: let go of this model, of which there are no jobs; `gone` is set then."""

    model: str
    gone: threading.Event


@dataclass(frozen=True, slots=True)
class Advanced:
    """From the thread: image `index` has `done` U-Net evaluations behind it."""

    job: Job
    index: int
    done: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """From the thread: what image `index` looks like `at` so many evaluations, one pixel per latent cell [h, w, 3]."""

    job: Job
    index: int
    pixels: Pixels
    at: int


@dataclass(frozen=True, slots=True)
class Exported:
    """From the thread: where every image in flight stands; images that wait for their first row are left out."""

    job: Job
    images: Mapping[int, Saved]


@dataclass(frozen=True, slots=True)
class Measured:
    """From the thread: what one U-Net evaluation of one image of this size costs at present, in seconds of the device."""

    model: str
    width: int
    height: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Spent:
    """From the thread, of jobs that are traced: what it did for image `index`, and when (monotonic seconds)."""

    job: Job
    what: str  # encode, steps or decode
    index: int
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Warned:
    """From the thread: something the client should know although the job runs."""

    job: Job
    warning: JobWarning


@dataclass(frozen=True, slots=True)
class Drawn:
    """From the thread: image `index` is finished [H, W, 3]; `seconds` of U-Net time went into this job so far."""

    job: Job
    index: int
    pixels: Pixels
    seconds: float


@dataclass(frozen=True, slots=True)
class Broken:
    """From the thread: the job cannot be drawn; its other images are dropped already."""

    job: Job
    code: str
    message: str
    cause: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Crashed:
    """From the thread: it is dead, and the process must go too."""

    cause: BaseException


Command = Draw | Save | Drop | Hold | Forget
Report = Advanced | Previewed | Exported | Measured | Spent | Warned | Drawn | Broken | Crashed
