"""The torch backend where it is compiled, and on a GPU: what it draws is what the plain loop on the CPU draws, alone and in a crowd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import load
from pipelines.params import GenerationParams
from pipelines.planning import on_host, table_for
from pipelines.text_to_image import TorchStages, denoise
from training.toy import write_toy
from workers.model import Model, ModelRefused, open_model
from workers.model_torch import compile_blocks
from workers.settings import WorkerSettings

SAMPLERS = ("euler", "dpmpp_2m", "unipc", "euler_a")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("models") / "toy")


def jobs() -> list[GenerationParams]:
    return [
        GenerationParams(
            prompt=f"{i} red apples", model="toy", width=64, height=64, steps=5 + i, guidance=3.0 if i % 2 else 1.0, sampler=sampler,
            schedule="auto", seed=i,
        )
        for i, sampler in enumerate(SAMPLERS)
    ]  # fmt: skip


def sample_of(stages: TorchStages, job: GenerationParams, name: str, *, tensors: bool = False) -> Sample:
    """With embeddings as torch's where registers are, too."""
    cond, uncond = (stages.encode(text).states for text in (job.prompt, ""))
    cond, uncond = (torch.as_tensor(a) for a in (cond, uncond)) if tensors else (cond, uncond)
    return Sample(
        id=name, table=table_for(stages, job), shape=stages.latent_shape(64, 64), seed=job.seed, cond=cond, uncond=uncond,
        guidance=job.guidance, guidance_rescale=stages.card.defaults.guidance_rescale,
    )  # fmt: skip


def drawn(model: Model, asked: list[GenerationParams]) -> list[np.ndarray]:
    engine: Engine = model.engine
    for i, job in enumerate(asked):
        engine.add(sample_of(model.stages, job, str(i)))
    found: dict[str, np.ndarray] = {}
    while engine.busy:
        found |= {event.sample_id: on_host(event.latents) for event in engine.step(0.0) if isinstance(event, Finished)}
    return [found[str(i)] for i in range(len(asked))]


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # by torch.compile itself
@pytest.mark.parametrize(("device", "dtype", "compile", "graphs", "tolerance"), [
    *(pytest.param("cpu", "float32", compile, "off", 1e-4, marks=pytest.mark.slow) for compile in ("none", "blocks")),
    *(
        pytest.param("cuda", dtype, compile, graphs, tolerance, marks=pytest.mark.gpu)
        for dtype, tolerance in (("float32", 1e-3), ("bfloat16", 5e-2))
        for compile in ("none", "blocks")
        for graphs in ("off", "auto")
    ),
])  # fmt: skip
def test_it_draws_what_the_plain_loop_draws_alone_and_in_a_crowd(
    device: str, dtype: str, compile: str, graphs: str, tolerance: float, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = WorkerSettings.model_validate({
        "redis_url": "redis://localhost", "backend": "torch", "device": device, "dtype": dtype, "compile": compile, "graphs": graphs,
        "model": str(toy),
        "data_dir": tmp_path, "threads": 1,
    })  # fmt: skip
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    model = open_model(settings)
    assert any((tmp_path / "cache" / "inductor").rglob("*.py")) is (compile == "blocks"), "kernels are kept for the next start"
    graphed = ", graphs" if graphs == "auto" and device == "cuda" else ""
    assert f"torch-{dtype}{', compiled blocks' if compile == 'blocks' else ''}{graphed}, rows " in model.backend
    together = drawn(model, jobs())
    plain = load(toy, device=torch.device("cpu"), dtype=torch.float32)
    for job, latents in zip(jobs(), together, strict=True):
        assert np.array_equal(drawn(model, [job])[0], latents)
        wanted = denoise(plain, job)
        assert np.linalg.norm(latents - wanted) / np.linalg.norm(wanted) < tolerance


def test_a_unet_without_blocks_that_repeat_is_refused(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    unet = load(toy, device=torch.device("cpu"), dtype=torch.float32).unet
    monkeypatch.setattr(type(unet), "_repeated_blocks", None)
    with pytest.raises(ModelRefused, match="no blocks that repeat"):
        compile_blocks(unet)
