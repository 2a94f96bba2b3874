"""Ladders, the paper's gamma(t), and levels: against diffusers, the written formulas, and known figures."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import diffusers
import numpy as np
import pytest

from oracles import CONFIGS, EPSILON, REFERENCES, ZERO_SNR, accepts, scheduler
from pipelines import schedules
from pipelines.gamma import deviation, forward_process, gamma_cosine, gamma_sigmoid, gamma_simple_linear, logsnr
from pipelines.ladder import Ladder
from pipelines.level import Convention
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.schedule_list import SCHEDULES
from tests import schedule_table

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # the reference, on numpy 2

SD, FLAWLESS = Ladder.from_config(EPSILON), Ladder.from_config(ZERO_SNR)

# --- ladders --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    EPSILON,
    {},
    {"beta_schedule": "linear", "num_train_timesteps": 500},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(1e-4, 0.03, 200).tolist(), "num_train_timesteps": 200},
], ids=lambda c: c.get("beta_schedule", "betas"))  # fmt: skip
def test_ladder_is_the_reference_s_to_the_bit(config):
    theirs = diffusers.DDIMScheduler(**config).alphas_cumprod.double().numpy()
    np.testing.assert_array_equal(Ladder.from_config(config).alphas_cumprod, theirs)


@pytest.mark.parametrize("config", [ZERO_SNR, {"beta_schedule": "scaled_linear"}, {"beta_schedule": "squaredcos_cap_v2"}])
def test_zero_terminal_snr_is_the_reference_s(config):
    config = {**config, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    ladder = Ladder.from_config(config)
    np.testing.assert_allclose(ladder.alphas_cumprod, diffusers.DDIMScheduler(**config).alphas_cumprod.numpy(), rtol=1e-6, atol=1e-7)
    assert ladder.zero_snr and ladder.alphas_cumprod[-1] == 0.0
    assert ladder.ratios[-1] == pytest.approx(4096, rel=1e-6) and np.all(np.diff(ladder.ratios) > 0)


def test_ladder_of_stable_diffusion():
    assert SD.ratios[-1] == pytest.approx(14.6146, abs=1e-4) and SD.ratios[0] == pytest.approx(0.0292, abs=1e-4)
    assert math.sqrt(SD.alphas_cumprod[-1]) == pytest.approx(0.0683, abs=1e-4)


def test_ladders_compare_by_content():
    assert Ladder.from_config(dict(EPSILON)) == SD and hash(Ladder.from_config(dict(EPSILON))) == hash(SD)
    assert Ladder.from_config(EPSILON | {"steps_offset": 0}) != SD and SD != FLAWLESS and SD != "ladder"


@pytest.mark.parametrize(("config", "message"), [
    ({"beta_schedule": "wavy"}, "beta_schedule 'wavy'"),
    ({"prediction_type": "score"}, "prediction_type 'score'"),
    ({"timestep_spacing": "sparse"}, "timestep_spacing 'sparse'"),
    ({"rescale_betas_zero_snr": True}, "epsilon cannot have zero terminal SNR"),
    ({"trained_betas": [0.1, 0.5, 1.0]}, "epsilon cannot have zero terminal SNR"),
])  # fmt: skip
def test_ladders_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        Ladder.from_config(config)


def test_timesteps_of_levels_invert_levels_of_timesteps():
    whole = np.arange(1000.0)
    np.testing.assert_allclose(SD.timestep_at(SD.ratio_at(whole)), whole, atol=1e-4)
    assert SD.timestep_at(np.array([1e-3, 1e3])).tolist() == [0.0, 999.0]


# --- gamma(t), arXiv 2301.10972 ----------------------------------------------------------------------------------------------


def written_cosine(t, start, end, tau, clip_min=1e-9):
    """Algorithm 1, letter by letter."""
    v_start = math.cos(start * math.pi / 2) ** (2 * tau)
    v_end = math.cos(end * math.pi / 2) ** (2 * tau)
    output = math.cos((t * (end - start) + start) * math.pi / 2) ** (2 * tau)
    return min(max((v_end - output) / (v_end - v_start), clip_min), 1.0)


def written_sigmoid(t, start, end, tau, clip_min=1e-9):
    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    v_start, v_end = sigmoid(start / tau), sigmoid(end / tau)
    output = sigmoid((t * (end - start) + start) / tau)
    return min(max((v_end - output) / (v_end - v_start), clip_min), 1.0)


TIMES = np.linspace(0, 1, 501)


@pytest.mark.parametrize("options", [(0, 1, 1), (0.2, 1, 1), (0.2, 1, 2), (0.2, 1, 3), (0, 0.9, 0.5)])
def test_cosine_is_the_paper_s(options):
    np.testing.assert_allclose(gamma_cosine(TIMES, *options), [written_cosine(t, *options) for t in TIMES], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("options", [(-3, 3, 1), (-3, 3, 0.9), (-3, 3, 1.1), (0, 3, 0.3), (0, 3, 0.5), (0, 3, 1)])
def test_sigmoid_is_the_paper_s(options):
    np.testing.assert_allclose(gamma_sigmoid(TIMES, *options), [written_sigmoid(t, *options) for t in TIMES], rtol=1e-9, atol=1e-15)


def test_simple_linear_is_the_paper_s():
    np.testing.assert_array_equal(gamma_simple_linear(TIMES), np.clip(1 - TIMES, 1e-9, 1.0))


@pytest.mark.parametrize(("gamma", "figures"), [
    (gamma_simple_linear, (2.94, 2.2, 1.1, 0, -1.1, -2.2, -2.94)),
    (gamma_cosine, (5.08, 3.69, 1.76, 0, -1.76, -3.69, -5.08)),
    (lambda t: gamma_cosine(t, 0.2, 1, 1), (3.07, 2.26, 0.96, -0.48, -2.14, -4.04, -5.43)),
    (lambda t: gamma_cosine(t, 0.2, 1, 3), (1.93, 1.05, -0.49, -2.83, -6.74, -12.2, -16.3)),
    (gamma_sigmoid, (4.05, 3.19, 1.74, 0, -1.74, -3.19, -4.05)),
    (lambda t: gamma_sigmoid(t, 0, 3, 0.3), (1.13, 0.15, -1.72, -4.31, -6.89, -8.77, -9.74)),
])  # fmt: skip
def test_logsnr_figures(gamma, figures):
    found = logsnr(gamma(np.array([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95])))
    np.testing.assert_allclose(found, figures, atol=0.051, rtol=0)
    assert np.all(abs(found[:6] - figures[:6]) < 0.0051 + 0.05 * (abs(found[:6]) > 10))


def test_gamma_is_clipped_where_the_paper_clips():
    assert gamma_cosine(np.array(1.0)) == 1e-9 and gamma_simple_linear(np.array(1.0)) == 1e-9 and gamma_sigmoid(np.array(0.0)) == 1.0


# --- forward process and variance ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b", [0.1, 0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gamma", [1e-9, 0.1, 0.5, 0.9, 1.0])
def test_normalised_forward_process_has_unit_variance(b, gamma):
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 400_000))
    assert forward_process(x0, noise, gamma, b).std() == pytest.approx(deviation(gamma, b), rel=5e-3)
    assert forward_process(x0, noise, gamma, b, normalize=True).std() == pytest.approx(1.0, rel=5e-3)


def test_roots_are_where_they_must_be():
    """gamma without its root, and the variance in place of the deviation, do not give unit variance."""
    gamma, b = 0.7, 0.5
    assert gamma + (1 - gamma) == pytest.approx(1.0) != gamma**2 + (1 - gamma)
    variance = gamma * b**2 + (1 - gamma)
    assert deviation(gamma, b) == pytest.approx(math.sqrt(variance)) and variance / variance**2 != pytest.approx(1.0)


def test_input_scale_shifts_logsnr_by_twice_its_logarithm():
    """After normalisation b is another gamma: sqrt(g') x0 + sqrt(1 - g') noise with logSNR(g') = logSNR(g) + 2 ln b."""
    rng, gamma, b = np.random.default_rng(1), np.linspace(0.01, 0.99, 9)[:, None], 0.4
    x0, noise = rng.standard_normal((2, 9, 5))
    shifted = 1 / (1 + np.exp(-(logsnr(gamma) + 2 * math.log(b))))
    np.testing.assert_allclose(forward_process(x0, noise, gamma, b, normalize=True), forward_process(x0, noise, shifted), atol=1e-12)


# --- levels ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "dpmpp_2m", "unipc"])
def test_timesteps_are_the_reference_s_for_any_number_of_steps(sampler, spacing):
    reference = scheduler(sampler, EPSILON, timestep_spacing=spacing)
    for steps in range(2, 151):
        reference.set_timesteps(steps)
        ours = compile_table(SD, sampler, spacing, steps).timestep
        np.testing.assert_allclose(ours, reference.timesteps.numpy()[:steps], rtol=1e-7, err_msg=str(steps))


@pytest.mark.parametrize("sampler", [s for s in REFERENCES if s not in ("lcm", "tcd") and accepts(s, "timestep_spacing")])
def test_auto_is_the_checkpoint_s_spacing_or_the_reference_s_own(sampler):
    own = scheduler(sampler, EPSILON).config.timestep_spacing
    np.testing.assert_array_equal(compile_table(SD, sampler, "auto", 9).update, compile_table(SD, sampler, own, 9).update)
    told = Ladder.from_config(EPSILON | {"timestep_spacing": "trailing"})
    np.testing.assert_array_equal(compile_table(told, sampler, "auto", 9).update, compile_table(SD, sampler, "trailing", 9).update)


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_auto_of_consistency_samplers_is_their_distilled_timesteps(sampler):
    for steps in range(1, 51):
        reference = scheduler(sampler, EPSILON)
        reference.set_timesteps(steps)
        np.testing.assert_array_equal(compile_table(SD, sampler, "auto", steps).timestep, reference.timesteps.numpy())


def ratios(table):
    return table.sigma / np.maximum(table.alpha, 1e-300)


@pytest.mark.parametrize(("sampler", "spacing", "first", "last"), [
    ("euler", "leading", 11.03, 0.0413), ("dpmpp_2m", "leading", 14.61, 0.0292), ("euler", "trailing", 14.61, 0.223),
])  # fmt: skip
def test_karras_spans_what_the_reference_spans(sampler, spacing, first, last):
    found = ratios(compile_table(Ladder.from_config(EPSILON | {"timestep_spacing": spacing}), sampler, "karras", 20))
    assert found[0] == pytest.approx(first, rel=2e-3) and found[-1] == pytest.approx(last, rel=2e-3)
    ramp = found ** (1 / 7)
    np.testing.assert_allclose(np.diff(ramp), np.diff(ramp).mean(), rtol=1e-9)


def test_exponential_has_even_logsnr():
    steps = np.diff(np.log(ratios(compile_table(SD, "euler", "exponential", 12))))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-9)


def test_simple_is_trailing_where_the_steps_divide_the_ladder():
    for steps in (2, 5, 10, 20, 50):
        one, two = (compile_table(SD, "dpmpp_2m", schedule, steps) for schedule in ("simple", "trailing"))
        np.testing.assert_array_equal(one.update, two.update)
    assert compile_table(SD, "dpmpp_2m", "simple", 7).timestep.tolist() == [999, 857, 714, 571, 428, 285, 142]


def test_first_noise_is_scaled_as_in_the_reference():
    for schedule, init in (("linspace", 0.99767), ("trailing", 0.99767), ("leading", 1.0)):
        assert compile_table(SD, "euler", schedule, 20).init == pytest.approx(init, abs=1e-5)
        assert compile_table(SD, "dpmpp_2m", schedule, 20).init == compile_table(SD, "ddim", schedule, 20).init == 1.0


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["trailing", "linspace", "karras", "exponential", "simple", "simple_linear", "cosine", "sigmoid"])
def test_zero_terminal_snr_is_exact_where_the_form_is_finite(sampler, schedule):
    table = compile_table(FLAWLESS, sampler, schedule, 10)
    if sampler in ("ddim", "ddpm", "lcm", "tcd"):
        assert table.alpha[0] == 0.0 and table.sigma[0] == 1.0
    else:
        assert table.alpha[0] == pytest.approx(2.0**-12, rel=1e-6)


@pytest.mark.parametrize("ladder", [SD, FLAWLESS], ids=list(CONFIGS))
@pytest.mark.parametrize(("schedule", "gamma", "options"), [
    ("simple_linear", gamma_simple_linear, {}),
    ("cosine", gamma_cosine, {}),
    ("cosine", gamma_cosine, {"start": 0.2, "tau": 3.0}),
    ("sigmoid", gamma_sigmoid, {"tau": 0.9}),
    ("sigmoid", gamma_sigmoid, {"start": 0.0, "tau": 0.3}),
])  # fmt: skip
def test_paper_schedules_start_where_they_meet_the_ladder(ladder, schedule, gamma, options):
    for steps in (1, 3, 30, 100):
        table = compile_table(ladder, "dpmpp_2m", schedule, steps, {}, options)
        found = table.alpha**2
        assert found[0] == pytest.approx(max(ladder.alphas_cumprod[-1], 2**-24)) and np.all(np.diff(found) > 0)
        start = time_of(lambda t: gamma(t, **options, clip_min=0.0), found[0])
        np.testing.assert_allclose(found, gamma(start * (1 - np.arange(steps) / steps), **options, clip_min=0.0), rtol=1e-6)
        inside = ratios(table) >= ladder.ratios[0]
        np.testing.assert_allclose(ladder.timestep_at(ratios(table))[inside], table.timestep[inside], atol=1e-6)


def time_of(gamma, value):
    """Where gamma reaches a value, on a fine grid of t."""
    low, high = 0.0, 1.0
    for _ in range(5):
        grid = np.linspace(low, high, 10_001)
        at = np.searchsorted(-gamma(grid), -value)
        low, high = grid[max(at - 1, 0)], grid[min(at, 10_000)]
    return high


def test_schedules_tell_their_curves():
    for ladder in (SD, FLAWLESS):
        for info in schedules.catalog(ladder):
            assert len(info.curve) == (0 if info.id == "custom" else 16) and np.all(np.diff(info.curve) > 0), info.id
            assert json.loads(json.dumps(asdict(info), allow_nan=False))["id"] == info.id
    aliases = {info.id: info.aliases for info in schedules.catalog(SD)}
    assert aliases["linspace"][:2] == ("normal", "uniform")


def test_references_know_every_setting_that_is_compared():
    assert accepts("euler", "use_karras_sigmas") and not accepts("ddim", "use_karras_sigmas")


@pytest.mark.parametrize("steps", [1, 2, 20, 300, 998])
@pytest.mark.parametrize("name", [id for id, one in SCHEDULES.items() if one.options and not one.for_flow and id != "custom"])
def test_every_corner_of_the_options_has_distinct_levels(name: str, steps: int) -> None:
    """What the gateway accepts can be drawn: the card's ranges are the whole rule."""
    [info] = [s for s in schedules.catalog(SD) if s.id == name]
    corners = itertools.product(*(o.choices or (o.minimum, o.default, o.maximum) for o in info.options.values()))
    for corner in corners:
        for ladder in (SD, FLAWLESS):
            for convention in (Convention(), Convention(exact=True, full_range=True)):
                schedules.levels(ladder, convention, name, steps, dict(zip(info.options, corner, strict=True)))


def test_the_page_lists_every_schedule_with_its_options() -> None:
    assert schedule_table.PAGE.read_text() == schedule_table.written(), "run `python -m tests.schedule_table`"
