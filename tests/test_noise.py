"""NormalStream against torch's CPU generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.noise import NormalStream

SMALL = [(1,), (3,), (15,), (2, 7), (), (0,)]  # fewer than sixteen: torch's other path, with a cached half
LARGE = [(16,), (17,), (31,), (32,), (33,), (1, 4, 8, 8), (4, 5, 7), (1, 4, 64, 64), (100_003,)]


def expected(seed, shapes):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
@pytest.mark.parametrize("shapes", [LARGE, SMALL, LARGE[::-1] + SMALL + LARGE, SMALL[:1] + LARGE[:2] + SMALL[:2] + LARGE[1:3]], ids=len)
def test_successive_draws_equal_torch(seed, shapes):
    stream = NormalStream(seed)
    for shape, theirs in zip(shapes, expected(seed, shapes), strict=True):
        ours = stream.draw(shape)
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-7)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=5))
def test_any_shapes_equal_torch(seed, shapes):
    stream = NormalStream(seed)
    for shape, theirs in zip(shapes, expected(seed, shapes), strict=True):
        np.testing.assert_allclose(stream.draw(shape), theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize("shapes", [[(1, 4, 8, 8)], [(3,)], [(17,), (5,), (20,)]])
def test_skipping_is_drawing(shapes):
    drawn, skipped = NormalStream(7), NormalStream(7)
    for shape in shapes:
        drawn.draw(shape)
    skipped.skip(*shapes)
    np.testing.assert_array_equal(drawn.draw((2, 3, 5)), skipped.draw((2, 3, 5)))


def test_streams_are_independent_and_normal():
    one, two = NormalStream(3), NormalStream(4)
    a, b = one.draw((200_000,)).astype(np.float64), two.draw((200_000,)).astype(np.float64)
    bound = 5 / math.sqrt(a.size)  # five standard errors
    assert abs(a.mean()) < bound and abs(a.std() - 1) < bound and abs((a * b).mean()) < bound
    assert abs((a**4).mean() - 3) < 20 * bound


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_outside_32_bits_are_refused(seed):
    with pytest.raises(ValueError, match="from 0 to 4294967295"):
        NormalStream(seed)
