"""Training in slices: each stage ends cleanly when its time is over, or dies, and the same command ends where an unbroken run does."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.test_training import drawn_icons, run_text, small_vae, stop_after
from training import evaluate, judge, text, unet, vae
from training.checkpoint import Clock
from training.compositor import Compositor
from training.data import compose
from training.export import trained
from training.noise import COSINE, Noise


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    return drawn_icons()


def composed(sprites: np.ndarray, folder: Path, seed: int = 0) -> list[bytes]:
    folder.mkdir(exist_ok=True)
    compose(sprites, 300, seed, folder)
    return [(folder / name).read_bytes() for name in ("pictures.npy", "scenes.npy")]


def test_pictures_are_composed_in_slices(sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = composed(sprites, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 256)
        assert composed(sprites, tmp_path / "parts") != whole
        assert json.loads((tmp_path / "parts" / "compose.json").read_text())["done"] == 256
    assert composed(sprites, tmp_path / "parts") == whole
    assert composed(sprites, tmp_path / "parts", seed=1) == composed(sprites, tmp_path / "other", seed=1)  # another set begins anew


def test_latents_are_written_in_slices(sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose(sprites, 48, 0, tmp_path)
    pictures, model = np.load(tmp_path / "pictures.npy"), small_vae()
    with monkeypatch.context() as patch:
        stop_after(patch, 16)
        assert not vae.encode(pictures, model, tmp_path).complete
        assert not (tmp_path / "latents.npy").exists()
    assert vae.encode(pictures, model, tmp_path).complete
    whole = tmp_path / "whole"
    whole.mkdir()
    compose(sprites, 48, 0, whole)
    vae.encode(pictures, model, whole)
    for name in ("latents.npy", "latent_stats.npy"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_unfinished_pictures_are_not_encoded(sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 256)
        compose(sprites, 300, 0, tmp_path)
    with pytest.raises(SystemExit, match="compose: 256 of 300; the same command goes on"):
        vae.encode(np.load(tmp_path / "pictures.npy"), small_vae(), tmp_path)
    with pytest.raises(SystemExit, match="missing"):
        vae.encode(np.load(tmp_path / "pictures.npy"), small_vae(), tmp_path / "elsewhere")


def test_latents_of_other_pictures_begin_anew(sprites: np.ndarray, tmp_path: Path) -> None:
    latents = []
    for seed in (0, 1):
        compose(sprites, 16, seed, tmp_path)
        vae.encode(np.load(tmp_path / "pictures.npy"), small_vae(), tmp_path)
        latents.append((tmp_path / "latents.npy").read_bytes())
    assert latents[0] != latents[1]


def test_a_refined_decoder_belongs_to_its_encoder(sprites: np.ndarray, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    compose(sprites, 16, 0, data)
    pictures, model = np.load(data / "pictures.npy"), small_vae()
    vae.encode(pictures, model, data)
    vae.refine(pictures, data, vae.Settings(total=4, batch=2), model)
    assert vae.averaged(tmp_path, small_vae())
    other = small_vae()
    with torch.no_grad():
        other.encoder.conv_in.weight[0] *= -1
    with pytest.raises(SystemExit, match="decoder of another autoencoder"):
        vae.averaged(tmp_path, other)


def test_weights_are_not_exported_with_other_noise(tmp_path: Path) -> None:
    tokenizer = text.build_tokenizer()
    text.save_tokenizer(tokenizer, tmp_path / "tokenizer")
    run = unet.Run(tmp_path, unet.Settings(), unet.build_unet(), text.build_text_encoder(tokenizer), noise=Noise(input_scale=0.5))
    run.save()
    assert trained(tmp_path, Noise(input_scale=0.5))[3] == 0
    with pytest.raises(SystemExit, match=r"begun with input_scale 0\.5, not 1\.0"):
        trained(tmp_path, COSINE)


def test_latents_of_another_autoencoder_begin_anew(sprites: np.ndarray, tmp_path: Path) -> None:
    compose(sprites, 16, 0, tmp_path)
    pictures, model = np.load(tmp_path / "pictures.npy"), small_vae()
    vae.encode(pictures, model, tmp_path)
    before = (tmp_path / "latents.npy").read_bytes()
    with torch.no_grad():
        model.encoder.conv_in.weight[0] *= -1
    vae.encode(pictures, model, tmp_path)
    assert (tmp_path / "latents.npy").read_bytes() != before


def test_the_judge_resumes_as_the_same_run(sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compositor = Compositor(sprites)
    whole = judge.train_judge(compositor, tmp_path / "whole", total=32, batch=8).state_dict()
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="judge: 16 of 32; the same command"):
        stop_after(patch, 16)
        judge.train_judge(compositor, tmp_path / "parts", total=32, batch=8)
    assert not (tmp_path / "parts" / "judge.pt").exists()
    parts = judge.train_judge(compositor, tmp_path / "parts", total=32, batch=8).state_dict()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_text_stage_that_was_killed_goes_on_from_what_it_kept(
    sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose(sprites, 24, 0, tmp_path)
    whole = run_text(tmp_path, tmp_path / "whole", 0.0)

    def killed(clock: Clock, images: int, *_: object) -> None:
        if images == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Clock, "tick", killed)
        run_text(tmp_path, tmp_path / "parts", 0.0, save_every=8)
    assert torch.load(tmp_path / "parts" / "text.pt", weights_only=True)["images"] == 16
    parts = run_text(tmp_path, tmp_path / "parts", 0.0, save_every=8)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_run_does_not_go_on_with_other_settings(sprites: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compose(sprites, 24, 0, tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        run_text(tmp_path, tmp_path / "run", 0.0)
    with pytest.raises(SystemExit, match=r"text\.pt was begun with contrastive 0\.0, not 1\.0"):
        run_text(tmp_path, tmp_path / "run", 1.0)


def test_an_evaluation_draws_in_slices(tmp_path: Path) -> None:
    asked: list[str] = []

    def draw(prompts: list[str], seed: int, drawn: object) -> np.ndarray:
        asked.extend(prompts)
        return np.full((len(prompts), 1, 1, 3), seed, np.uint8)

    artist = SimpleNamespace(draw=draw, key="weights")

    def slice_of(deadline: float) -> np.ndarray:
        """A run of its own."""
        studio = evaluate.Studio(artist, tmp_path, evaluate.Bar("evaluate", 6), part=2, deadline=deadline)
        return studio.draw(["a", "b", "c", "d", "e", "f"], seed=0)

    over = time.monotonic() - 1
    for share in (33, 67):  # one part in each, though there is no time at all
        with pytest.raises(SystemExit, match=f"evaluate: {share}%; the same command goes on from there"):
            slice_of(over)
    assert slice_of(over)[:, 0, 0, 0].tolist() == [0, 0, 2, 2, 4, 4]
    assert asked == ["a", "b", "c", "d", "e", "f"]
    assert evaluate.Studio(artist, tmp_path, evaluate.Bar("evaluate", 6)).part <= 20
