"""Names of samplers and schedules in the dialects of other programs, against lists of those programs and our own registry."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from pipelines import names, schedules
from pipelines.ladder import Ladder
from pipelines.options import checked_options
from pipelines.sampler_list import OF_EDM, SAMPLERS
from pipelines.samplers import catalog, compile_table
from pipelines.schedule_list import SCHEDULES
from service import drafts, errors
from service.settings import Settings
from tests.cards import card
from tests.fakes import sd_ladder_config
from tests.oracles import Mixture, difference, drive, noises, run_table


def words(text: str) -> list[str]:
    return text.split()


LADDER = Ladder.from_config(sd_ladder_config())
LATENT = (1, 4, 4, 4)
NETWORK = Mixture().network(LADDER)

ONLY_OURS = {
    "auto",
    "leading",
    "trailing",
    "simple_linear",
    "cosine",
    "sigmoid",
}  # schedules that no other program has a name for

A1111 = (
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE", "Euler a", "Euler", "LMS", "Heun",
    "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart", "HeunPP2", "IPNDM", "IPNDM_V", "DEIS", "DDIM", "DDIM CFG++", "PLMS",
    "UniPC", "LCM", "DDPM",
)  # fmt: skip
A1111_SCHEDULES = (
    "Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple",
    "Normal", "DDIM", "Beta", "Karras Exponential",
)  # fmt: skip
COMFYUI = words(
    "euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms "
    "dpm_fast dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde "
    "dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm ipndm ipndm_v deis cfgpp_ud10_ab "
    "res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp gradient_estimation "
    "gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2"
)
COMFYUI_SCHEDULES = words("simple sgm_uniform karras exponential ddim_uniform beta normal linear_quadratic kl_optimal")
SDCPP = words(
    "euler euler_a heun dpm2 dpm++2s_a dpm++2m dpm++2mv2 ipndm ipndm_v lcm ddim_trailing tcd res_multistep res_2s er_sde euler_cfg_pp "
    "euler_a_cfg_pp euler_ge dpm++2m_sde dpm++2m_sde_bt lms"
)
CANNOT = {"DPM adaptive", "dpm_adaptive", "cfgpp_ud10_ab", "dpm++2mv2", "res_2s", "Karras Exponential"}


def listed(*lists: tuple[str, list[str] | tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(dialect, name) for dialect, of in lists for name in of]


@pytest.mark.parametrize(("dialect", "name"), listed(("a1111", A1111), ("comfyui", COMFYUI), ("sdcpp", SDCPP)))
def test_every_sampler_of_the_other_programs_has_a_meaning_or_a_reason(dialect: str, name: str) -> None:
    assert (len(A1111), len(COMFYUI), len(SDCPP)) == (25, 45, 21)
    ask = {"a1111": names.a1111, "comfyui": lambda n: names.comfyui(n, "simple"), "sdcpp": names.sdcpp}[dialect]
    if name not in CANNOT:
        assert ask(name).sampler in names.IDS["sampler"]
        names.find(name, None, names.IDS["sampler"])
        return
    for refuse in (ask, lambda n: names.find(n, None, names.IDS["sampler"])):
        with pytest.raises(names.UnknownName, match=r"cannot run here: .{20}") as caught:
            refuse(name)
        assert caught.value.kind == "sampler"


@pytest.mark.parametrize(("dialect", "name"), listed(("a1111", A1111_SCHEDULES), ("comfyui", COMFYUI_SCHEDULES)))
def test_every_schedule_of_the_other_programs_has_a_meaning_or_a_reason(dialect: str, name: str) -> None:
    assert (len(A1111_SCHEDULES), len(COMFYUI_SCHEDULES)) == (13, 9)
    ask = names.a1111 if dialect == "a1111" else names.comfyui
    if name not in CANNOT:
        assert ask("Euler", name).schedule in names.IDS["schedule"]
        assert names.find_schedule(name, names.IDS["schedule"]) in names.IDS["schedule"]
        return
    with pytest.raises(names.UnknownName, match="cannot run here"):
        ask("Euler", name)
    with pytest.raises(names.UnknownName, match="cannot run here"):
        names.find_schedule(name, names.IDS["schedule"])


def test_every_class_of_diffusers_has_a_meaning_or_a_reason() -> None:
    other = {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
    for name in (n for n in dir(diffusers) if n.endswith("Scheduler")):
        try:
            assert names.diffusers(name).sampler in names.IDS["sampler"]
        except names.UnknownName as error:
            other.add(name)
            assert error.reason, f"{name} is not known"
    assert {"EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"}.isdisjoint(other)
    assert {"FlowMatchLCMScheduler", "RePaintScheduler"} <= other


def test_every_id_that_a_name_means_is_in_the_registry() -> None:
    assert set(names.IDS["sampler"]) <= {*SAMPLERS, *OF_EDM}
    assert set(names.IDS["schedule"]) <= set(SCHEDULES)


def test_every_id_of_the_registry_has_its_names() -> None:
    assert set(SAMPLERS) <= set(names.IDS["sampler"])
    assert set(SCHEDULES) - ONLY_OURS <= set(names.IDS["schedule"])


def test_what_the_registry_calls_its_own_means_the_same_here() -> None:
    for info in catalog(LADDER):
        for name in (info.id, *info.aliases):
            assert names.find(name, None, SAMPLERS).sampler == info.id, name
    for id, schedule in SCHEDULES.items():
        for name in (id, *names.aliases("schedule", id, schedule.name, schedule.aliases)):
            assert names.find_schedule(name, SCHEDULES) == id, name


def test_the_options_that_a_name_brings_are_those_of_its_sampler() -> None:
    rows = [n for table in names.SAMPLERS.values() for n in table.values()]
    cases = [(case.id, case.options or {}) for of in names.CLASSES.values() for case in of.cases]
    for id, options in [*((n.id, n.options) for n in rows), *cases]:
        if id in SAMPLERS:
            checked_options("sampler", id, options, SAMPLERS[id].options)


@pytest.mark.parametrize(
    ("name", "schedule", "meant"),
    [
        ("DPM++ 2M Karras", None, ("dpmpp_2m", {}, "karras")),
        ("DPM++ 2M SDE Exponential", "Automatic", ("dpmpp_2m_sde", {}, "exponential")),
        ("Euler SGM Uniform", None, ("euler", {}, "sgm_uniform")),
        ("dpm++_2m_karras", "karras", ("dpmpp_2m", {}, "karras")),
        ("k_dpmpp_2m_ka", None, ("dpmpp_2m", {}, "karras")),
        ("Euler a", None, ("euler_a", {}, None)),
        ("EULER_A", "simple", ("euler_a", {}, "simple")),
        ("dpmpp_2m_sde_gpu", None, ("dpmpp_2m_sde", {}, None)),
        ("uni_pc", None, ("unipc", {"solver_type": "bh1", "order": 3}, None)),
        ("unipc", None, ("unipc", {}, None)),
        ("ddim", None, ("ddim", {}, None)),
        ("ddim_trailing", None, ("ddim", {}, "trailing")),
        ("EulerAncestralDiscreteScheduler", None, ("euler_a", {}, None)),
        ("EulerDiscrete", None, ("euler", {}, None)),
    ],
)
def test_any_dialect_is_understood(name: str, schedule: str | None, meant: tuple[object, ...]) -> None:
    choice = names.find(name, schedule, names.IDS["sampler"])
    assert (choice.sampler, dict(choice.sampler_options), choice.schedule) == meant


@pytest.mark.parametrize("name", ["ddim_uniform", "euler karras karras", "Karras", "", "scheduler", "DPM++ 9M"])
def test_what_nobody_calls_a_sampler_is_none(name: str) -> None:
    with pytest.raises(names.UnknownName, match="there is no sampler"):
        names.find(name, None, names.IDS["sampler"])


def test_one_name_in_two_programs_means_what_each_of_them_means() -> None:
    assert names.comfyui("ddim", "normal").sampler == "euler"
    assert names.a1111("DDIM").sampler == "ddim"
    for choice in (names.comfyui("ipndm_v", "simple"), names.a1111("IPNDM_V"), names.sdcpp("ipndm_v")):
        assert choice.sampler_options == {"weights": "published"}, "the user interfaces share two slips of its first author"
    assert not names.find("ipndm_v", None, ()).sampler_options
    assert names.comfyui("euler", "beta").schedule == "beta"
    assert names.a1111("Euler", "Beta").schedule == "beta_sigma"
    assert names.comfyui("euler", "kl_optimal").schedule == "kl_optimal"
    assert names.a1111("Euler", "KL Optimal").schedule == "kl_optimal_open"
    with pytest.raises(names.UnknownName, match="reForge"):
        names.a1111("Euler", "Cosine")
    assert names.find_schedule("cosine", SCHEDULES) == "cosine"


def test_the_rule_of_automatic() -> None:
    karras = {"DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "DPM2", "DPM2 a", "Restart"}
    exponential = {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE", "DPM fast"}  # the last takes such levels of itself
    own_steps = {"DDIM", "DDIM CFG++", "PLMS", "UniPC"}
    for name in set(A1111) - CANNOT:
        rule = "karras" if name in karras else "exponential" if name in exponential else "ddim_uniform" if name in own_steps else "linspace"
        assert names.a1111(name).schedule == names.a1111(name, "automatic").schedule == rule
        assert names.a1111(name, "Simple").schedule == "simple"


def test_options_of_a_diffusers_class_choose_sampler_and_schedule() -> None:
    options = {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "use_karras_sigmas": True, "s_noise": 0.9}
    choice = names.find("DPMSolverMultistepScheduler", None, SAMPLERS, options)
    assert (choice.sampler, choice.sampler_options, choice.schedule) == ("dpmpp_2m_sde_heun", {"s_noise": 0.9}, "karras")
    choice = names.diffusers("UniPCMultistepScheduler", {"solver_order": 3, "solver_type": "bh1", "timestep_spacing": "trailing"})
    assert (choice.sampler, choice.sampler_options, choice.schedule) == ("unipc", {"order": 3, "solver_type": "bh1"}, "trailing")
    assert names.diffusers("EulerDiscreteScheduler", {"use_beta_sigmas": True}).schedule == "beta_sigma"
    assert names.diffusers("EulerDiscreteScheduler", {"use_karras_sigmas": False, "thresholding": False}).schedule is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prediction_type": "v_prediction"}, "belongs to the model"),
        ({"thresholding": True}, "can only be False"),
        ({"thresholding": 0}, "can only be False"),
        ({"solver_order": True}, "no table for that"),
        ({"flow_shift": 3.0}, "belongs to the model"),
        ({"use_karras_sigmas": "yes"}, "true or false"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "together"),
        ({"timestep_spacing": "quadratic"}, "linspace, leading or trailing"),
        ({"timestep_spacing": "leading", "use_karras_sigmas": True}, "together"),
        ({"algorithm_type": "dpmsolver"}, "successor"),
        ({"algorithm_type": "sde-dpmsolver++", "solver_order": 1}, "ddim with eta 1"),
        ({"solver_order": 7}, "no table for that"),
    ],
)
def test_what_a_class_cannot_do_here_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises((names.UnknownSetting, names.UnknownName), match=said):
        names.diffusers("DPMSolverMultistepScheduler", options)


def test_a_schedule_that_contradicts_the_samplers_name_is_refused() -> None:
    assert names.find("LMS Karras", "karras", ()).schedule == "karras"
    with pytest.raises(names.UnknownSetting, match="says karras") as caught:
        names.find("LMS Karras", "exponential", ())
    assert caught.value.option == "schedule"


def test_the_nearest_names_are_found_in_every_dialect() -> None:
    assert "EulerAncestralDiscreteScheduler" in names.nearest("sampler", "EulerAncestralScheduler", SAMPLERS)
    assert "dpmpp_2m" in names.nearest("sampler", "dpmpp2m", SAMPLERS) or "dpmpp2m" in names.nearest("sampler", "dpmpp2m", SAMPLERS)
    assert names.nearest("schedule", "karas", SCHEDULES) == ["karras"]
    assert names.nearest("sampler", "x" * 10_000, SAMPLERS) == []


# --- diffusers' own classes against the pair that class and options mean ----------------------------------------------

CLASSES: list[tuple[str, dict[str, object]]] = [
    ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    ("DDPMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerDiscreteScheduler", {"use_beta_sigmas": True}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3, "solver_type": "heun"}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("SASolverScheduler", {}),
]


@pytest.mark.parametrize(("name", "options"), CLASSES, ids=lambda value: str(value).removesuffix("Scheduler"))
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_a_class_with_options_draws_what_the_pair_that_it_means_draws(name: str, options: dict[str, object]) -> None:
    choice = names.diffusers(name, options)
    table = compile_table(LADDER, choice.sampler, choice.schedule or "auto", 8, dict(choice.sampler_options))
    ours = run_table(table, NETWORK, noises(LATENT))
    reference = getattr(diffusers, name).from_config({**sd_ladder_config(), "clip_sample": False}, **options)
    theirs = drive(reference, NETWORK, 8, noises(LATENT), clean=True)
    assert difference(ours, theirs) < 3e-6


def test_lu_lambdas_are_the_levels_of_exponential() -> None:
    choice = names.diffusers("DPMSolverMultistepScheduler", {"use_lu_lambdas": True})
    assert "timesteps" in choice.differs[0]
    table = compile_table(LADDER, choice.sampler, str(choice.schedule), 12)
    reference = diffusers.DPMSolverMultistepScheduler.from_config(sd_ladder_config(), use_lu_lambdas=True)
    reference.set_timesteps(12)
    assert (table.sigma / table.alpha).tolist() == pytest.approx(reference.sigmas[:12].tolist(), rel=1e-6)


def test_a_class_without_spacing_takes_the_schedule_that_is_asked_for() -> None:
    assert names.find("DPMSolverSinglestep", None, ()).schedule == "linspace"
    assert names.find("DPMSolverSinglestep", "karras", ()).schedule == "karras"
    with pytest.raises(names.UnknownSetting):
        names.find("DPMSolverSinglestep", "simple", (), {"use_karras_sigmas": True})


# --- through the door -------------------------------------------------------------------------------------------------


def resolved(**asked: Any) -> tuple[str, dict[str, Any], str]:
    params = drafts.resolve(drafts.Draft(prompt="a cat", **asked), WHOLE_CARD, Settings()).params
    return params.sampler, dict(params.sampler_options), params.schedule


WHOLE_CARD = card(samplers=catalog(LADDER), schedules=schedules.catalog(LADDER))


def test_a_draft_takes_any_name_and_its_params_hold_the_canonical_pair() -> None:
    assert resolved(sampler="DPM++ 2M Karras") == ("dpmpp_2m", {"solver_type": "midpoint"}, "karras")
    assert resolved(sampler="Euler a", schedule="Uniform") == ("euler_a", {"eta": 1.0, "s_noise": 1.0}, "linspace")
    assert resolved(sampler="dpmpp_2m_sde_gpu") == ("dpmpp_2m_sde", {"eta": 1.0, "s_noise": 1.0}, "auto")
    assert resolved(sampler="uni_pc") == ("unipc", {"order": 3, "solver_type": "bh1"}, "auto")
    assert resolved(sampler="uni_pc", sampler_options={"order": 1}) == ("unipc", {"order": 1, "solver_type": "bh1"}, "auto")
    options = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "eta": 0.5}
    assert resolved(sampler="DPMSolverMultistepScheduler", sampler_options=options)[0::2] == ("dpmpp_2m_sde", "karras")
    assert resolved(sampler="Dpm++ 2m", schedule="Automatic") == ("dpmpp_2m", {"solver_type": "midpoint"}, "auto")


@pytest.mark.parametrize(
    ("asked", "error", "param", "said"),
    [
        ({"sampler": "DPM adaptive"}, errors.UnknownSampler, "sampler", "cannot run here: it chooses its steps"),
        ({"sampler": "EulerDiscreteScheduller"}, errors.UnknownSampler, "sampler", "Did you mean EulerDiscreteScheduler"),
        ({"sampler": "DPM++ 2M Kerras"}, errors.UnknownSampler, "sampler", "Did you mean DPM\\+\\+ 2M Karras or"),
        ({"schedule": "karas"}, errors.UnknownSchedule, "schedule", "Did you mean karras"),
        ({"sampler": "FlowMatchEulerDiscreteScheduler"}, errors.UnknownSchedule, "schedule", "rectified-flow"),
        ({"sampler": "UniPCMultistep", "sampler_options": {"use_flow_sigmas": True}}, errors.UnknownSchedule, "schedule", "rectified-flow"),
        ({"sampler": "EDMEuler"}, errors.UnknownSampler, "sampler", "euler with karras"),
        ({"sampler": "edm_euler"}, errors.UnknownSampler, "sampler", "euler with karras"),
        ({"schedule": "flux2"}, errors.UnknownSchedule, "schedule", "rectified-flow"),
        ({"schedule": "flux"}, errors.UnknownSchedule, "schedule", "rectified-flow"),
        ({"sampler": "LMS Karras", "schedule": "simple"}, errors.InvalidValue, "schedule", "says karras"),
        (
            {"sampler": "DDIMScheduler", "sampler_options": {"clip_sample": True}},
            errors.InvalidValue,
            "sampler_options.clip_sample",
            "only be False",
        ),
        ({"sampler": "DDIMScheduler", "sampler_options": {"etta": 1}}, errors.UnknownOption, "sampler_options.etta", "no option"),
    ],
)
def test_a_draft_with_a_name_that_cannot_run_is_refused(asked: dict[str, Any], error: type[errors.ApiError], param: str, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        resolved(**asked)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["edm_euler", "Euler EDM", "EDMEulerScheduler", "edmEULER"])
def test_a_model_of_edms_space_takes_its_sampler_by_every_name(name: str) -> None:
    space = Ladder.from_config({"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5})
    edm = card(samplers=catalog(space), schedules=schedules.catalog(space))
    assert drafts.resolve(drafts.Draft(prompt="a cat", sampler=name), edm, Settings()).params.sampler == "edm_euler"


def test_a_name_that_the_model_has_no_sampler_for_says_so() -> None:
    few = card(samplers=WHOLE_CARD.samplers[:2], schedules=WHOLE_CARD.schedules)
    with pytest.raises(errors.UnknownSampler, match="celadon-test has no euler_a"):
        drafts.resolve(drafts.Draft(prompt="a cat", sampler="Euler a"), few, Settings())


@pytest.mark.parametrize(
    ("sampler", "options", "unused"),
    [
        ("euler", {"s_noise": 0.5}, "s_noise of euler"),
        ("heun", {"s_churn": 4, "s_tmin": 5, "s_tmax": 1}, "s_churn, s_tmin, s_tmax of heun"),
        ("euler_a", {"eta": 0, "s_noise": 1.1}, "s_noise of euler_a"),
        ("euler", {"s_churn": 4, "s_noise": 0.5, "s_tmin": 1, "s_tmax": 5}, None),
        ("euler_a", {"s_noise": 1.1}, None),
        ("ddim", {"eta": 0}, None),
        ("restart", {"s_noise": 1.1}, None),
    ],
)
def test_options_of_noise_that_is_not_added_are_a_warning(sampler: str, options: dict[str, Any], unused: str | None) -> None:
    told = drafts.resolve(drafts.Draft(prompt="a red apple", sampler=sampler, sampler_options=options), WHOLE_CARD, Settings()).warnings
    assert [warning.code for warning in told] == (["sampler_options_unused"] if unused else [])
    assert unused is None or told[0].message.startswith(unused)


def test_a_cfgpp_sampler_has_a_guidance_of_its_own_and_warns_of_the_usual_ones() -> None:
    def drawn(**asked: Any) -> tuple[float, list[str]]:
        one = drafts.resolve(drafts.Draft(prompt="a red apple", **asked), WHOLE_CARD, Settings())
        return one.params.guidance, [warning.code for warning in one.warnings]

    assert drawn(sampler="euler_cfg_pp") == (0.6, [])
    assert drawn(sampler="euler_cfg_pp", guidance=1.5) == (1.5, [])
    assert drawn(sampler="euler_cfg_pp", guidance=7.5) == (7.5, ["guidance_too_strong"])
    assert drawn(sampler="euler", guidance=7.5) == (7.5, [])
    assert drawn(sampler="euler") == (WHOLE_CARD.defaults.guidance, [])
    for info in WHOLE_CARD.samplers:
        assert (info.guidance is not None) == info.id.endswith("_cfgpp")
