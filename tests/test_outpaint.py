"""Outpainting: a picture grows at its sides, and the seam is drawn anew."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.known import Known
from pipelines.loading import Checkpoint
from pipelines.masks import extended, latent_mask, put_back
from pipelines.params import GenerationParams
from pipelines.text_to_image import encode_picture, generate
from tests import test_drawing
from tests.picture_samples import as_file, sample_mask, sample_picture
from tests.test_drawing import Studio
from workers.inputs import _decoded, mask_pixels
from workers.messages import Draw, Drawn

checkpoint, studio = test_drawing.checkpoint, test_drawing.studio


@pytest.mark.parametrize("sides", [{"right": 32}, {"left": 8, "top": 16}, {"left": 8, "top": 24, "right": 16, "bottom": 40}])
@pytest.mark.parametrize("overlap", [0, 6])
def test_what_is_new_is_drawn_and_a_seam_with_it(sides: dict[str, int], overlap: int) -> None:
    picture = sample_picture(64, 48)
    whole, mask = extended(picture, sides, overlap)
    left, top = sides.get("left", 0), sides.get("top", 0)
    assert whole.shape == (48 + top + sides.get("bottom", 0), 64 + left + sides.get("right", 0), 3) and whole.shape[:2] == mask.shape
    np.testing.assert_array_equal(whole[top : top + 48, left : left + 64], picture)
    inside = mask[top : top + 48, left : left + 64]
    for side, edge in (("left", inside[:, :overlap]), ("right", inside[:, 64 - overlap :]), ("top", inside[:overlap])):
        assert (edge == 255).all() == (side in sides or not overlap)
    assert (inside[overlap : 48 - overlap, overlap : 64 - overlap] == 0).all()
    outside = mask.copy()
    outside[top : top + 48, left : left + 64] = 255
    assert (outside == 255).all() and set(np.unique(mask)) == {0, 255}


def test_the_thread_draws_around_a_picture(checkpoint: Checkpoint, studio: Studio) -> None:
    """The slow loop beside it; what lies two feathers inside is the picture's own."""
    picture = sample_picture(48, 64)
    changes = {
        "kind": "outpaint",
        "image": "k",
        "outpaint": {"left": 16, "right": 32},
        "mask_feather": 5,
        "width": 96,
        "sampler": "euler_a",
    }
    one = test_drawing.job("one", **changes)
    given = _decoded(one.params, as_file(picture), None)
    studio.thread.put(Draw(one, inputs=given))
    [drawn] = studio.until(Drawn, one)
    whole, mask = extended(picture, one.params.outpaint, 5)
    known = Known(encode_picture(checkpoint, whole), latent_mask(mask, (8, 12)), from_noise=True)
    wanted = put_back(generate(checkpoint, one.params, 0, known), whole, mask, 5)
    assert np.abs(drawn.pixels.astype(int) - wanted).max() <= 2
    np.testing.assert_array_equal(drawn.pixels[:, 16 + 10 : 64 - 10], picture[:, 10:-10])
    assert (drawn.pixels[:, :16] != whole[:, :16]).any() and (drawn.pixels[:, 64:] != whole[:, 64:]).any()


def test_a_picture_that_is_its_own_mask_is_asked_for_its_transparency_alone() -> None:
    opaque = np.dstack([sample_picture(), np.full((64, 64), 255, np.uint8)])
    clear = np.dstack([sample_picture(), 255 - sample_mask()])
    assert not mask_pixels(as_file(opaque), (64, 64), of_itself=True).any()
    np.testing.assert_array_equal(mask_pixels(as_file(clear), (64, 64), of_itself=True), sample_mask())
    params: GenerationParams = test_drawing.job("x", kind="inpaint", image="k", mask="k").params
    found = _decoded(params, as_file(opaque), as_file(opaque))
    assert found.mask is not None and not found.mask.any()
