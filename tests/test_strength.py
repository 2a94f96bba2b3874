"""Strength, start and end: a part of a schedule's levels, counted as diffusers counts, evaluated as announced."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st

from oracles import EPSILON, ZERO_SNR, Mixture, noises, run_table
from pipelines.ladder import Ladder
from pipelines.params import kept_steps
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import catalog, compile_table
from pipelines.step_table import STATE

LADDERS = [Ladder.from_config(EPSILON), Ladder.from_config(ZERO_SNR)]


@given(st.integers(1, 150), st.integers(0, 100))
def test_strength_counts_as_diffusers_does(steps: int, percent: int) -> None:
    strength = percent / 100
    theirs = SimpleNamespace(scheduler=SimpleNamespace(timesteps=np.arange(steps), order=1))
    timesteps, left = StableDiffusionImg2ImgPipeline.get_timesteps(theirs, steps, strength, "cpu")
    assert len(timesteps) == left
    if left == 0:
        with pytest.raises(ValueError, match="no step"):
            kept_steps(steps, strength=strength)
    else:
        assert kept_steps(steps, strength=strength) == (timesteps[0], steps)


@pytest.mark.parametrize(("fractions", "message"), [
    ({"strength": 1.5}, "strength must lie between 0 and 1"),
    ({"start": -0.1}, "start must lie"),
    ({"end": float("nan")}, "end must lie"),
    ({"strength": 0.5, "start": 0.5}, "give one of them"),
    ({"start": 0.5, "end": 0.5}, "no step of 10 is left"),
    ({"strength": 0.05}, "no step of 10 is left"),
])  # fmt: skip
def test_parts_that_cannot_be_are_refused(fractions: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_steps(10, **fractions)
    with pytest.raises(ValueError, match=message):
        compile_table(LADDERS[0], "euler", "karras", 10, **fractions)


@pytest.mark.parametrize("ladder", LADDERS, ids=["epsilon", "zero_snr"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_part_begins_and_ends_at_the_levels_of_the_whole(sampler: str, ladder: Ladder) -> None:
    spans = sampler == "dpm_fast"  # its solver steps span several levels, divided anew in a part; the first is one of them
    whole, kept = compile_table(ladder, "restart" if spans else sampler, "trailing", 10), 1 if spans else 6
    part = compile_table(ladder, sampler, "trailing", 10, strength=0.6)
    for column in ("alpha", "sigma", "timestep"):
        first, of_whole = (getattr(table, column)[np.unique(table.step, return_index=True)[1]] for table in (part, whole))
        np.testing.assert_array_equal(first[:kept], of_whole[4:][:kept])
    [info] = [info for info in catalog(ladder) if info.id == sampler]
    assert len(part) == info.evaluations(6)
    for start, end in ((0.0, 0.5), (0.3, 0.8)):
        first, last = kept_steps(10, start=start, end=end)
        cut = compile_table(ladder, sampler, "trailing", 10, start=start, end=end)
        assert len(cut) == info.evaluations(last - first, ends_open=True) and cut.step[-1] == last - first - 1


@pytest.mark.parametrize("ladder", LADDERS, ids=["epsilon", "zero_snr"])
@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_two_parts_one_after_the_other_are_the_whole(sampler: str, ladder: Ladder) -> None:
    """For a sampler without history, handing the picture on in the middle changes nothing."""
    model = Mixture().network(ladder)
    shape = (1, 4, 4, 4)
    path = run_table(compile_table(ladder, sampler, "leading", 10), model, noises(shape))
    above = run_table(compile_table(ladder, sampler, "leading", 10, end=0.4), model, noises(shape))
    np.testing.assert_array_equal(above, path[:5])
    below = compile_table(ladder, sampler, "leading", 10, start=0.4)
    registers = dict.fromkeys(STATE, np.zeros(shape)) | {"x": above[-1]}
    for row, timestep in enumerate(below.timestep.tolist()):
        denoised = below.c_skip[row] * registers["x"] + below.c_out[row] * model(registers["x"], timestep)
        registers = below.advance(row, registers | {"denoised": denoised, "denoised_uncond": denoised, "noise": np.zeros(shape)})
    np.testing.assert_allclose(registers["x"], path[-1], rtol=1e-12)
