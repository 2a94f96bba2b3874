"""The OpenVINO backend: the engine against the slow torch loop, promises kept, caches, and which backend is picked."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from structlog.testing import capture_logs

from pipelines.checkpoint_folder import describe
from pipelines.denoiser import batch_invariant
from pipelines.engine.engine import Engine
from pipelines.engine.events import Finished
from pipelines.engine.sample import Sample
from pipelines.loading import load
from pipelines.openvino_model import PLAINLY, Compiler, OpenVinoDenoiser, OpenVinoStages, takes
from pipelines.params import GenerationParams
from pipelines.planning import table_for
from pipelines.text_to_image import denoise, encode_prompt
from tests.test_openvino_graphs import MINI, PROMPTS, draws, relative
from training.toy import write_toy
from workers.model import ModelRefused, open_model, pick_backend, weight_bytes
from workers.model_openvino import SETTLE
from workers.settings import WorkerSettings


def request(**changes: Any) -> GenerationParams:
    usual = {"model": "toy", "width": 128, "height": 128, "schedule": "auto", "seed": 42, "negative_prompt": "a blue car"}
    return GenerationParams(**usual | changes)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def opened(
    folder: Path, precision: str = "float32", streams: int = 1, cache: Path | None = None
) -> tuple[OpenVinoStages, OpenVinoDenoiser]:
    said = describe(folder)
    compiler = Compiler(said, cache, threads=streams)
    stages = OpenVinoStages(said, compiler, precision)
    return stages, OpenVinoDenoiser(compiler.forms(precision, streams), said.configs["unet"], streams)


def drawn(stages: OpenVinoStages, denoiser: OpenVinoDenoiser, asked: list[GenerationParams], **engine: Any) -> list[np.ndarray]:
    """Latents of each request, all in one engine."""
    machine = Engine(denoiser, slots=len(asked), **engine)
    for i, params in enumerate(asked):
        table = table_for(stages, params)
        guided = stages.encode(params.negative_prompt, params.reading).states if params.guidance > 1 else None
        shape = stages.latent_shape(params.width, params.height)
        rescale = stages.card.defaults.guidance_rescale
        machine.add(Sample(
            id=str(i), table=table, shape=shape, seed=params.image_seed(0),
            cond=stages.encode(params.prompt, params.reading).states, uncond=guided,
            guidance=params.guidance, guidance_rescale=rescale, guidance_options=params.guidance_options, worn=params.worn,
        ))  # fmt: skip
    found: dict[str, np.ndarray] = {}
    while machine.busy:
        found |= {e.sample_id: e.latents for e in machine.step(0.0) if isinstance(e, Finished)}
    return [found[str(i)] for i in range(len(asked))]


MIX = [
    request(prompt="a red apple", sampler="dpmpp_2m", steps=6, guidance=3.0),
    request(prompt="a cat", sampler="heun", steps=4, guidance=1.0, seed=5),
    request(prompt="two dogs on a blue background", sampler="euler_a", steps=7, guidance=5.0, seed=6),
    request(prompt="", sampler="unipc", steps=5, guidance=2.0, guidance_options={"pag_scale": 2.0}, seed=7),
]


def test_the_engine_draws_what_the_slow_torch_loop_draws(toy: Path) -> None:
    checkpoint = load(toy, device=torch.device("cpu"), dtype=torch.float32)
    stages, denoiser = opened(toy)
    for params, latents in zip(MIX, drawn(stages, denoiser, MIX), strict=True):
        assert relative(latents, denoise(checkpoint, params)) < 1e-4


def test_stages_are_those_of_torch(toy: Path) -> None:
    from pipelines.text_to_image import decode, encode_picture, prompt_tokens

    checkpoint = load(toy, device=torch.device("cpu"), dtype=torch.float32)
    stages, _ = opened(toy)
    for prompt in PROMPTS:
        assert stages.tokens(prompt) == prompt_tokens(checkpoint, prompt)
        assert np.abs(stages.encode(prompt).states - encode_prompt(checkpoint, prompt).numpy()).max() < 1e-5
    z = np.random.default_rng(0).standard_normal((4, 16, 16), dtype=np.float32)
    assert np.abs(stages.decode(z).astype(int) - decode(checkpoint, z)).max() <= 1
    picture = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    for found, wanted in zip(stages.encode_picture(picture), encode_picture(checkpoint, picture), strict=True):
        assert relative(found, wanted) < 1e-5
    with pytest.raises(FloatingPointError):
        stages.decode(np.full((4, 16, 16), np.nan, np.float32))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_picture_is_the_same_alone_and_in_a_crowd_and_in_any_number_of_streams(precision: str, toy: Path) -> None:
    stages, denoiser = opened(toy, precision)
    shape = stages.latent_shape(128, 128)
    rows = {} if batch_invariant(denoiser, shape, stages.encode("").states) else {"rows": 2}
    together = drawn(stages, denoiser, MIX, **rows)
    apart = [drawn(stages, denoiser, [params], **rows)[0] for params in MIX]
    assert all(np.array_equal(a, b) for a, b in zip(together, apart, strict=True))
    if not rows:
        many = drawn(*opened(toy, precision, streams=3), MIX)
        assert all(np.array_equal(a, b) for a, b in zip(together, many, strict=True))


def test_bfloat16_on_the_shipped_model_stays_within_a_hundredth() -> None:
    """At every level, the first ones too: the time embedding is made in single precision outside the graph."""
    said = describe(MINI)
    compiler = Compiler(said, None, threads=1)
    low, full = (OpenVinoDenoiser(compiler.forms(p), said.configs["unet"]) for p in ("bfloat16", "float32"))
    x, t, context = draws(said.configs["unet"] | {"cross_attention_dim": 192}, 8, (16, 16))
    for wanted, found in zip(full(x, t, context), low(x, t, context), strict=True):
        assert relative(found, wanted) < 1.5e-2


def test_each_part_is_compiled_once_and_in_its_precision(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, compile = [], Compiler.compile

    def noted(self: Compiler, part: str, precision: str, *further: Any) -> Any:
        made.append((part, precision))
        return compile(self, part, precision, *further)

    monkeypatch.setattr(Compiler, "compile", noted)
    opened(toy, "bfloat16", cache=tmp_path)
    assert made == [("text_encoder", "float32"), ("vae", "bfloat16"), ("unet", "bfloat16")]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("streams", [1, 2])
def test_the_usual_call_has_its_own_graph_and_no_bit_changes(precision: str, streams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the shipped model: its twin takes calls of any size, and gives the same bits."""
    said = describe(MINI)
    compiler, calls = Compiler(said, None, threads=streams), []
    plain, quick = (OpenVinoDenoiser(compiler.forms(precision, streams), said.configs["unet"], streams) for _ in range(2))
    if not quick.specialize((4, 16, 16), 32):
        assert not torch.cpu.get_capabilities().get("avx512_f"), "both graphs agree on processors with AVX-512"
        pytest.skip("this processor rounds otherwise in a graph of one size, so that it is not used")
    call, [request, *_] = quick._usual
    assert call == (2 // streams, 16, 16, 32)

    class Noted:
        """A stream that tells of what it is asked."""

        def __getattr__(self, name: str) -> Any:
            return getattr(request, name)

        def start_async(self, given: dict[str, np.ndarray]) -> None:
            calls.append(given["x"].shape)
            request.start_async(given)

    monkeypatch.setattr(quick, "_usual", (call, [Noted(), *quick._usual[1][1:]]))
    for rows, size, length in ((2, 16, 32), (2, 16, 64), (3, 16, 32), (2, 24, 32), (1, 16, 32), (2, 16, 32)):
        rng = np.random.default_rng(rows)
        x, context = (rng.standard_normal(shape, dtype=np.float32) for shape in ((rows, 4, size, size), (rows, length, 192)))
        told = x, np.linspace(990, 3, rows, dtype=np.float32), context
        assert np.array_equal(plain(*told), quick(*told))
    assert len(calls) == (2 if streams == 1 else 3)  # one row in one stream is a call of two streams, too
    assert {shape[2:] for shape in calls} == {(16, 16)}


def test_a_graph_of_one_size_whose_bits_are_others_is_not_used(toy: Path) -> None:
    """And a large model has none."""
    said = describe(toy)
    compiler = Compiler(said, None, threads=1)
    usual = compiler.forms("float32")
    denoiser = OpenVinoDenoiser(
        lambda form, worn, call=None: usual(form, worn, call) if call is None else compiler.compile(form, "bfloat16", call=call),
        said.configs["unet"],
    )
    assert said.small
    assert not denoiser.specialize((4, 16, 16), 32)
    assert denoiser._usual is None
    large = replace(said, configs=dict(said.configs) | {"unet": dict(said.configs["unet"]) | {"sample_size": 64}})
    assert not large.small


def test_a_model_with_two_graphs_counts_for_two(toy: Path) -> None:
    """What a worker's models may take together is to be what they take: torch has one U-Net of each, OpenVINO two of a small one."""
    said = describe(toy)
    settings = WorkerSettings(redis_url="redis://localhost", backend="openvino", dtype="float32")
    torches = weight_bytes(said, settings.model_copy(update={"backend": "torch"}))
    assert torches == 4 * said.parameters
    unet = sum(tensor.size for tensor in load_file(toy / "unet" / "diffusion_pytorch_model.safetensors").values())
    assert weight_bytes(said, settings) == torches + 4 * unet
    for other in ({"sample_size": 64}, {"time_cond_proj_dim": 14}):  # a large one, and one of which there is no graph
        config = dict(said.configs["unet"]) | other
        assert weight_bytes(replace(said, configs=dict(said.configs) | {"unet": config}), settings) == torches


def test_a_property_that_this_openvino_does_not_know_is_not_asked_for() -> None:
    assert takes(PLAINLY)
    assert not takes({"SNIPPETS_MOOD": "DISABLE"})


def test_a_worker_that_cannot_have_its_own_graph_goes_on_without(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile = Compiler.compile

    def full(self: Compiler, part: str, precision: str, streams: int = 1, worn: Any = (), call: Any = None) -> Any:
        if call:
            raise MemoryError
        return compile(self, part, precision, streams, worn)

    monkeypatch.setattr(Compiler, "compile", full)
    with capture_logs() as told:
        model = open_model(WorkerSettings(redis_url="redis://nowhere", model=str(toy), backend="openvino", threads=1, data_dir=tmp_path))
        settled()
    assert [(line["event"], line["reason"]) for line in told if "settled" in line["event"]] == [("not_settled", "MemoryError")]
    assert model.engine.free_slots


def test_a_second_start_reads_no_weights(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    first = drawn(*opened(folder, cache=tmp_path / "cache"), MIX[:1])[0]
    said = describe(folder)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    compiler = Compiler(said, tmp_path / "cache", threads=1)
    again = OpenVinoStages(said, compiler), OpenVinoDenoiser(compiler.forms("float32"), said.configs["unet"])
    assert np.array_equal(first, drawn(*again, MIX[:1])[0])


def test_a_broken_cache_is_made_anew(tmp_path: Path, toy: Path) -> None:
    first = drawn(*opened(toy, cache=tmp_path), MIX[:1])[0]
    blobs = list(tmp_path.glob("*.blob"))
    assert len(blobs) == 3
    for blob, content in zip(blobs, (b"not a model", b"", blobs[2].read_bytes()[:-4096]), strict=True):
        blob.write_bytes(content)
    assert np.array_equal(first, drawn(*opened(toy, cache=tmp_path), MIX[:1])[0])
    assert all(blob.stat().st_size > 1000 for blob in blobs)


def test_whether_a_batch_changes_bits_is_measured_once_a_build(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[bool] = []

    def measuring(*args: Any) -> bool:
        measured.append(batch_invariant(*args))
        return measured[-1]

    def backend(**given: Any) -> str:
        model = open_model(
            settings(**{"backend": "openvino", "dtype": "float32", "model": str(toy), "data_dir": tmp_path, "threads": 1} | given)
        )
        settled()
        return model.backend

    monkeypatch.setattr("workers.model.batch_invariant", measuring)
    first = backend()
    assert backend() == first and len(measured) == 1
    backend(threads=2)  # another build
    assert len(measured) == 2
    notes = list((tmp_path / "cache").glob("*.json"))
    assert len(notes) == 2
    for note in notes:
        note.write_text('{"batch_invariant": false}')
    assert backend().endswith("rows 2") and len(measured) == 2
    for nonsense in ("", "[]", '{"batch_invariant": "yes"}'):
        for note in notes:
            note.write_text(nonsense)
        assert backend() == first
    assert len(measured) == 5
    for blob in (tmp_path / "cache").glob("*.blob"):
        blob.write_bytes(b"not a model")
    assert backend() == first and len(measured) == 6


# The choice


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == SETTLE:
            thread.join()


def settings(**given: Any) -> WorkerSettings:
    return WorkerSettings(redis_url="redis://localhost", **given)


@pytest.mark.parametrize(("given", "installed", "gpu", "picked"), [
    ({}, {"openvino", "torch"}, False, "openvino"),
    ({}, {"openvino", "torch"}, True, "torch"),
    ({}, {"openvino"}, True, "openvino"),
    ({}, {"torch"}, False, "torch"),
    ({"device": "cpu"}, {"openvino", "torch"}, True, "openvino"),
    ({"device": "cuda"}, {"openvino", "torch"}, False, "torch"),
    ({"dtype": "float16"}, {"openvino", "torch"}, False, "torch"),
    ({"backend": "torch"}, {"openvino", "torch"}, False, "torch"),
    ({"device": "cuda"}, {"openvino"}, False, "make install-gpu"),
    ({"backend": "torch"}, {"openvino"}, False, r"celadon\[gpu\]"),
    ({}, set(), False, "no backend is installed"),
])  # fmt: skip
def test_the_backend_is_picked_with_a_reason(given: dict[str, Any], installed: set[str], gpu: bool, picked: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in installed or None)
    monkeypatch.setattr("workers.model._sees_gpu", lambda: gpu)
    if picked in ("openvino", "torch"):
        backend, reason = pick_backend(settings(**given))
        assert backend == picked and reason
    else:
        with pytest.raises(ModelRefused, match=picked):
            pick_backend(settings(**given))


def test_weights_in_8_bits_are_another_build(toy: Path, tmp_path: Path) -> None:
    for weights in ("stored", "int8", "int8"):
        model = open_model(
            settings(backend="openvino", device="cpu", dtype="float32", model=str(toy), data_dir=tmp_path, threads=1, weights=weights)
        )
        settled()
    assert "openvino-float32, int8 weights, 1 stream" in model.backend
    stored, rounded = sorted((path.stat().st_size for path in (tmp_path / "cache").glob("unet-*.blob")), reverse=True)
    assert rounded < 0.9 * stored


def test_both_backends_open_and_say_what_they_are(toy: Path, tmp_path: Path) -> None:
    names = {}
    for backend in ("openvino", "torch"):
        model = open_model(settings(backend=backend, device="cpu", dtype="float32", model=str(toy), data_dir=tmp_path, threads=1))
        names[backend] = model.backend
        assert model.stages.card.id == "toy" and not model.engine.busy
        assert model.engine._rows or model.engine._knee.alone((4, 16, 16)), "a pass is measured at the start"
    assert names["openvino"].startswith("openvino-float32, 1 stream of 1 thread, rows ")
    assert names["torch"].startswith("torch-float32, rows ")
    with pytest.raises(ModelRefused, match=r"CELADON_WEIGHTS=int8 is OpenVINO's"):
        open_model(settings(backend="torch", weights="int8", model=str(toy), data_dir=tmp_path))
    with pytest.raises(ModelRefused, match=r"CELADON_COMPILE is torch's"):
        open_model(settings(backend="openvino", compile="blocks", model=str(toy), data_dir=tmp_path))
    with pytest.raises(ModelRefused, match="on CPUs"):
        open_model(settings(backend="openvino", dtype="float16", model=str(toy)))


WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(("torch", "diffusers", "transformers", "accelerate"))
import numpy as np
from workers.settings import WorkerSettings
from workers.model import open_model
import workers.drawing, workers.worker, workers.encode
model = open_model(WorkerSettings(redis_url="redis://localhost", backend="openvino", model=sys.argv[1], data_dir=sys.argv[2]))
picture = model.stages.decode(np.zeros(model.stages.latent_shape(128, 128), np.float32))
assert picture.shape == (128, 128, 3), picture.shape
print(model.backend, sys.modules["openvino_telemetry"])
"""


def test_a_worker_needs_no_torch(toy: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(toy), str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("openvino-") and done.stdout.strip().endswith(" None")
