"""What surrounds the training stages: noise options, the pack, parts, inherited words, distillation, and the pencil."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from transformers import CLIPTextModel, CLIPTokenizer

from pipelines.gamma import forward_process
from pipelines.loading import load as load_checkpoint
from pipelines.prediction import MEASURED, preconditioning
from pipelines.samplers import compile_table
from tests.test_training import drawn_icons, small_vae, stop_after
from training import lcm, machine, noise, parts, text, unet, vae
from training.captions import vocabulary
from training.data import checksums, compose, pack, unpack, verify
from training.export import card, write_checkpoint
from training.noise import COSINE, Noise
from training.pencil import pencil_drawing
from training.toy import write_toy
from training.unet import build_unet
from training.words import STYLES

PAPERS = (
    Noise("sigmoid", (("start", -3.0), ("end", 3.0), ("tau", 0.9)), 0.6, "closed"),
    Noise("cosine", (("start", 0.2), ("end", 1.0), ("tau", 1.0)), 0.6, "measured"),
    Noise("linear", (), 0.5),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "data"
    folder.mkdir()
    compose(drawn_icons(), 24, 0, folder)
    vae.encode(np.load(folder / "pictures.npy"), small_vae(), folder)
    return folder


# Noise


@pytest.mark.parametrize("kind", (*PAPERS, COSINE), ids=lambda n: f"{n.gamma} b={n.input_scale} {n.normalize}")
def test_training_noise_is_the_forward_process_of_the_paper(kind: Noise) -> None:
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 50, 4, 8, 8))
    timestep = torch.from_numpy(rng.integers(0, 1000, 50))
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in kind.level(timestep))
    seen = kind.seen(alpha * torch.from_numpy(x0) + sigma * torch.from_numpy(eps), timestep).numpy()
    gamma = kind.gammas[timestep].reshape(-1, 1, 1, 1)
    wanted = forward_process(x0, eps, gamma, kind.input_scale, normalize=kind.normalize == "closed")
    if kind.normalize == "measured":
        wanted = wanted / wanted.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(seen, wanted, atol=2e-6)


@pytest.mark.parametrize("kind", PAPERS, ids=lambda n: f"{n.gamma} b={n.input_scale} {n.normalize}")
def test_the_engine_reads_back_what_training_meant(kind: Noise, tmp_path: Path) -> None:
    """Its network is given the same x, at the same levels, as in training: the checkpoint says all of it."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    encoder = text.build_text_encoder(tokenizer, width=32, layers=1, heads=2)
    unet = build_unet((16, 32), context=32, groups=8, heads=2)
    celadon = card("toy", "Toy", "Random weights.", {"matrix": [[0.0] * 3] * 4, "bias": [0.5] * 3})
    write_checkpoint(tmp_path, unet, encoder, tokenizer, small_vae(), celadon, noise=kind)
    ladder = load_checkpoint(tmp_path, device=torch.device("cpu"), dtype=torch.float32).ladder
    alpha, sigma = (v.double().numpy() for v in kind.level(torch.arange(1000)))
    np.testing.assert_allclose(np.sqrt(ladder.alphas_cumprod), alpha, atol=1e-6)
    np.testing.assert_allclose(np.sqrt(1 - ladder.alphas_cumprod), sigma, atol=5e-6)  # single precision of 1 - a
    assert ladder.zero_snr and ladder.alphas_cumprod[-1] == 0.0
    at = compile_table(ladder, "euler", "trailing", 10)
    for i, t in enumerate(at.timestep):
        given = preconditioning(ladder, type("At", (), {"alpha": at.alpha[i], "sigma": at.sigma[i]}))[0]
        ones = kind.seen(torch.ones(1, 4, 2, 2, dtype=torch.float64), torch.tensor([int(t)]))
        assert (given == MEASURED) if kind.normalize == "measured" else given == pytest.approx(float(ones[0, 0, 0, 0]), rel=1e-5)


@pytest.mark.parametrize(("flags", "said"), [
    (["--gamma", "linear", "--gamma-shape", "tau=1"], "tau"),
    (["--gamma", "sigmoid", "--gamma-shape", "tau=fast"], "fast"),
    (["--input-scale", "0"], "above 0"),
])  # fmt: skip
def test_noise_options_that_mean_nothing_are_refused(flags: list[str], said: str) -> None:
    parser = ArgumentParser()
    noise.add_arguments(parser)
    with pytest.raises(SystemExit, match=said):
        noise.noise_of(parser.parse_args(flags))


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = ArgumentParser()
    machine.add_arguments(parser)
    with pytest.raises(SystemExit, match="sees no GPU"):
        machine.machine_of(parser.parse_args(["--device", "cuda"]))


def test_every_stage_compiles_what_it_runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(torch, "compile", lambda part: compiled.append(type(part).__name__) or part)
    fast = machine.Machine(compiled=True)
    pictures, scenes = np.load(data / "pictures.npy"), np.load(data / "scenes.npy")
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    vae.encode(pictures, small_vae(), folder, machine=fast)
    vae.train(pictures, tmp_path, replace(vae.Settings(), total=0), vae=small_vae(), machine=fast)
    text.train(pictures, scenes, tmp_path, text.Settings(total=0), machine=fast)
    network = build_unet((16, 32), context=32, groups=8, heads=2)
    encoder = text.build_text_encoder(text.build_tokenizer(), width=32, layers=1, heads=2)
    lcm.Run(tmp_path, lcm.Settings(total=0), network, encoder, fast)
    unet.Run(tmp_path, unet.Settings(total=0), network, encoder, fast)
    assert compiled == ["Encoder", "Encoder", "Decoder", "CLIPTextModel", *["UNet2DConditionModel"] * 4]


# Files


def test_composed_pictures_are_compared_with_their_checksums(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(SystemExit, match=r"lacks checksums\.json"):
        verify(folder)
    shutil.copytree(data, folder)
    np.save(folder / "sprites.npy", drawn_icons())
    (folder / "checksums.json").write_text(json.dumps(checksums(folder)))
    verify(folder)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "r+")
    pictures[3, 0, 0] ^= 1
    pictures.flush()
    with pytest.raises(SystemExit, match=r"^pictures\.npy in .*compose again"):
        verify(folder)


def test_the_pack_is_exact_and_the_same_every_time(tmp_path: Path) -> None:
    sprites = drawn_icons()
    sprites[..., 2] += 3  # also where it is transparent
    pack(sprites, tmp_path / "pack.zip")
    assert np.array_equal(unpack(tmp_path / "pack.zip"), sprites)
    first = (tmp_path / "pack.zip").read_bytes()
    pack(sprites, tmp_path / "pack.zip")
    assert (tmp_path / "pack.zip").read_bytes() == first
    assert len(first) < sprites.nbytes / 8


def test_a_folder_passes_through_in_parts(tmp_path: Path) -> None:
    folder = write_toy(tmp_path / "toy")
    pieces = parts.split(folder, tmp_path / "out", size=50_000)
    assert len(pieces) > 2 and all(p.stat().st_size <= 50_000 for p in pieces)
    parts.join(tmp_path / "out", tmp_path / "back")
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names and all((folder / n).read_bytes() == (tmp_path / "back" / n).read_bytes() for n in names)
    pieces[1].write_bytes(b"?" + pieces[1].read_bytes()[1:])
    with pytest.raises(ValueError, match="part-01 is not what was sent"):
        parts.join(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(FileNotFoundError):
        parts.split(tmp_path / "nothing", tmp_path / "out")


# Words


def test_new_words_join_an_old_text_encoder(tmp_path: Path) -> None:
    """Known words keep their meaning exactly; those that are new begin in the middle of all others."""
    torch.manual_seed(1)
    today = text.build_tokenizer()
    words = [merge for merge in text.read_merges(today.backend_tokenizer.to_str()) if "sketch" not in "".join(merge)]
    old = text.tokenizer_from_merges(words, sorted(text.pre_tokenizers.ByteLevel.alphabet()))
    encoder = text.build_text_encoder(old, width=32, layers=1, heads=2)
    text.save_tokenizer(old, tmp_path / "tokenizer")
    encoder.save_pretrained(tmp_path / "text_encoder")
    grown = text.inherit(tmp_path, today)
    prompts = ["a red apple", "two cats on a blue background", ""]
    with torch.no_grad():
        before = CLIPTextModel.from_pretrained(tmp_path / "text_encoder").eval()(text.tokenize(old, prompts)).last_hidden_state
        after = grown.eval()(text.tokenize(today, prompts)).last_hidden_state
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    vectors = grown.get_input_embeddings().weight
    mean = encoder.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(vectors[today.get_vocab()["sketch</w>"]], mean, atol=1e-6, rtol=0)
    assert len(today) > len(old)


def test_a_tokenizer_says_nothing_of_where_it_was(tmp_path: Path) -> None:
    text.save_tokenizer(text.build_tokenizer(), tmp_path / "first")
    text.save_tokenizer(CLIPTokenizer.from_pretrained(tmp_path / "first"), tmp_path / "second")
    for name in ("tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_pencil_leaves_lines_and_no_colour() -> None:
    picture = Image.new("RGBA", (256, 256))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((28, 28, 228, 228), fill=(230, 200, 40, 255))
    draw.ellipse((96, 96, 130, 130), fill=(60, 20, 20, 255))
    drawn = np.asarray(pencil_drawing(picture)).astype(int)
    assert np.array_equal(drawn[..., 3], np.asarray(picture)[..., 3])
    assert (drawn[..., 0] == drawn[..., 1]).all() and (drawn[..., 1] == drawn[..., 2]).all()
    middle, edge, eye = drawn[180, 128, 0], drawn[128, 28:36, 0].min(), drawn[113, 92:102, 0].min()
    assert middle > 200 and edge < middle - 50 and eye < middle - 80
    assert STYLES[2] == "pencil" and {"pencil", "sketch"} <= set(vocabulary())


# Distillation


def run_lcm(where: Path, folder: Path) -> lcm.Run:
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    encoder = text.build_text_encoder(tokenizer, width=32, layers=1, heads=2)
    run = lcm.Run(folder, lcm.Settings(total=16, batch=4), build_unet((16, 32), context=32, groups=8, heads=2), encoder)
    lcm.train(run, tokenizer, where)
    return run


def test_distillation_resumes_as_the_same_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_lcm(data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        run_lcm(data, tmp_path / "parts")
    again = run_lcm(data, tmp_path / "parts")
    assert whole.images == again.images == 16
    assert all(torch.equal(a, b) for a, b in zip(whole.average.shadow, again.average.shadow, strict=True))
    teacher = dict(whole.teacher.named_parameters())
    assert not all(torch.equal(p, teacher[n]) for n, p in whole.student.named_parameters())


def test_a_consistency_model_is_its_input_at_the_end_and_diffusers_agrees() -> None:
    """c_skip and c_out are those that LCMScheduler will use to draw with the student."""
    reference = LCMScheduler()
    for t in (0, 1, 20, 999):
        ours = [float(v) for v in lcm.boundary(torch.tensor([t]))]
        assert ours == pytest.approx([float(v) for v in reference.get_scalings_for_boundary_condition_discrete(t)], rel=1e-6)
    assert [float(v) for v in lcm.boundary(torch.tensor([0]))] == [1.0, 0.0]


def test_distilling_makes_the_student_agree_with_itself(data: Path, tmp_path: Path) -> None:
    """The loss that is trained falls on pictures it trains on."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    encoder = text.build_text_encoder(tokenizer, width=32, layers=1, heads=2)
    settings = lcm.Settings(total=400, batch=8, peak=2e-3, decay=0.9)
    run = lcm.Run(tmp_path, settings, build_unet((16, 32), context=32, groups=8, heads=2), encoder)
    x0 = torch.from_numpy(np.load(data / "latents.npy")[:8].astype(np.float32))
    eps, now = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), torch.linspace(40, 999, 8).long()
    context = torch.zeros(8, 32, 32)

    def disagreement() -> float:
        with torch.no_grad():
            return float(run.loss(x0, eps, now, context, context[:1]))

    before = disagreement()
    lcm.train(run, tokenizer, data)
    assert disagreement() < 0.8 * before


def test_few_step_weights_draw_in_plain_diffusers(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(write_toy(tmp_path), safety_checker=None)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red apple", num_inference_steps=4, guidance_scale=1.0, output_type="np").images[0]
    assert np.isfinite(picture).all() and json.loads((tmp_path / "celadon.json").read_text())["id"] == "toy"
