"""Names beyond the main lists of other programs, each with a meaning or a reason, and labels with a slip in them."""

from __future__ import annotations

import pytest

from pipelines import names
from pipelines.sampler_list import SAMPLERS


def words(text: str) -> list[str]:
    return text.split()


# Beside those of `test_names`: Forge, reForge, Forge-classic, SD.Next and k-diffusion: what runs and what cannot.
FURTHER = words(
    "euler_a euler_ancestral heun dpm_2 dpm_2_ancestral lms dpm_fast dpmpp_2s_ancestral dpmpp_sde dpmpp_2m dpmpp_2m_sde dpmpp_3m_sde"
)
FURTHER += [
    "ER SDE",
    "Res Multistep",
    "TCD",
    "DPM++ 1S",
    "DPM++ 2S",
    "SA Solver",
    "Euler EDM",
    *(f"k_{id}" for id in words("euler_a dpmpp_2m lms")),
]
REFUSED = [
    "Kohaku LoNyu Yog", "DPM++ 2s a RF", "DPM++ 2M EDM", "Cosine DPM", "DDIM Inverse", "DC Solver", "TDD", "PeRFlow", "UFOGen", "CMSI",
    "Flash FlowMatch", "VDM", "BDIA-DDIM", "ABNorsett", "ABNorsett 2M", "Lawson 4S", "ETD-RK", "PEC 423", "RES", "Lobatto 3S",
    "Radau IIA", "Gauss-Legendre 2S", "RK 4", "RK 5", "RK6",
]  # fmt: skip
FURTHER_SCHEDULES = [
    *words("polyexponential vp Polyexponential Laplace VP SDTurbo BetaSampling AlignYourSteps custom_sigmas Turbo"),
    *words("DISCRETE KARRAS EXPONENTIAL AYS GITS SGM_UNIFORM SIMPLE SMOOTHSTEP KL_OPTIMAL LCM BONG_TANGENT BETA FLUX"),
    "Align Your Steps GITS", "Align Your Steps 11", "Align Your Steps 32", "SD Turbo",
]  # fmt: skip
REFUSED_SCHEDULES = [
    *words("OptimalSteps Split SplitDenoise Flip SetFirst ExtendIntermediate LTX2 LOGIT_NORMAL FLUX2 Phi"), "Sinusoidal SF", "AYS Custom",
    "Invcosinusoidal SF", "React Cosinusoidal DynSF", "Cosine-exponential Blend", "Karras Dynamic", "Variance Preserving",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [*(("sampler", name) for name in FURTHER), *(("schedule", name) for name in FURTHER_SCHEDULES)])
def test_further_names_of_other_programs_have_a_meaning(kind: str, name: str) -> None:
    known = names.find(name, None, ()).sampler if kind == "sampler" else names.find_schedule(name, ())
    assert known in names.IDS[kind]


@pytest.mark.parametrize(("kind", "name"), [*(("sampler", name) for name in REFUSED), *(("schedule", name) for name in REFUSED_SCHEDULES)])
def test_further_names_that_cannot_run_have_a_reason(kind: str, name: str) -> None:
    with pytest.raises(names.UnknownName, match=r"cannot run here: .{20}"):
        names.find(name, None, ()) if kind == "sampler" else names.find_schedule(name, ())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DPM++ 2M Kerras", "DPM++ 2M Karras"),
        ("DPM++ 2M SDE Heun Exponental", "DPM++ 2M SDE Heun Exponential"),
        ("Eular a SGM Unifrom", "Euler a SGM Uniform"),
        ("k_dpmpp_2m_karas", "DPM++ 2M Karras"),
        ("UniPC Align Your Stepps", "UniPC Align Your Steps"),
    ],
)
def test_a_slip_in_a_label_with_its_schedule_finds_the_whole_label(name: str, meant: str) -> None:
    close = names.nearest("sampler", name, SAMPLERS)
    assert close[0] == meant and len(close) <= 3
    assert names.find(meant, None, ()).schedule
    assert meant not in names.nearest("sampler", name, ["ddpm"]), "a model without the sampler is not sent to it"
