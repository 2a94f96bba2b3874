"""Solvers from files: what explain prints loads to the same rows, what cannot run is refused, the gateway knows them from the card."""

from __future__ import annotations

import dataclasses
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cards import card
from celadon.explain import described
from oracles import EPSILON, ZERO_SNR, Mixture, noises, run_table
from pipelines import samplers, schedules
from pipelines.card import ModelCard
from pipelines.checkpoint_error import CheckpointError
from pipelines.checkpoint_folder import describe
from pipelines.ladder import Ladder
from pipelines.loading import load_described
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.solver_files import SolverError, parsed
from pipelines.step_table import StepTable
from pipelines.text_to_image import denoise, generate
from service.drafts import Draft, resolve
from service.errors import BadRequest
from service.settings import Settings
from tests.test_pipeline import latents_of, new_engine, request, sample_of
from training.toy import write_toy
from workers.model import ModelRefused, open_model
from workers.settings import WorkerSettings

SD, FLAWLESS = Ladder.from_config(EPSILON), Ladder.from_config(ZERO_SNR)


def printed(table: StepTable, steps: int) -> dict[str, Any]:
    return {"steps": steps, "init": table.init, "evaluations": len(table), "rows": described(table)}


def a_file(*tables: dict[str, Any], id: str = "learned") -> dict[str, Any]:
    return json.loads(json.dumps({"schema": 1, "id": id, "name": f"{id} of this test", "tables": tables}))


def of(sampler: str, schedule: str, *counts: int, ladder: Ladder = SD) -> dict[str, Any]:
    return a_file(*(printed(compile_table(ladder, sampler, schedule, n), n) for n in counts))


@pytest.mark.parametrize("ladder", [SD, FLAWLESS], ids=["epsilon", "zero_snr"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_explain_prints_loads_to_the_same_rows(sampler: str, ladder: Ladder) -> None:
    for schedule, steps in (("trailing", 5), ("laplace", 4)):
        wanted = compile_table(ladder, sampler, schedule, steps)
        found = parsed(a_file(printed(wanted, steps)), ladder).table(ladder, steps)
        for column in StepTable.__slots__:
            np.testing.assert_array_equal(getattr(found, column), getattr(wanted, column), err_msg=column)


def test_one_file_serves_every_prediction_type() -> None:
    solver = parsed(of("dpmpp_2m", "trailing", 6), SD)
    ends = []
    for kind in ("epsilon", "v_prediction", "sample"):
        ladder = Ladder.from_config(EPSILON | {"prediction_type": kind})
        ends.append(run_table(solver.table(ladder, 6), Mixture().network(ladder), noises((1, 4, 4, 4)))[-1])
    np.testing.assert_allclose(ends[1:], [ends[0]] * 2, rtol=1e-5)


def test_its_card_entry_tells_what_it_takes_and_costs() -> None:
    solver = parsed(of("heun", "karras", 4, 7), SD)
    info = solver.info()
    assert (info.only_steps, info.only_schedules, info.min_steps, info.max_steps) == ((4, 7), ("auto",), 4, 7)
    assert [info.evaluations(n) for n in (4, 7)] == [len(solver.table(SD, n)) for n in (4, 7)] == [7, 13]
    assert not info.stochastic and parsed(of("euler_a", "karras", 4), SD).info().stochastic
    with pytest.raises(ValueError, match="tables of 4, 7 steps, not 5"):
        solver.table(SD, 5)


def changed(*path: Any, to: Any) -> dict[str, Any]:
    data = deepcopy(of("euler_a", "trailing", 3))
    at: Any = data
    for key in path[:-1]:
        at = at[key]
    if to is None:
        del at[path[-1]]
    else:
        at[path[-1]] = to
    return data


ROW = ("tables", 0, "rows", 1)


@pytest.mark.parametrize(("data", "message"), [
    ([], "the file must be an object"),
    (changed("schema", to=2), "schema must be 1"),
    (changed("schema", to=None), "lacks schema"),
    (changed("author", to="me"), "has author, which means nothing"),
    (changed("id", to="Learned"), "id must be a word"),
    (changed("id", to="euler"), "'euler' is the name of another sampler"),
    (changed("id", to="dpm_2"), "'dpm_2' is the name of another sampler"),
    (changed("name", to="DPM++ 2M"), "is the name of another"),
    (changed("name", to=""), "name must be text"),
    (changed("tables", to=[]), "tables must be a list"),
    (changed("tables", 0, "steps", to=4), "table 1: its rows must belong to steps 1 to 4"),
    (changed("tables", 0, "steps", to=True), "steps 1 to True"),
    (changed("tables", 0, "init", to="1"), "table 1: init must be a finite number of 0 or more"),
    (changed("tables", 0, "rows", to=[]), "table 1: rows must be a list"),
    (changed(*ROW, "step", to=1), "its rows must belong"),
    (changed(*ROW, "step", to=1.5), "row 2: step must be a whole number"),
    (changed(*ROW, "alpha", to=0.9), "no level of this model's space"),
    (changed(*ROW, "sigma", to=float("nan")), "sigma must be a finite number"),
    (changed(*ROW, "timestep", to=1000), "timestep must be at most 999"),
    (changed(*ROW, "noise", to=1), "noise must be true or false"),
    (changed(*ROW, "noise", to=False), "noise must be true or false"),
    (changed(*ROW, "next", "y", to={"x": 1.0}), "next has y; registers are"),
    (changed(*ROW, "next", "x", to={"eps": 1.0}), "next.x has eps; it may combine"),
    (changed(*ROW, "next", "x", "x", to=float("inf")), "next.x.x must be a finite number"),
    (changed(*ROW, "colour", to="red"), "has colour"),
    ({**of("euler", "trailing", 3), "tables": of("euler", "trailing", 3)["tables"] * 2}, "another of 3 steps"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_files_that_cannot_be_are_refused_with_the_place(data: Any, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        parsed(data, SD)


def test_an_epsilon_model_is_not_asked_at_alpha_zero() -> None:
    exact = of("ddim", "trailing", 3, ladder=FLAWLESS)
    assert exact["tables"][0]["rows"][0]["alpha"] == 0.0 and parsed(exact, FLAWLESS)
    with pytest.raises(SolverError, match="cannot be asked at alpha = 0"):
        parsed(exact, SD)


# --- on a model ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = write_toy(tmp_path_factory.mktemp("toy") / "toy", seed=3)
    (folder / "solvers").mkdir()
    return folder


def opened(folder: Path, further: Path | None = None) -> Any:
    return load_described(describe(folder, further), device=torch.device("cpu"), dtype=torch.float32)


def test_a_model_offers_the_solvers_of_both_folders(folder: Path, tmp_path: Path) -> None:
    plain = opened(folder)
    beside, elsewhere = folder / "solvers" / "a.json", tmp_path / "b.json"
    beside.write_text(json.dumps(of("unipc", "trailing", 5, ladder=plain.ladder)))
    elsewhere.write_text(json.dumps(of("euler_a", "karras", 4, ladder=plain.ladder) | {"id": "other", "name": "Other"}))
    checkpoint = opened(folder, tmp_path)
    assert [s.id for s in checkpoint.card.samplers[-2:]] == ["learned", "other"]
    assert len({plain.card.hash, opened(folder).card.hash, checkpoint.card.hash}) == 3
    params = request(checkpoint, sampler="learned", steps=5)
    wanted = denoise(plain, request(plain, sampler="unipc", schedule="trailing", steps=5))
    np.testing.assert_array_equal(denoise(checkpoint, params), wanted)
    assert generate(checkpoint, params).shape == (64, 64, 3)
    engine = new_engine(checkpoint)
    for i, sampler in enumerate(("learned", "other", "euler")):  # one batch with the others
        engine.add(sample_of(checkpoint, request(checkpoint, sampler=sampler, steps=5 - i % 2, seed=42), sampler))
    np.testing.assert_allclose(latents_of(engine)["learned"], wanted, atol=1e-3)
    beside.unlink()


def test_a_worker_s_start_names_the_file_that_cannot_run(folder: Path, tmp_path: Path) -> None:
    for text, message in (("{", "bad.json: "), (json.dumps({"schema": 1}), "bad.json: the file lacks id, name, tables")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            opened(folder, tmp_path)
    for name in ("bad.json", "worse.json"):
        (tmp_path / name).write_text(json.dumps(of("euler", "trailing", 3)))
    with pytest.raises(CheckpointError, match=r"worse.json: the id 'learned' is that of another file"):
        opened(folder, tmp_path)


def test_a_folder_of_solvers_that_is_none_stops_the_worker() -> None:
    with pytest.raises(ModelRefused, match="CELADON_SOLVERS: nowhere is no folder"):
        open_model(WorkerSettings(redis_url="redis://localhost", solvers="nowhere", device="cpu"))


# --- at the gateway --------------------------------------------------------------------------------------------------------------

SOLVERS = [parsed(of("heun", "karras", 4, 7), SD), parsed(of("euler_a", "karras", 5) | {"id": "noisy", "name": "Noisy"}, SD)]
LISTED = (*samplers.catalog(SD), *(solver.info() for solver in SOLVERS))
CARD = ModelCard.from_dict(json.loads(json.dumps(card(samplers=LISTED, schedules=schedules.catalog(SD)).to_dict())))
SETTINGS = Settings(redis_url="redis://localhost")


def test_the_gateway_takes_it_from_the_card() -> None:
    assert CARD.samplers == LISTED
    for steps, taken in ((None, 7), (4, 4), (7, 7)):  # 20, the model's default, bends to what there is
        resolved = resolve(Draft(prompt="", sampler="Learned", steps=steps), CARD, SETTINGS)
        assert (resolved.params.sampler, resolved.params.schedule, resolved.params.steps) == ("learned", "auto", taken)
        assert resolved.steps_total == len(SOLVERS[0].table(SD, taken))


def test_the_gateway_takes_no_other_schedule_even_where_that_is_the_model_s_default() -> None:
    other = dataclasses.replace(CARD, defaults=dataclasses.replace(CARD.defaults, schedule="karras"))
    assert resolve(Draft(prompt="", sampler="learned"), other, SETTINGS).params.schedule == "auto"


@pytest.mark.parametrize(("fields", "param", "message"), [
    ({"steps": 5}, "steps", "steps must be 4 or 7 for learned"),
    ({"steps": 1}, "steps", "steps must be 4 or 7"),
    ({"schedule": "karras"}, "schedule", "its schedule must be auto"),
    ({"sampler_options": {"eta": 0.5}}, "sampler_options.eta", "learned has no option"),
])  # fmt: skip
def test_the_gateway_refuses_what_it_has_no_table_for(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as refusal:
        resolve(Draft(prompt="", sampler="learned", **fields), CARD, SETTINGS)
    assert refusal.value.param == param
