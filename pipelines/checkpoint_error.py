"""Why a checkpoint cannot run here."""

from __future__ import annotations

from typing import Literal

Code = Literal[
    "not_found", "not_cached", "not_diffusers", "bad_config", "unsupported_pipeline", "refiner", "unsupported_unet", "unsupported_vae",
    "pickle", "weights_missing", "weights_truncated", "weights_unreadable", "weights_misfit", "weights_not_finite", "needs_torch",
    "bad_solver",
]  # fmt: skip


class CheckpointError(ValueError):
    """It is no checkpoint that this program can run: `code` for programs, the message says what is wrong with what."""

    def __init__(self, message: str, code: Code = "bad_config") -> None:
        super().__init__(" ".join(message.split()))  # one line, whatever the libraries say
        self.code: Code = code
