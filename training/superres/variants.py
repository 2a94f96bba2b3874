"""What is compared: each variant is a row of data over one network, one loop and one sampler."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.superres import SHIFT_STEPS
from pipelines.tiny_unet import DEFAULT, Shape

REPORTED = ("about", "steps", "mean_at")  # what of a variant changes no weight
CONTINUOUS = 1000  # times of a schedule without steps of its own


@dataclass(frozen=True)
class Variant:
    """`steps` are what the table reports; the parameters of `shape` and `base` are at most 0.15 million together."""

    about: str
    schedule: str = "cosine"
    ladder: int = CONTINUOUS  # times that are trained; 1 = the noisiest alone, which is regression
    fresh: bool = False  # noise at every step, from the posterior, instead of DDIM
    shape: Shape = DEFAULT
    base: Shape | None = None  # of a plain network that is trained beside, and whose picture is what the residual is of
    teacher: str | None = None  # distilled from that variant's deterministic sampler
    share: float = 1.0  # pictures seen, as a multiple of what the others see
    steps: tuple[int, ...] = (1, 5)
    mean_at: tuple[int, ...] = (1,)  # the numbers of steps of which the mean of several samples is told, too


VARIANTS = {
    "cosine": Variant("TinyUNet, DDIM, cosine schedule", steps=(1, 2, 3, 4, 5), mean_at=(1, 5)),
    "linear": Variant("TinyUNet, DDIM, linear schedule", "linear", steps=(1, 2, 3, 4, 5), mean_at=(1, 5)),
    "longer": Variant("TinyUNet, DDIM, linear schedule, trained three times as long", "linear", share=3.0),
    "resshift": Variant("ResShift-style: the residual is shifted, 15 steps", "shift", SHIFT_STEPS, fresh=True, steps=(5, 15), mean_at=(5,)),
    "resdiff": Variant(
        "ResDiff-style: a CNN first, diffusion of what it lacks",
        shape=Shape(blocks=(1, 1, 2)), base=Shape(state=0, width=32, deep=0, blocks=(1, 0, 0)),
    ),
    "sinsr": Variant(
        "SinSR-style: ResShift's sampler in one step", "shift", SHIFT_STEPS, teacher="resshift", share=0.1, steps=(1,)
    ),
    "regression": Variant("the same network as plain regression, no diffusion", ladder=1, steps=(1,)),
}  # fmt: skip
