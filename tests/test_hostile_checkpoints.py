"""A folder of hostile checkpoints: each is refused with a code by `celadon models check` and `add`, and by a worker that is told of it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from celadon import models
from tests.hostile_folders import MORE, UNET, WEIGHTS, every, fifo, folder_instead, link
from tests.test_checkpoint_files import FOLDERS, HOSTILE
from training.toy import write_toy
from workers import serving
from workers.model import ModelRefused, describe_models, open_backend, open_model
from workers.settings import WorkerSettings


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_toy(tmp_path_factory.mktemp("toy") / "toy")


def poisoned(part: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / part / WEIGHTS)
        name = next(name for name in tensors if name.startswith("conv_out" if part == "unet" else "decoder.conv_out"))
        tensors[name] = torch.full_like(tensors[name], value)
        save_file(tensors, folder / part / WEIGHTS, {"format": "pt"})

    return change


def refused_by_everyone(place: Path, folder: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line and without a trace; a worker ends with the status that says that starting again cannot help."""
    settings = {"CELADON_DATA_DIR": str(folder / "data"), "COLUMNS": "500"}
    checked = CliRunner().invoke(models.app, ["check", str(place), "--json"], env=settings)
    assert checked.exit_code == models.REFUSED and json.loads(checked.output)["refused"] == code, (checked.output, checked.exception)
    added = CliRunner().invoke(models.app, ["add", str(place), "--name", "hostile"], env=settings)
    assert added.exit_code == models.REFUSED and not (folder / "data" / "models.json").exists(), (added.output, added.exception)
    for backend in ("openvino", "torch"):
        capsys.readouterr()
        told = {"data_dir": folder / "data", "model": str(place), "backend": backend}
        settings = WorkerSettings(redis_url="redis://localhost:1", **told)  # type: ignore[arg-type]
        assert asyncio.run(serving.run(settings, asyncio.Event())) == serving.REFUSED
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("CELADON_MODEL: ") and lines[0].endswith(f"({code})"), lines


@pytest.mark.parametrize("name", [*FOLDERS, *MORE])
def test_a_hostile_folder(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    change, code = (FOLDERS | MORE)[name]
    change(shutil.copytree(toy, tmp_path / "hostile"))
    refused_by_everyone(tmp_path / "hostile", tmp_path, code, capsys)


@pytest.mark.parametrize("name", [name for name in HOSTILE if name != "huge header"])
def test_a_hostile_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    data, code = HOSTILE[name]
    (tmp_path / "hostile.safetensors").write_bytes(data)
    refused_by_everyone(tmp_path / "hostile.safetensors", tmp_path, code, capsys)


@pytest.mark.timeout(300)  # models are opened
@pytest.mark.parametrize(
    ("part", "value", "backend"), [("unet", nan, "openvino"), ("unet", inf, "torch"), ("vae", nan, "torch"), ("vae", inf, "openvino")]
)
def test_weights_that_are_no_numbers(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, value: float, backend: str
) -> None:
    """A header does not tell them, so it is a worker that finds them, before it takes a job."""
    poisoned(part, value)(shutil.copytree(toy, tmp_path / "hostile"))
    told = {"model": str(tmp_path / "hostile"), "backend": backend, "dtype": "float32"}
    settings = WorkerSettings(redis_url="redis://localhost:1", data_dir=tmp_path / "data", **told)  # type: ignore[arg-type]
    assert asyncio.run(serving.run(settings, asyncio.Event())) == serving.REFUSED
    said = capsys.readouterr().err
    assert "weights_not_finite" in said and {"unet": "U-Net", "vae": "VAE"}[part] in said


@pytest.mark.timeout(300)  # models are opened
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_what_goes_only_after_a_folder_was_looked_at(toy: Path, tmp_path: Path, backend: str) -> None:
    """A worker with several models opens some of them hours later, and goes on without one that can no longer be opened."""
    folder = Path(shutil.copytree(toy, tmp_path / "hostile"))
    settings = WorkerSettings(redis_url="redis://localhost:1", model=str(folder), backend=backend, dtype="float32")  # type: ignore[arg-type]
    [said] = describe_models(settings).values()
    (folder / "tokenizer" / "tokenizer.json").write_text('{"a": "b"}')
    with pytest.raises(ModelRefused, match=r"tokenizer cannot be read: .*\(bad_config\)$"):
        open_model(settings, said)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float64])
def test_unusual_weights_that_both_backends_read(toy: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    folder = Path(shutil.copytree(toy, tmp_path / "unusual"))
    every(UNET, dtype)(folder)
    tensors = load_file(folder / UNET)
    save_file(tensors | {"up_blocks.9.time_emb_proj.weight": torch.zeros(3, 5)}, folder / UNET, {"format": "pt"})  # and one too many
    levels = np.zeros((2, 4, 16, 16), np.float32), np.full(2, 500, np.float32), np.zeros((2, 5, 32), np.float32)
    found = []
    for backend in ("openvino", "torch"):
        told = {"model": str(folder), "backend": backend, "dtype": "float32", "data_dir": tmp_path / "data"}
        denoiser = open_backend(WorkerSettings(redis_url="redis://localhost:1", **told)).denoiser  # type: ignore[arg-type]
        made = denoiser(*(denoiser.xp.asarray(array) for array in levels))
        found.append(np.asarray(made))
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize("make", [fifo("x.safetensors"), link("x.safetensors", "/dev/zero"), folder_instead("x.safetensors")])
def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]) -> None:
    make(tmp_path)
    refused_by_everyone(tmp_path / "x.safetensors", tmp_path, "not_found", capsys)
