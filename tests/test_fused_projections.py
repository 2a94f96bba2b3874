"""Fused projections of the attention: the same answers within 1e-5, weights that lie there once, and rows that notice no marked ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.denoiser_torch import TorchDenoiser
from pipelines.loading import Checkpoint, load
from tests import checkpoints
from tests.test_replay import call
from workers.model import ModelRefused, open_backend
from workers.model_torch import fuse_projections
from workers.settings import WorkerSettings


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return checkpoints.write(tmp_path_factory.mktemp("models") / request.param, request.param)


def opened(folder: Path, *, fused: bool) -> tuple[Checkpoint, TorchDenoiser]:
    checkpoint = load(folder, device=torch.device("cpu"), dtype=torch.float32)
    if fused:
        fuse_projections(checkpoint.unet)
    return checkpoint, TorchDenoiser(checkpoint.unet, device=checkpoint.device, dtype=checkpoint.dtype, told=checkpoint.told)


def test_answers_are_those_of_single_projections(folder: Path) -> None:
    checkpoint, plain = opened(folder, fused=False)
    _, fused = opened(folder, fused=True)
    given = call(checkpoint, 4)
    wanted, found = plain(*given), fused(*given)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-5
    marks = ("", "pag", "seg", "")
    wanted = plain(*given[:3], marks, *given[4:])
    marked = fused(*given[:3], marks, *given[4:])
    assert np.linalg.norm(marked - wanted) / np.linalg.norm(wanted) < 1e-5
    assert np.array_equal(marked[[0, 3]], found[[0, 3]]), "rows that are not disturbed notice nothing"
    assert not np.array_equal(marked[1:3], found[1:3])


def test_weights_lie_there_once(folder: Path) -> None:
    checkpoint, _ = opened(folder, fused=False)
    single = sum(weight.nbytes for weight in checkpoint.unet.parameters())
    fuse_projections(checkpoint.unet)
    weights = list(checkpoint.unet.parameters())
    assert sum(weight.nbytes for weight in weights) > single, "there are more of them"
    assert sum({w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in weights}.values()) == single
    assert not any(weight.requires_grad for weight in weights)


def test_a_worker_fuses_where_it_is_told_and_has_no_loras(folder: Path) -> None:
    said: dict[str, Any] = {"redis_url": "redis://localhost", "model": str(folder), "device": "cpu", "dtype": "float32", "fuse": "qkv"}
    assert open_backend(WorkerSettings(**said, backend="torch")).name == "torch-float32, fused projections"
    with pytest.raises(ModelRefused, match="CELADON_LORAS"):
        open_backend(WorkerSettings(**said, backend="torch", loras="."))
    with pytest.raises(ModelRefused, match="CELADON_FUSE"):
        open_backend(WorkerSettings(**said, backend="openvino"))
