"""The commands that show what happens: `celadon explain`, `celadon plot schedule`, `celadon plot process`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from celadon.__main__ import app
from pipelines.denoiser_torch import TorchDenoiser
from pipelines.ladder import Ladder
from pipelines.loading import load
from pipelines.params import GenerationParams
from pipelines.process import backward, forward
from pipelines.sampler_list import SAMPLERS
from pipelines.samplers import compile_table
from pipelines.solver_files import SolverError, parsed
from pipelines.step_table import BASIS, STATE
from pipelines.text_to_image import TorchStages, decode, denoise, encode_picture
from workers.settings import DEFAULT_MODEL

LADDER = Ladder.from_config(json.loads((DEFAULT_MODEL / "scheduler" / "scheduler_config.json").read_text()))


def celadon(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"CELADON_MODEL": ""})


def output(*arguments: str) -> str:
    result = celadon(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("sampler", ["heun", "unipc", "dpmpp_2m_sde"])
def test_explain_tells_the_whole_table(sampler: str) -> None:
    """The table that is built again from what was printed is the table."""
    said = json.loads(output("explain", "--sampler", sampler, "--schedule", "karras", "--steps", "6", "--json"))
    table = compile_table(LADDER, sampler, "karras", 6)
    assert (said["evaluations"], said["init"], said["schedule_options"]) == (len(table), table.init, {"rho": 7.0})
    for i, row in enumerate(said["rows"]):
        update = np.zeros((len(STATE), len(BASIS)))
        for s, name in enumerate(STATE):
            for source, value in row["next"].get(name, {name: 1.0} if table.update[i, s].any() else {}).items():
                update[s, BASIS.index(source)] = value
        np.testing.assert_array_equal(update, table.update[i])
        for column in ("alpha", "sigma", "timestep", "c_in", "c_skip", "c_out"):
            assert row[column] == getattr(table, column)[i]
        assert row["noise"] == table.noisy[i]


def test_explain_prints_one_line_a_row() -> None:
    text = output("explain", "--sampler", "Euler", "--schedule", "Simple", "--steps", "5")
    assert "euler on simple, 5 steps" in text
    rows = [line for line in text.splitlines() if line.strip()[:1].isdigit() and "denoised" in line]
    assert len(rows) == 5
    assert rows[-1].split()[4:] == ["denoised"], "the last step lands on the estimate"


def test_explain_takes_names_and_options_of_other_programs() -> None:
    said = json.loads(output("explain", "--sampler", "uni_pc", "--sampler-option", "order=1", "--steps", "3", "--json"))
    assert (said["sampler"], said["sampler_options"]) == ("unipc", {"order": 1, "solver_type": "bh1"})
    arguments = ("--sampler", "DPMSolverMultistep", "--sampler-option", "use_karras_sigmas=true", "--schedule-option", "rho=5")
    said = json.loads(output("explain", *arguments, "--json"))
    assert (said["sampler"], said["schedule"], said["schedule_options"]) == ("dpmpp_2m", "karras", {"rho": 5.0})


@pytest.mark.parametrize(("arguments", "said"), [
    (("--sampler", "zzz"), f"there are {', '.join(sorted(SAMPLERS))}"[:60]),
    (("--schedule", "qqq"), "there are align_your_steps, "),
    (("--sampler", "eulr"), "did you mean euler"),
    (("--sampler", "ddim", "--steps", "1000"), "at most 998 steps"),
])  # fmt: skip
def test_explain_says_what_there_is_and_how_far_it_goes(arguments: tuple[str, ...], said: str) -> None:
    result = celadon("explain", *arguments)
    assert result.exit_code == 2 and said.replace(" ", "") in "".join(result.output.split()), result.output


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_explained_also_from_nothing_but_noise(sampler: str) -> None:
    """The model that comes along ends at alpha = 0, where sigma/alpha has no number."""
    text = output("explain", "--sampler", sampler, "--steps", "2", "--schedule", "trailing")
    first = next(line.split() for line in text.splitlines() if line.strip()[:1].isdigit() and line.split()[:2] == ["1", "1"])
    assert first[2] == ("inf" if compile_table(LADDER, sampler, "trailing", 2).alpha[0] == 0 else "4096")


def test_explain_tells_a_part_of_a_schedule() -> None:
    said = json.loads(output("explain", "--sampler", "heun", "--steps", "10", "--strength", "0.6", "--json"))
    table = compile_table(LADDER, "heun", "auto", 10, strength=0.6)
    assert (said["steps"], said["strength"], [row["sigma"] for row in said["rows"]]) == (6, 0.6, table.sigma.tolist())
    text = output("explain", "--steps", "5", "--strength", "0.2")
    assert "1 step (" in text and "1 U-Net evaluation. " in text
    assert f"{table.alpha[0]:.6g} * picture + {table.sigma[0]:.6g} * noise" in output("explain", "--steps", "10", "--strength", "0.6")
    assert "that of the step before" in output("explain", "--steps", "10", "--start", "0.5")
    with pytest.raises(SolverError, match="strength"):
        parsed({"schema": 1, "id": "of_a_part", "name": "Of a part", "tables": [said]}, LADDER)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain", "--steps", "5", "--strength", "0.1"), "no step of 5 is left"),
        (("explain", "--strength", "0.5", "--start", "0.5"), "give one of them"),
        (("explain", "--schedule", "custom"), "a list of two or more numbers of 0 or more, falling"),
        (("explain", "--sampler", "DPM++ 2M Kerras"), "did you mean DPM++ 2M Karras or"),
        (("explain", "--steps", "2000"), "takes at most 998 steps of this ladder, not 2000"),
        (("plot", "process", "x", "--picture", "/nowhere/picture.png"), "there is no such file"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(arguments: tuple[str, ...], said: str) -> None:
    result = celadon(*arguments)
    assert result.exit_code == 2 and said in result.output and len(result.output.splitlines()) <= 2


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    arguments = [sys.executable, "-m", "celadon", "explain", "--steps", "900", "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        assert command.stdout and command.stderr
        assert command.stdout.readline() == "{\n"
        command.stdout.close()
        assert not command.stderr.read()


def test_schedules_of_unlike_lengths_and_from_nothing_but_noise_are_drawn(tmp_path: Path) -> None:
    target = tmp_path / "one.svg"
    output("plot", "schedule", "custom", "karras", "--schedule-option", "custom.sigmas=[14,5,1,0]", "-o", str(target))
    lengths = [len(line.attrib["points"].split()) for line in ElementTree.parse(target).iterfind(".//{*}polyline")]
    assert lengths == [3, 20, 3, 20]
    output("plot", "schedule", "trailing", "--sampler", "ddim", "-o", str(target))
    assert len(ElementTree.parse(target).findall(".//{*}polyline")) == 2


def test_plot_schedule_draws_a_part(tmp_path: Path) -> None:
    target = tmp_path / "part.svg"
    for option, part in (("--strength=0.6", {"strength": 0.6}), ("--start=0.3", {"start": 0.3}), ("--end=0.5", {"end": 0.5})):
        output("plot", "schedule", "karras", "--steps", "10", option, "-o", str(target))
        root, table = ElementTree.parse(target).getroot(), compile_table(LADDER, "euler", "karras", 10, **part)
        [(name, value)] = part.items()
        first, last = (2 * np.log(table.alpha[i] / table.sigma[i]) for i in (0, -1))
        assert root.findtext("{*}title") == f"Noise schedules on celadon-mini: karras ({name} {value})"
        assert f"from logSNR {first:.2f} at the first of {len(table)} steps to {last:.2f}" in str(root.findtext("{*}desc"))
    assert celadon("plot", "schedule", "karras", "--strength", "0.5", "--start", "0.5").exit_code == 2


def test_as_many_steps_as_the_given_sigmas_say() -> None:
    said = json.loads(output("explain", "--schedule", "custom", "--schedule-option", "sigmas=[14.6, 5, 1, 0]", "--json"))
    assert said["steps"] == 3 and said["schedule_options"] == {"sigmas": [14.6, 5.0, 1.0, 0.0]}


def test_explain_knows_the_sampler_of_an_edm_model(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    config = {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    said = json.loads(output("explain", "--sampler", "EDMEuler", "--steps", "3", "--model", str(tmp_path), "--json"))
    assert (said["sampler"], said["rows"][0]["sigma"]) == ("edm_euler", pytest.approx(80.0))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("explain", "--sampler", "nothing"), "there is no sampler"),
        (("explain", "--sampler", "dpmp_2m"), "did you mean dpmpp_2m"),
        (("explain", "--schedule", "KARAS"), "did you mean karras"),
        (("explain", "--sampler", "Euler EDM"), "euler with karras"),
        (("explain", "--sampler", "DPM adaptive"), "chooses its steps"),
        (("explain", "--sampler-option", "eta"), "name=value"),
        (("explain", "--sampler", "euler", "--sampler-option", "eta=1"), "has no option 'eta'"),
        (("explain", "--model", str(Path(__file__).parent)), "no checkpoint"),
        (("plot", "schedule", "nothing"), "there is no schedule"),
        (("plot", "schedule", *["karras"] * 9), "at most 8"),
        (("plot", "schedule", "karras", "--schedule-option", "beta.alpha=1"), "of none of the schedules"),
        (("plot", "process", "-o", "x.gif"), "pictures are"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(arguments: tuple[str, ...], said: str) -> None:
    result = celadon(*arguments)
    assert result.exit_code == 2
    assert said in result.output and "Traceback" not in result.output


def test_plot_schedule_draws_what_the_ladder_gives(tmp_path: Path) -> None:
    file = tmp_path / "schedules.svg"
    options = ("--schedule-option", "karras.rho=3", "--steps", "11")
    assert output("plot", "schedule", "karras", "simple", "-o", str(file), *options).strip() == str(file)
    root = ElementTree.fromstring(file.read_text())
    title, desc = (root.findtext(f"{{http://www.w3.org/2000/svg}}{tag}") for tag in ("title", "desc"))
    assert title == "Noise schedules on celadon-mini: karras (rho 3), simple"
    table = compile_table(LADDER, "euler", "karras", 11, {}, {"rho": 3.0})
    last = 2 * np.log(table.alpha[-1] / table.sigma[-1])
    assert f"of 11 steps to {last:.2f}" in str(desc)
    assert output("plot", "schedule", "karras", "-o", "-").startswith("<svg")


# --- the two processes on the model that comes along ------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint():
    return load(DEFAULT_MODEL, device=torch.device("cpu"), dtype=torch.float32)


def torch_backend(checkpoint):
    return TorchStages(checkpoint), TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype)


def test_a_picture_forms_as_the_slow_loop_draws_it(checkpoint) -> None:
    table = compile_table(checkpoint.ladder, "ddim", "trailing", 3)
    forming, last = backward(*torch_backend(checkpoint), table, "a red apple", seed=3, guidance=4.0)
    card = checkpoint.card
    asked = {"sampler": "ddim", "schedule": "trailing", "steps": 3, "guidance": 4.0, "seed": 3}
    params = GenerationParams(prompt="a red apple", model=card.id, width=card.width, height=card.height, **asked)
    assert [f.row for f in forming] == [0, 1, 2]
    np.testing.assert_allclose(last, denoise(checkpoint, params), rtol=1e-3, atol=1e-3)


def test_a_picture_dissolves_along_the_ladder(checkpoint) -> None:
    table = compile_table(checkpoint.ladder, "euler", "trailing", 6)
    x0 = np.random.default_rng(0).standard_normal((4, 16, 16)).astype(np.float32)
    levels = list(forward(x0, table, seed=5))
    like = [float(np.corrcoef(x0.ravel(), x.ravel())[0, 1]) for x in levels]
    assert all(a > b for a, b in pairwise(like)), "the picture is lost"
    assert like[0] > 0.9 and abs(like[-1]) < 0.1
    noise = levels[-1] - table.alpha[0] * x0
    for x, alpha, sigma in zip(levels, table.alpha[::-1], table.sigma[::-1], strict=True):
        np.testing.assert_allclose(x, alpha * x0 + sigma * noise / table.sigma[0], rtol=1e-4, atol=1e-4)


def test_encoding_undoes_decoding(checkpoint) -> None:
    """Of a picture in the model's own words; a VAE loses a little."""
    _, latents = backward(
        *torch_backend(checkpoint), compile_table(checkpoint.ladder, "dpmpp_2m", "auto", 4), "a red apple", seed=3, guidance=4.0
    )
    picture = decode(checkpoint, latents)
    again = decode(checkpoint, encode_picture(checkpoint, picture).mean)
    assert np.abs(picture.astype(float) - again).mean() < 6


def test_plot_process_makes_a_sheet(tmp_path: Path) -> None:
    given = tmp_path / "given.png"
    Image.new("RGB", (200, 150), "green").save(given)
    file = tmp_path / "process.png"
    arguments = ("a red apple", "--steps", "2", "--sampler", "heun", "--schedule", "trailing", "--picture", str(given), "-o", str(file))
    assert output("plot", "process", *arguments).strip().endswith(str(file))
    with Image.open(file) as sheet:
        assert sheet.size[0] > 3 * 128 and sheet.size[1] > 3 * 128
        top_left = sheet.convert("RGB").getpixel((8 + 64, 8 + 16 + 64))
    assert top_left[1] > top_left[0] and top_left[1] > top_left[2], "the green picture, not yet dissolved"


WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "transformers"):
    sys.modules[name] = None
from celadon.__main__ import app
app(sys.argv[1:])
"""


def test_plot_process_needs_no_torch(tmp_path: Path) -> None:
    """Where OpenVINO draws, as after `make install`."""
    file = tmp_path / "process.png"
    arguments = [sys.executable, "-c", WITHOUT_TORCH, "plot", "process", "a red apple", "--steps", "2", "-o", str(file)]
    setting = {"CELADON_MODEL": "", "CELADON_BACKEND": "openvino", "CELADON_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=50, env=os.environ | setting)
    assert done.returncode == 0, done.stderr
    with Image.open(file) as sheet:
        assert sheet.size[0] > 3 * 128 and sheet.size[1] > 3 * 128
