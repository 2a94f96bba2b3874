"""A few steps of every training stage on icons drawn in code, what captions must be, and the shipped model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from training import text, unet, vae
from training.captions import article, caption, plural, shown_words, vocabulary
from training.checkpoint import Clock, learning_rate
from training.compositor import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    SPRITE,
    Compositor,
    Scene,
    allowed,
    held_out,
    main_hue,
    recolour,
    to_hsv,
)
from training.data import compose, load_scenes
from training.export import fold_statistics, latent_rgb
from training.judge import background_of, colour_of
from training.noise import COSINE
from training.norm import FastGroupNorm
from training.sources import attribution
from training.toy import write_toy
from training.words import BACKGROUNDS, STYLES, THINGS

MODEL = Path(__file__).parents[1] / "models" / "celadon-mini"


def drawn_icons() -> np.ndarray:
    """[styles, things, 128, 128, 4]: discs and squares whose hue tells the thing."""
    sprites = np.zeros((len(STYLES), len(THINGS), SPRITE, SPRITE, 4), np.uint8)
    for thing in range(len(THINGS)):
        for style in range(len(STYLES)):
            image = Image.new("RGBA", (SPRITE, SPRITE))
            shape = ImageDraw.Draw(image).ellipse if style else ImageDraw.Draw(image).rectangle
            rgb = Image.new("HSV", (1, 1), (thing * 37 % 256, 200, 220)).convert("RGB").getpixel((0, 0))
            shape((8, 8 + thing % 40, 120, 120), fill=(*rgb, 255))
            sprites[style, thing] = np.asarray(image)
    return sprites


@pytest.fixture(scope="module")
def sprites() -> np.ndarray:
    return drawn_icons()


@pytest.fixture(scope="module")
def data(sprites: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "data"
    folder.mkdir()
    compose(sprites, 24, 0, folder)
    return folder


def small_vae() -> vae.AutoencoderKL:
    torch.manual_seed(0)
    return vae.build_vae((4, 8, 8, 16), groups=4)


def stop_after(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    monkeypatch.setattr(Clock, "out_of_time", property(lambda clock: clock.images >= images))


# Words and captions


def test_the_vocabulary_is_a_table_of_distinct_drawable_things():
    assert len(THINGS) >= 200
    assert len({t.code for t in THINGS}) == len(THINGS)
    names = [n for t in THINGS for n in t.names]
    assert len(names) == len(set(names))
    assert not {word for n in names for word in n.split()} & {*BACKGROUND_NAMES, *COLOUR_NAMES}


def test_articles_and_plurals():
    assert [article(w) for w in ("apple", "unicorn", "hourglass", "orange car", "ufo", "red apple")] == ["an", "a", "an", "an", "a", "a"]
    nouns = ("octopus", "cherry", "wolf", "fox", "mouse", "fish", "tomato", "day", "snowman", "slice of pizza")
    plurals = ["octopuses", "cherries", "wolves", "foxes", "mice", "fish", "tomatoes", "days", "snowmen", "slices of pizza"]
    assert [plural(n) for n in nouns] == plurals


def test_captions_say_what_the_scene_shows(sprites: np.ndarray):
    compositor, words = Compositor(sprites), set(vocabulary())
    for i in range(2000):
        rng = np.random.default_rng((1, i))
        scene = compositor.random_scene(rng)
        line = caption(scene, rng)
        assert not re.search(r"\b(an?|some|two|2) (an?|some|two|2)\b|\ba [aeio]|\{|  ", line), line
        assert set(line.replace(",", " ").split()) <= words, line
        thing = THINGS[scene.thing]
        if scene.count == 1 and thing.countable:
            assert not re.search(r"(icon|render|cartoon|drawing|sketch|picture|image) of (?!an? )", line), line
        assert any((n if scene.count == 1 else plural(n)) in line for n in thing.names), line
        assert scene.colour < 0 or f"{COLOUR_NAMES[scene.colour]} " in line, line
        if scene.background >= 0:
            name = BACKGROUND_NAMES[scene.background]
            assert re.search(name.replace("gray", "gr[ae]y"), line), line
        assert (scene.style == 1) == bool(re.search("flat|cartoon", line)), line
        assert (scene.style == 2) == bool(re.search("pencil drawing|sketch|^a drawing", line)), line


def test_every_word_is_few_tokens():
    tokenizer = text.build_tokenizer()
    assert all(len(tokenizer.tokenize(w)) <= 3 for w in vocabulary())
    assert tokenizer.get_vocab() == text.build_tokenizer().get_vocab()
    ids = text.tokenize(tokenizer, ["a red apple", "a zyzzyva " * 20])
    assert ids.shape == (2, text.CONTEXT)


# Pictures


def test_held_out_pairs_are_never_drawn(data: Path):
    scenes = load_scenes(data)
    assert scenes and all(allowed(s) for s in scenes)
    pairs = [(c, t.name) for c in COLOUR_NAMES for t in THINGS]
    share = sum(held_out("colour", *p) for p in pairs) / len(pairs)
    assert 0.05 < share < 0.15
    assert not any(held_out("style", STYLES[0], t.name) for t in THINGS)


def test_recolouring_moves_the_main_hue_and_keeps_the_outline(sprites: np.ndarray):
    sprite = sprites[0, 3]
    blue = recolour(sprite, "blue", main_hue(sprite)[0])
    assert np.array_equal(blue[..., 3], sprite[..., 3])
    hue = to_hsv(blue[..., :3])[..., 0][blue[..., 3] > 0]
    assert 195 < np.median(hue) < 235


def half_and_half(left: tuple[int, int, int], right: tuple[int, int, int], share: float) -> np.ndarray:
    """An RGBA sprite whose left `share` has one colour, the rest another."""
    sprite = np.full((SPRITE, SPRITE, 4), (*right, 255), np.uint8)
    sprite[:, : round(share * SPRITE), :3] = left
    return sprite


def test_what_has_two_colours_is_recoloured_all_over():
    """A blue frog is no green frog with a blue belly; a car keeps its windows."""
    green, orange, blue = (62, 166, 78), (244, 138, 36), COLOUR_NAMES.index("blue")
    frog, car = half_and_half(green, orange, 0.45), half_and_half(green, orange, 0.3)
    assert (main_hue(frog)[2], main_hue(car)[2]) == (True, False)
    compositor = Compositor(np.stack([frog, car])[None])
    drawn = [compositor.draw(Scene(0, thing, blue), np.random.default_rng(0)) for thing in (0, 1)]
    assert [colour_of(picture) for picture in drawn] == ["blue", "blue"]
    hues = [to_hsv(picture)[..., 0][picture.min(-1) < 200] for picture in drawn]
    assert [bool((np.abs(h - 120) < 40).any()) for h in hues] == [False, True]


def test_the_colour_rule_goes_by_area():
    picture = np.full((128, 128, 3), 255, np.uint8)
    picture[20:100, 20:100] = (110, 190, 120)  # pale green, most of it
    picture[80:100, 20:100] = (20, 60, 255)
    assert colour_of(picture) == "green"
    picture[60:100, 20:100] = (20, 60, 255)
    assert colour_of(picture) == "mixed"
    assert colour_of(np.full((128, 128, 3), 255, np.uint8)) == "none"


def test_a_share_of_a_batch_may_be_coloured_things(data: Path):
    scenes = np.load(data / "scenes.npy")
    scenes[:, 2] = -1
    scenes[[3, 7], 2] = 4
    plain, some = unet.Settings(batch=16), unet.Settings(batch=16, coloured=0.25)
    rows, again = (unet.draw_rows(scenes, settings, np.random.default_rng(0)) for settings in (plain, some))
    assert set(again[:4]) <= {3, 7} and np.array_equal(rows[4:], again[4:])


def test_pictures_of_another_recolouring_are_other_pictures(sprites: np.ndarray):
    compositor, other = (Compositor(sprites[:, :2]) for _ in range(2))
    assert compositor.identity == other.identity
    other.whole = ~other.whole
    assert compositor.identity != other.identity


def test_pictures_have_the_named_background_and_colour(sprites: np.ndarray):
    compositor = Compositor(sprites)
    picture = compositor.draw(Scene(0, 5, COLOUR_NAMES.index("green"), BACKGROUND_NAMES.index("pink")), np.random.default_rng(0))
    assert tuple(picture[0, 0]) == BACKGROUNDS["pink"]
    assert (background_of(picture), colour_of(picture)) == ("pink", "green")
    again = compositor.draw(Scene(0, 5, COLOUR_NAMES.index("green"), BACKGROUND_NAMES.index("pink")), np.random.default_rng(0))
    assert np.array_equal(picture, again)


# Parts


def test_fast_group_norm_equals_torch():
    x = torch.randn(3, 16, 8, 8, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    target = torch.randn_like(x)
    expected = torch.autograd.grad((torch.nn.functional.group_norm(x, 4, weight, bias) * target).sum(), (x, weight, bias))
    found = torch.autograd.grad((FastGroupNorm.apply(x, weight, bias, 4, 1e-5) * target).sum(), (x, weight, bias))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_ladder_ends_in_pure_noise():
    betas = COSINE.betas()
    assert betas[-1] == 1.0 and len(betas) == 1000
    alpha, sigma = COSINE.level(torch.arange(1000))
    assert float(alpha[-1]) == 0.0 and float(sigma[-1]) == 1.0
    bar = torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)
    torch.testing.assert_close(alpha.double().square(), bar, atol=1e-6, rtol=0)


def test_learning_rate_is_a_function_of_the_fraction_done():
    rates = [learning_rate(d, 1.0) for d in (0, 0.01, 0.02, 0.3, 0.7, 1.0, 1.2)]
    assert rates[0] < rates[1] < rates[2] == rates[3] == 1.0 > rates[4] > rates[5] == rates[6]


def test_folding_the_statistics_is_exact():
    model = small_vae()
    x = torch.randn(2, 3, 32, 32)
    mean, std = np.array([1.0, -2, 0.5, 3], np.float32), np.array([2.0, 0.5, 4, 1], np.float32)
    with torch.no_grad():
        before = model.encode(x).latent_dist
        picture = model.decode(before.mean).sample
        fold_statistics(model, mean, std)
        after = model.encode(x).latent_dist
        m, s = (torch.from_numpy(v).view(1, 4, 1, 1) for v in (mean, std))
        torch.testing.assert_close(after.mean, (before.mean - m) / s, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(after.std, before.std / s, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.decode(after.mean).sample, picture, atol=1e-4, rtol=1e-4)


def test_the_preview_map_is_least_squares():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(8, 4, 16, 16)).astype(np.float32)
    matrix = rng.normal(size=(4, 3)) * 8
    rgb = np.einsum("nchw,cd->nhwd", latents, matrix) + 128
    pictures = rgb.clip(0, 255).round().astype(np.uint8).repeat(8, 1).repeat(8, 2)
    found = latent_rgb(latents, pictures)
    np.testing.assert_allclose(found["matrix"], matrix / 255, atol=0.01)
    np.testing.assert_allclose(found["bias"], 128 / 255, atol=0.01)


# Stages


def run_vae(data: Path, folder: Path) -> list[torch.Tensor]:
    pictures = np.load(data / "pictures.npy")
    settings = vae.Settings(total=12, batch=2, crops_until=0.5)
    return [p.detach().clone() for p in vae.train(pictures, folder, settings, vae=small_vae()).parameters()]


def test_vae_resumes_as_the_same_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run_vae(data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 6)
        run_vae(data, tmp_path / "parts")
    assert all(torch.equal(a, b) for a, b in zip(whole, run_vae(data, tmp_path / "parts"), strict=True))
    assert list((tmp_path / "whole" / "grids").glob("vae-*.png"))


def test_refining_the_decoder_leaves_the_encoder(data: Path):
    pictures, model = np.load(data / "pictures.npy"), small_vae()
    vae.encode(pictures, model, data)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = vae.refine(pictures, data, vae.Settings(total=4, batch=2), model).state_dict()
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder", "post_quant_conv"}
    shipped = vae.averaged(data.parent, small_vae()).state_dict()
    assert all(torch.equal(after[k], shipped[k]) for k in after)


def run_text(data: Path, folder: Path, contrastive: float, save_every: int = 16_000) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    settings = text.Settings(total=24, batch=4, contrastive=contrastive, save_every=save_every)
    pictures, scenes = np.load(data / "pictures.npy"), np.load(data / "scenes.npy")
    return text.train(pictures, scenes, folder, settings, width=32, layers=1, heads=2).state_dict()


@pytest.mark.parametrize("contrastive", [0.0, 1.0])
def test_text_resumes_as_the_same_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contrastive: float):
    whole = run_text(data, tmp_path / "whole", contrastive)
    with monkeypatch.context() as patch:
        stop_after(patch, 12)
        run_text(data, tmp_path / "parts", contrastive)
    parts = run_text(data, tmp_path / "parts", contrastive)
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_the_contrastive_loss_asks_for_ones_own_picture():
    """Against a loop over every caption and picture; the third scene equals the first, so neither is a wrong answer of the other."""
    torch.manual_seed(0)
    heads, state, thumbnails = text.Heads(8, 12, contrastive=1.0), torch.randn(4, 8), torch.randn(4, 12)
    scenes = torch.tensor([[0, 1, 2, 3, 1], [0, 5, -1, 3, 1], [0, 1, 2, 3, 1], [1, 1, 2, 3, 2]])
    with torch.no_grad():
        seen, scale = heads.picture(thumbnails).double().numpy(), float(heads.scale.exp())
        found = float(heads.contrast(state, scenes, thumbnails))
        more = float(heads.loss(state, scenes, thumbnails))
        heads.contrastive = 0.0
        less = float(heads.loss(state, scenes, thumbnails))
    said, total = state.double().numpy(), 0.0
    rivals = {0: (0, 1, 3), 1: (0, 1, 2, 3), 2: (1, 2, 3), 3: (0, 1, 2, 3)}
    for here, there in ((said, seen), (seen, said)):
        for i, others in rivals.items():
            cosines = {j: here[i] @ there[j] / np.linalg.norm(here[i]) / np.linalg.norm(there[j]) for j in others}
            total -= scale * cosines[i] - np.log(sum(np.exp(scale * c) for c in cosines.values()))
    assert found == pytest.approx(total / 8, rel=1e-4)
    assert more - less == pytest.approx(found, rel=1e-4)


def run_unet(data: Path, folder: Path, model: vae.AutoencoderKL) -> unet.Run:
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    encoder = text.build_text_encoder(tokenizer, width=32, layers=1, heads=2)
    run = unet.Run(folder, unet.Settings(total=16, batch=4), unet.build_unet((16, 32), context=32, groups=8, heads=2), encoder)
    unet.train(run, tokenizer, model, data)
    return run


def test_unet_resumes_as_the_same_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = small_vae()
    vae.encode(np.load(data / "pictures.npy"), model, data)
    latents = np.load(data / "latents.npy").astype(np.float32)
    np.testing.assert_allclose(latents.std((0, 2, 3)), 1, atol=0.01)
    whole = run_unet(data, tmp_path / "whole", model)
    with monkeypatch.context() as patch:
        stop_after(patch, 8)
        run_unet(data, tmp_path / "parts", model)
    parts = run_unet(data, tmp_path / "parts", model)
    assert whole.images == parts.images == 16
    assert all(torch.equal(a, b) for a, b in zip(whole.average.params, parts.average.params, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole.average.shadow, parts.average.shadow, strict=True))
    assert (tmp_path / "whole" / "grids" / "unet-0000016.png").exists()


# Checkpoints


def draw(folder: Path, prompt: str, sampler: str = "DPMSolverMultistepScheduler", steps: int = 12, seed: int = 0) -> np.ndarray:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.scheduler = getattr(diffusers, sampler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": steps, "guidance_scale": 3.0, "guidance_rescale": 0.7, "output_type": "np"}
    return pipe(prompt, generator=generator, **options).images[0]


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_the_toy_loads_in_diffusers_and_draws(tmp_path: Path, prediction: str):
    write_toy(tmp_path, prediction)
    for sampler in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        picture = draw(tmp_path, "a red apple", sampler, steps=4)
        assert picture.shape == (128, 128, 3) and np.isfinite(picture).all() and picture.std() > 0.02


def test_the_toy_is_the_same_every_time(tmp_path: Path):
    first, second = write_toy(tmp_path / "a"), write_toy(tmp_path / "b")
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def test_the_shipped_model_fits_and_describes_itself():
    files = [p for p in MODEL.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 60e6 and max(p.stat().st_size for p in files) <= 45e6
    weights = [load_file(p) for p in files if p.suffix == ".safetensors" and p.parent.name != "superres"]  # that is no part of the pipeline
    assert len(weights) == 3 and {t.dtype for part in weights for t in part.values()} == {torch.float16}
    celadon = json.loads((MODEL / "celadon.json").read_text())
    assert celadon["words"] == shown_words() and "photo" not in celadon["words"] and celadon["width"] == 128
    assert np.shape(celadon["latent_rgb"]["matrix"]) == (4, 3)
    assert (MODEL / "ATTRIBUTION.md").read_text(encoding="utf-8") == attribution()
    assert json.loads((MODEL / "scheduler" / "scheduler_config.json").read_text())["trained_betas"][-1] == 1.0


@pytest.mark.parametrize("sampler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_shipped_model_draws_a_red_apple(sampler: str):
    picture = draw(MODEL, "a red apple", sampler)
    middle = picture[40:100, 40:88].mean((0, 1))
    assert middle[0] > 1.5 * middle[2], middle
    assert background_of((picture * 255).round().astype(np.uint8)) == "white"


def test_the_shipped_model_obeys_background_and_colour():
    picture = (draw(MODEL, "a yellow star on a blue background") * 255).round().astype(np.uint8)
    assert (background_of(picture), colour_of(picture)) == ("blue", "yellow")
