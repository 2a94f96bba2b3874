"""Pictures that are enlarged: drawn small, then made larger and, in a second pass, partly drawn anew.

The second pass is image-to-image of what the first drew, so one job is what two are: draw, and send the picture back in larger. To the
queue, and in checkpoints, the rows of both are one count.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from pipelines.engine.sample import Saved
from pipelines.known import Known, Latents, Pixels, Posterior
from pipelines.params import GenerationParams
from pipelines.planning import Stages, decoded, on_host, table_for
from pipelines.resample import bilinear

Array = Any


@dataclass(frozen=True, slots=True)
class Second:
    """What the second pass of one image begins with. `latents` are those of the first, while the image waits for a slot."""

    known: Known
    before: int  # rows of the first pass
    latents: Latents | None = None


def rows_of(stages: Stages, params: GenerationParams) -> tuple[int, ...]:
    """Of each pass. Raises ValueError on an impossible combination."""
    return tuple(len(table_for(stages, one)) for one in params.passes)


def enlarged(stages: Stages, params: GenerationParams, latents: Array, index: int, before: int) -> Second:
    """From the latents of the first pass [C, h, w] of an image to the second: as pixels through the VAE, or as they are. `before` are its
    rows.
    """
    size, found = params.passes[1], on_host(latents)
    if params.upscale["method"] == "latent":
        mean = bilinear(found, stages.latent_shape(size.width, size.height)[1:])
        return Second(Known(Posterior(mean, np.zeros_like(mean))), before, found)
    small, _ = decoded(stages, latents)
    return Second(Known(stages.encode_picture(larger(stages, params, small, index))), before, found)


def larger(stages: Stages, params: GenerationParams, small: Pixels, index: int) -> Pixels:
    """Pixels of the size that was asked for."""
    if params.upscale["method"] == "superres":
        return stages.enlarge(small, params.image_seed(index))
    size = params.upscale["width"], params.upscale["height"]
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.LANCZOS))


def gone_on(stages: Stages, params: GenerationParams, before: int) -> Second:
    """The same for an image that is past its beginning: what was drawn from is not read again, only drawn for."""
    size = params.passes[1]
    nothing = np.zeros(stages.latent_shape(size.width, size.height), np.float32)
    return Second(Known(Posterior(nothing, nothing)), before)


def of_the_whole(saved: Saved, before: int, rows: tuple[int, ...]) -> Saved:
    """A state of one pass, that `before` rows precede, as a state of the image."""
    return replace(saved, row=saved.row + before, rows=sum(rows))


def of_a_pass(saved: Saved, rows: tuple[int, ...]) -> tuple[int, Saved]:
    """The inverse: how many rows precede, and the state. Where a pass ends, the state is its last."""
    if saved.rows != sum(rows) or saved.row <= rows[0]:
        return 0, replace(saved, rows=rows[0] if saved.rows == sum(rows) else saved.rows)
    return rows[0], replace(saved, row=saved.row - rows[0], rows=rows[1])
