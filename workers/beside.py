"""The picture that is being decoded beside the ticks: one at a time, begun when it is first in line."""

from __future__ import annotations

import time
from typing import Any

from jobs.job import JobWarning
from pipelines.planning import Decoding, Seen, Stages, decoded
from workers.messages import Pixels

Array = Any

TOLD = {
    Seen.FINE: None,
    Seen.OVERFLOWED: JobWarning("vae_overflow", "The VAE overflowed; the picture was decoded again in float32."),
    Seen.BLACKENED: JobWarning("vae_black", "The VAE gave a picture that is all black; it was decoded again in float32, where it is not."),
    Seen.BLACK: JobWarning("picture_black", "Every pixel of a picture is black, in float32 too: this is what the model drew."),
}


class Beside:
    """`began` is when the present one was, in monotonic seconds."""

    def __init__(self) -> None:
        self._what: object = None
        self._decoding: Decoding | None = None
        self.began = 0.0

    def ready(self, what: object, stages: Stages, latents: Array, *, wait: bool) -> bool:
        """Begin with it if that was not done; whether it is there or may be waited for. Another one that was begun is let go."""
        if self._what is not what or self._decoding is None:
            self.began = time.monotonic()
            self._what, self._decoding = what, stages.begin(latents)
        return wait or self._decoding.ready

    def take(self, stages: Stages, latents: Array) -> tuple[Pixels, JobWarning | None]:
        """As `decoded`, with what is told of it. Raises FloatingPointError."""
        begun, self._what, self._decoding = self._decoding, None, None
        pixels, seen = decoded(stages, latents, begun)
        return pixels, TOLD[seen]

    def forget(self) -> None:
        self._what, self._decoding = None, None
