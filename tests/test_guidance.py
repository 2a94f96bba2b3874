"""The formulas of guidance against diffusers' guiders, whose code shares nothing with ours."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import array_api_compat.numpy
import array_api_compat.torch
import numpy as np
import pytest
import torch
from diffusers import guiders
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer

from pipelines import guidance, plain_guidance
from pipelines.guidance import Rows
from pipelines.guidance_list import catalog
from pipelines.guidance_plan import COLUMNS, plan

XP = array_api_compat.numpy
SHAPE = (3, 4, 6, 5)  # three rows
SCALES = (7.5, 1.5, 0.5)

# variant, its options, the tolerance of the reference: some of them go through float32
VARIANTS = [
    ("cfg", {}, 1e-6),
    ("cfg", {"rescale": 0.7}, 1e-6),
    ("cfg_zero_star", {}, 1e-5),
    ("cfg_zero_star", {"rescale": 0.3}, 1e-5),
    ("tcfg", {}, 1e-5),
    ("tcfg", {"rescale": 1.0}, 1e-5),
    ("apg", {}, 1e-6),
    ("apg", {"eta": 1.0}, 1e-6),
    ("apg", {"eta": 0.3, "norm_threshold": 5.0}, 1e-6),
    ("apg", {"norm_threshold": 1e4, "momentum": -0.5}, 1e-6),
    ("apg", {"eta": 0.5, "norm_threshold": 8.0, "momentum": 0.4}, 1e-6),
]


def some_rows(seed: int, options: dict[str, float], dtype: Any = np.float64) -> Rows:
    """Three rows that differ in every number; `uncond` resembles `cond`, as it does in a model."""
    rng = np.random.default_rng(seed)
    cond, other, x = (rng.standard_normal((3, math.prod(SHAPE[1:]))).astype(dtype) for _ in range(3))
    levels = np.array([[0.4, -0.9], [0.9, -0.4], [0.99, -0.1]], dtype)
    columns = np.zeros((3, len(COLUMNS)), dtype)
    columns[:, 0] = SCALES
    for name, value in options.items():
        columns[:, COLUMNS.index(name)] = value
    return Rows(cond, cond + 0.4 * other, None, x, levels[:, :1], levels[:, 1:], columns, np.zeros_like(x))


def reference(variant: str, scale: float, options: dict[str, float]) -> Any:
    """diffusers' guider with our options."""
    if variant == "apg":
        momentum, threshold, eta = options.get("momentum"), options.get("norm_threshold", 0.0), options.get("eta", 0.0)
        made = guiders.AdaptiveProjectedGuidance(scale - 1, momentum, threshold, eta=eta, use_original_formulation=True)
        made.momentum_buffer = MomentumBuffer(momentum) if momentum else None
    else:
        kinds = {
            "cfg": guiders.ClassifierFreeGuidance,
            "cfg_zero_star": guiders.ClassifierFreeZeroStarGuidance,
            "tcfg": guiders.TangentialClassifierFreeGuidance,
        }
        made = kinds[variant](scale, guidance_rescale=options.get("rescale", 0.0))
    return made


@pytest.mark.parametrize(("variant", "options", "tolerance"), VARIANTS)
def test_every_variant_is_that_of_diffusers(variant: str, options: dict[str, float], tolerance: float) -> None:
    """Three rows at once against one guider each, for three steps on end, so that momentum has something to remember."""
    theirs = [reference(variant, scale, options) for scale in SCALES]
    average = np.zeros((3, math.prod(SHAPE[1:])))
    for step in range(1, 4):
        rows = replace(some_rows(step, options), average=average)
        raw, average = guidance.combine(XP, rows, [variant] * 3)
        for i, guider in enumerate(theirs):
            guider.set_state(step, 10, torch.tensor(500 - step))
            given = [rows.cond[i], rows.uncond[i]]
            if variant == "apg":  # on denoised estimates
                given = [rows.c_skip[i] * rows.x[i] + rows.c_out[i] * out for out in given]
            wanted = guider.forward(*(torch.from_numpy(a).reshape(1, *SHAPE[1:]) for a in given))
            ours = rows.c_skip[i] * rows.x[i] + rows.c_out[i] * raw[i] if variant == "apg" else raw[i]
            np.testing.assert_allclose(ours, wanted.pred.numpy().reshape(-1), rtol=0, atol=tolerance * abs(ours).max())


@pytest.mark.parametrize(("variant", "options", "tolerance"), VARIANTS)
def test_the_slow_twin_says_the_same(variant: str, options: dict[str, float], tolerance: float) -> None:
    rows = some_rows(0, options)
    raw, average = guidance.combine(XP, rows, [variant] * 3)
    for i in range(3):
        n = dict(zip(COLUMNS, rows.columns[i].tolist(), strict=True))
        c, u, x = (torch.from_numpy(a[i].reshape(SHAPE[1:])) for a in (rows.cond, rows.uncond, rows.x))
        skip, out = rows.c_skip[i, 0], rows.c_out[i, 0]
        slow = plain_guidance.guide(variant, n, c, u, c, out * (c - u), skip * x + out * c, out)
        np.testing.assert_allclose(slow.numpy().reshape(-1), raw[i], rtol=0, atol=1e-6 * abs(raw[i]).max())
    assert np.any(average) == ("momentum" in options)


def test_rows_of_all_variants_at_once_are_those_of_each_alone_on_numpy_and_torch() -> None:
    """Bit for bit in float32, on either kind of array: sums over a picture are the same additions everywhere."""
    wanted = [(variant, options) for variant, options, _ in VARIANTS if "rescale" not in options]
    names = [variant for variant, _ in wanted]
    parts = [some_rows(i, options, np.float32) for i, (_, options) in enumerate(wanted)]
    parts = [replace(part, perturbed=some_rows(50 + i, {}, np.float32).cond) for i, part in enumerate(parts)]
    fields = ("cond", "uncond", "perturbed", "x", "c_skip", "c_out", "columns", "average")
    crowd = Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
    crowd.columns[::2, COLUMNS.index("perturbed")] = 2.5
    variants = [name for name in names for _ in range(3)]
    together = guidance.combine(XP, crowd, variants)
    on_torch = guidance.combine(array_api_compat.torch, Rows(*(torch.from_numpy(getattr(crowd, name)) for name in fields)), variants)
    for ours, other in zip(together, on_torch, strict=True):
        np.testing.assert_array_equal(ours, other.numpy())
    for i, variant in enumerate(variants):
        one = Rows(*(getattr(crowd, name)[i : i + 1] for name in fields))
        for ours, alone in zip(together, guidance.combine(XP, one, [variant]), strict=True):
            np.testing.assert_array_equal(ours[i], alone[0])


def test_rows_without_a_variant_are_what_they_always_were() -> None:
    """Among rows of other variants, plain guidance and its rescale are the formula; nothing of it touches a row that asks for none."""
    rows = some_rows(3, {"momentum": -0.5, "rescale": 0.7}, np.float32)
    rows.columns[1, 1:] = 0
    rows.columns[2, :] = [1, 0, 0, 0, 0, 0]
    rows.columns[0, COLUMNS.index("momentum")] = 0
    rows.columns[0, 0] = 3
    raw, _ = guidance.combine(XP, rows, ["cfg", "tcfg", "cfg"])
    guided = rows.uncond[0] + np.float32(3) * (rows.cond[0] - rows.uncond[0])
    factor = 1 + np.float32(0.7) * (rows.cond[0].std(ddof=1) / guided.std(ddof=1) - 1)
    np.testing.assert_allclose(raw[0], guided * factor, rtol=1e-6)
    np.testing.assert_array_equal(raw[2], rows.cond[2])
    alone, _ = guidance.combine(XP, replace(rows.take(XP, np.array([2])), average=None), ["cfg"], pulled=False)
    np.testing.assert_array_equal(alone[0], raw[2])


def test_a_row_of_nothing_stays_so_beside_one_that_is_rescaled() -> None:
    """However large its conditional output is, whose deviation is divided by none."""
    rows = some_rows(3, {"rescale": 0.7}, np.float32)
    rows.columns[0, COLUMNS.index("rescale")] = 0
    rows.cond[0] *= 1e5
    raw, _ = guidance.combine(XP, rows, ["zero", "cfg", "cfg"])
    assert not raw[0].any() and np.isfinite(raw).all()


def test_outputs_that_are_zero_or_equal_give_no_nan() -> None:
    rows = some_rows(0, {"norm_threshold": 2.0}, np.float32)
    for nothing in (replace(rows, cond=0 * rows.cond, uncond=0 * rows.uncond, x=0 * rows.x), replace(rows, uncond=rows.cond)):
        for variant in ("cfg_zero_star", "tcfg", "apg", "zero"):
            raw, _ = guidance.combine(XP, nothing, [variant] * 3)
            assert np.isfinite(raw).all()
    rows.columns[0, COLUMNS.index("rescale")] = 0.7
    assert np.isfinite(guidance.combine(XP, rows, ["cfg", "zero", "cfg"])[0]).all()  # beside a row that is rescaled


@pytest.mark.parametrize(("start", "end", "steps"), [(0.0, 1.0, 7), (0.2, 0.8, 10), (0.0, 0.5, 3), (0.33, 0.34, 20), (0.7, 1.0, 10)])
def test_the_interval_takes_the_steps_that_diffusers_takes(start: float, end: float, steps: int) -> None:
    guider = guiders.ClassifierFreeGuidance(5.0, start=start, stop=end)
    made = plan(5.0, 0.0, {"start": start, "end": end}, np.arange(steps))
    for step in range(steps):
        guider.set_state(step, steps, torch.tensor(0))
        assert made.guided(step) == (guider.num_conditions == 2)


def test_no_step_is_zeroed_unless_it_is_asked_for() -> None:
    assert "zero" not in plan(5.0, 0.7, {"variant": "cfg_zero_star"}, np.arange(4)).variants


def test_zero_init_takes_the_first_steps_of_the_reference() -> None:
    guider = guiders.ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2)
    made = plan(5.0, 0.7, {"variant": "cfg_zero_star", "zero_init": 2}, np.array([0, 0, 1, 1, 2, 2, 3]))
    for row, step in enumerate((0, 0, 1, 1, 2, 2, 3)):
        guider.set_state(step, 4, torch.tensor(0))
        zero = not guider.forward(torch.ones(1, 2, 2), torch.full((1, 2, 2), 0.5)).pred.any()
        assert (made.variants[row] == "zero") == zero
        assert made.guided(row) != zero
    rows = some_rows(0, {"scale": 1})
    np.testing.assert_array_equal(guidance.combine(XP, rows, ["zero"] * 3)[0], 0 * rows.cond)


def test_curves_go_from_the_guidance_to_the_final_one() -> None:
    def scales(guidance: float, **options: Any) -> list[float]:
        return plan(guidance, 0.0, options, np.arange(5)).columns[:, 0].tolist()

    assert scales(5.0) == [5.0] * 5
    assert scales(5.0, curve="linear") == [5.0, 4.0, 3.0, 2.0, 1.0]
    np.testing.assert_allclose(scales(2.0, curve="cosine", final=6.0), [2, 4 - math.sqrt(2), 4, 4 + math.sqrt(2), 6])
    assert scales(3.0, scales=[3, 1, 4, 1, 5]) == [3.0, 1.0, 4.0, 1.0, 5.0]
    assert scales(5.0, curve="linear", start=0.4, end=0.8) == [1.0, 1.0, 3.0, 2.0, 1.0]  # the curve runs on outside
    assert plan(4.0, 0.0, {"curve": "linear"}, np.array([0])).columns[0, 0] == 4.0


def test_rows_that_are_not_guided_are_neither_rescaled_nor_remembered() -> None:
    made = plan(5.0, 0.7, {"variant": "apg", "momentum": -0.5, "start": 0.5}, np.arange(4))
    np.testing.assert_allclose(made.columns, [[1, 0, 0, 0, 0, 0]] * 2 + [[5, 0.7, 0, 0, 0, -0.5]] * 2, rtol=1e-7)
    assert made.variants == ("cfg", "cfg", "apg", "apg")
    assert made.remembers and made.ever_guided
    assert not plan(1.0, 0.7, {"variant": "apg", "momentum": -0.5}, np.arange(4)).remembers
    assert not plan(1.0, 0.7, {}, np.arange(4)).ever_guided


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "agp"}, "unknown guidance 'agp': it is one of cfg, cfg_zero_star, apg, tcfg"),
        ({"eta": 0.5}, "'cfg' has no option 'eta': its options are rescale, start"),
        ({"rescale": 1.5}, "between 0.0 and 1.0"),
        ({"start": 0.5, "end": 0.5}, "start must be less than end"),
        ({"final": 2.0}, "'final' of the guidance 'cfg' means nothing without 'curve'"),
        ({"curve": "cubic"}, "one of constant, linear, cosine"),
        ({"scales": [5.0, 4.0]}, "one number for each of the 4 steps, not 2"),
        ({"scales": 5.0}, "list of numbers"),
        ({"scales": [5, 5, 5, -1]}, "between 0.0 and 50.0"),
        ({"scales": [5, 5, 5, 5], "curve": "linear"}, "scales and curve"),
        ({"variant": "cfg_zero_star", "zero_init": 0.5}, "whole number"),
        ({"pag_scale": 1.0, "seg_scale": 1.0}, "pag_scale and seg_scale disturb the same layers"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(5.0, 0.0, options, np.arange(4))


def test_the_catalog_names_every_variant_once_and_carries_the_models_rescale() -> None:
    infos = catalog(0.7)
    names = [name.lower() for info in infos for name in {info.id, info.name.lower(), *info.aliases}]
    assert len(names) == len(set(names))
    assert all(info.options["rescale"].default == 0.7 for info in infos)
    assert all("pag_scale" in info.options for info in infos)
    assert not any("seg_scale" in info.options for info in catalog(perturbable=False))
