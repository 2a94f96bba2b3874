"""What the engine tells its caller. Events are the only thing that leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.memory import lacks_memory

Array = Any


@dataclass(frozen=True, slots=True)
class Progress:
    """A sample went one row further: `done` of `total` U-Net evaluations."""

    sample_id: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Preview:
    """The estimate of the clean latent `at` so many U-Net evaluations, for samples that asked to be watched."""

    sample_id: str
    denoised: Array  # [C, h, w]
    at: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last row is done; the sample has left the engine."""

    sample_id: str
    latents: Array  # [C, h, w]


@dataclass(frozen=True, slots=True)
class Failed:
    """This sample alone failed and has left the engine. Codes: not_finite, out_of_memory, engine_error."""

    sample_id: str
    code: str
    message: str
    cause: BaseException | None = None


Event = Progress | Preview | Finished | Failed


def describe(error: BaseException, otherwise: str) -> tuple[str, str]:
    """Code and message of what an image failed of; a lack of memory is told apart from the rest."""
    if lacks_memory(error):
        return "out_of_memory", "The device ran out of memory for this image; ask for a smaller size."
    if isinstance(error, FloatingPointError):
        return "not_finite", str(error)
    return "engine_error", otherwise
