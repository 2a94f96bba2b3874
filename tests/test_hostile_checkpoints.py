"""A folder of hostile checkpoints: each is refused with a code by `celadon models check` and `add`, and by a worker that is told of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from celadon import models
from tests.test_checkpoint_files import FOLDERS, HOSTILE
from training.toy import write_toy
from workers import serving
from workers.settings import WorkerSettings

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_toy(tmp_path_factory.mktemp("toy") / "toy")


def fifo(path: str) -> Callable[[Path], None]:
    """Whoever opens it waits for ever."""

    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        os.mkfifo(folder / path)

    return change


def link(path: str, to: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).symlink_to(to)

    return change


def write(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


def said(path: str, **fields: object) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | fields)) and None


def huge(path: str) -> Callable[[Path], None]:
    """A gigabyte of nothing that takes no room."""
    return lambda folder: os.truncate(folder / path, 1 << 30)


def folder_instead(path: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).unlink(missing_ok=True)
        (folder / path).mkdir()

    return change


def poisoned(part: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / part / WEIGHTS)
        name = next(name for name in tensors if name.startswith("conv_out" if part == "unet" else "decoder.conv_out"))
        tensors[name] = torch.full_like(tensors[name], value)
        save_file(tensors, folder / part / WEIGHTS, {"format": "pt"})

    return change


INDEX = f"unet/{WEIGHTS}.index.json"
DEEP = "[" * 200_000
MORE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights that are a pipe": (fifo(f"unet/{WEIGHTS}"), "weights_unreadable"),
    "weights that never end": (link(f"unet/{WEIGHTS}", "/dev/zero"), "weights_unreadable"),
    "weights that are a folder": (folder_instead(f"vae/{WEIGHTS}"), "weights_unreadable"),
    "weights that are this machine's secrets": (link(f"vae/{WEIGHTS}", "/etc/hostname"), "weights_truncated"),
    "weights that are linked in a circle": (link(f"vae/{WEIGHTS}", WEIGHTS), "weights_missing"),
    "an absolute shard": (write(INDEX, '{"weight_map": {"w": "/etc/hostname"}}'), "weights_missing"),
    "shards that are numbers": (write(INDEX, '{"weight_map": {"w": 3}}'), "weights_missing"),
    "a deep index of shards": (write(INDEX, DEEP), "weights_unreadable"),
    "a deep index": (write("model_index.json", DEEP), "bad_config"),
    "an index that is a pipe": (fifo("model_index.json"), "bad_config"),
    "a config that never ends": (link("unet/config.json", "/dev/zero"), "bad_config"),
    "a config of a gigabyte": (huge("unet/config.json"), "bad_config"),
    "a config that is a folder": (folder_instead("vae/config.json"), "bad_config"),
    "a vocabulary that never ends": (link("tokenizer/merges.txt", "/dev/zero"), "bad_config"),
    "more that never ends": (link("unet/notes.txt", "/dev/zero"), "bad_config"),
    "ten thousand blocks": (said("vae/config.json", block_out_channels=[1] * 10_000), "bad_config"),
    "a picture of no size": (said("celadon.json", width=0), "bad_config"),
    "a picture of words": (said("celadon.json", width="wide"), "bad_config"),
    "a thousand million levels": (said("scheduler/scheduler_config.json", num_train_timesteps=10**9), "bad_config"),
    "a thousand million layers of text": (said("text_encoder/config.json", num_hidden_layers=10**9), "bad_config"),
    "a thousand million layers a block": (said("unet/config.json", layers_per_block=10**9), "bad_config"),
    "a block without channels": (said("unet/config.json", block_out_channels=[0, 32]), "bad_config"),
    "half a channel": (said("unet/config.json", block_out_channels=[32.5, 64]), "bad_config"),
    "channels in a broken form": (said("unet/config.json", block_out_channels=[32.0, 64]), "bad_config"),
    "layers in lists in lists": (said("unet/config.json", layers_per_block=json.loads("[" * 400 + "1" + "]" * 400)), "bad_config"),
    "groups of nothing": (said("unet/config.json", norm_num_groups=0), "bad_config"),
    "latents of no size": (said("vae/config.json", scaling_factor=0), "bad_config"),
    "latents of words": (said("vae/config.json", scaling_factor="x"), "bad_config"),
    "latents that are no number": (said("vae/config.json", scaling_factor=float("nan")), "bad_config"),
    "no prompt": (said("tokenizer/tokenizer_config.json", model_max_length=-5), "bad_config"),
}


def refused_by_everyone(place: Path, folder: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line and without a trace; a worker ends with the status that says that starting again cannot help."""
    settings = {"CELADON_DATA_DIR": str(folder / "data"), "COLUMNS": "500"}
    checked = CliRunner().invoke(models.app, ["check", str(place), "--json"], env=settings)
    assert checked.exit_code == models.REFUSED and json.loads(checked.output)["refused"] == code, (checked.output, checked.exception)
    added = CliRunner().invoke(models.app, ["add", str(place), "--name", "hostile"], env=settings)
    assert added.exit_code == models.REFUSED and not (folder / "data" / "models.json").exists(), (added.output, added.exception)
    capsys.readouterr()
    told = WorkerSettings(redis_url="redis://localhost:1", data_dir=folder / "data", model=str(place))
    assert asyncio.run(serving.run(told, asyncio.Event())) == serving.REFUSED
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


def test_a_tokenizer_that_is_none(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A worker finds it, and ends with the status that says that starting again cannot help."""
    folder = Path(shutil.copytree(toy, tmp_path / "hostile"))
    (folder / "tokenizer" / "tokenizer.json").write_text('{"a": "b"}')
    settings = WorkerSettings(redis_url="redis://localhost:1", data_dir=tmp_path / "data", model=str(folder), backend="openvino")
    assert asyncio.run(serving.run(settings, asyncio.Event())) == serving.REFUSED
    assert "(bad_config)" in capsys.readouterr().err


@pytest.mark.parametrize("make", [fifo("x.safetensors"), link("x.safetensors", "/dev/zero"), folder_instead("x.safetensors")])
def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]) -> None:
    make(tmp_path)
    refused_by_everyone(tmp_path / "x.safetensors", tmp_path, "not_found", capsys)
