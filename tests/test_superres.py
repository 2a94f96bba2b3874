"""Super-resolution: its degradation, measures, schedules and sampler against slow twins and closed forms; its training resumed exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from pipelines.superres import SCHEDULES, area, bicubic, denoised, draw, times
from pipelines.tiny_unet import Shape
from tests.test_training import drawn_icons
from training.checkpoint import Clock
from training.compositor import Compositor, allowed
from training.superres import cifar, sets, train
from training.superres.measures import lpips, ssim
from training.superres.report import report
from training.superres.restore import TURNS, restored, turned, turned_back
from training.superres.sets import Pictures
from training.superres.variants import VARIANTS

TINY = Shape(width=4, deep=4, blocks=(1, 1, 0))
SETTINGS = train.Settings(total=48, batch=8, save_every=16)


def noisy_pictures(count: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth ones, with some noise."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(count, side, side, 3)), (0, 2, 2, 0)) * 400 + 128
    return (smooth + rng.normal(size=smooth.shape) * 4).clip(0, 255).astype(np.uint8)


# What is fixed


def test_small_pictures_are_means_of_four_pixels_rounded_half_up():
    pixels = np.array([[0, 1, 255, 255], [0, 1, 255, 254], [3, 3, 9, 9], [3, 4, 9, 12]], np.uint8)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(area(pixels)[..., 0], [[1, 255], [3, 10]])  # of 0.5, 254.75, 3.25, 9.75
    assert area(noisy_pictures(5)).shape == (5, 16, 16, 3)


def test_bicubic_is_torchs():
    low = np.random.default_rng(0).random((2, 3, 8, 12)).astype(np.float32)
    wanted = F.interpolate(torch.from_numpy(low), scale_factor=2, mode="bicubic", align_corners=False)
    np.testing.assert_allclose(bicubic(low), wanted.numpy(), atol=1e-6)
    np.testing.assert_allclose(train.bicubic(torch.from_numpy(low)).numpy(), bicubic(low), atol=1e-6)


def test_eight_ways_to_turn_a_picture_are_all_turned_back():
    pictures = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    ways = [turned(pictures, turn) for turn in TURNS]
    assert len({tuple(way.flatten().tolist()) for way in ways}) == 8
    for way, turn in zip(ways, TURNS, strict=True):
        assert torch.equal(turned_back(way, turn), pictures)


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Window by window, of one channel [h, w] in 0..255."""
    window = np.zeros((11, 11))
    window[5, 5] = 1
    window = ndimage.gaussian_filter(window, 1.5, truncate=3.5, mode="constant")
    window /= window.sum()
    found = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = (i[y : y + 11, x : x + 11].astype(np.float64) for i in (a, b))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq, pq = ((window * u).sum() for u in ((p - mp) ** 2, (q - mq) ** 2, (p - mp) * (q - mq)))
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            found.append((2 * mp * mq + c1) * (2 * pq + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(found))


def test_ssim_is_that_of_its_paper_window_by_window():
    a, b = noisy_pictures(2), noisy_pictures(2, seed=1)
    b[0] = (0.8 * a[0] + 0.2 * b[0]).astype(np.uint8)
    wanted = [np.mean([slow_ssim(a[i, ..., c], b[i, ..., c]) for c in range(3)]) for i in range(2)]
    np.testing.assert_allclose(ssim(a, b), wanted, atol=1e-4)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-6)


def test_small_pictures_are_doubled_for_lpips():
    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        assert a.shape[2:] == (64, 64) and float(a.abs().max()) <= 1
        return (a - b).abs().mean((1, 2, 3))

    a, b = noisy_pictures(3), noisy_pictures(3, seed=1)
    np.testing.assert_allclose(lpips(distance, a, b), np.abs(a / 127.5 - b / 127.5).mean((1, 2, 3)), rtol=1e-5)


# Schedules and sampler


def test_schedules_begin_in_noise_and_end_in_the_picture():
    for name, ends in {"cosine": 1e-9, "linear": 0.01, "shift": 0.0011}.items():
        alpha, sigma = SCHEDULES[name](np.linspace(1, 0, 16))
        assert alpha[0] < ends and (np.diff(alpha / sigma.clip(1e-9)) >= 0).all(), name
        if name != "shift":
            np.testing.assert_allclose(alpha**2 + sigma**2, 1)
    alpha, sigma = SCHEDULES["shift"](times(15, 15)[:-1])
    np.testing.assert_allclose(sigma**2, 4 * (1 - alpha))  # noise by kappa squared times how far the residual has gone
    np.testing.assert_allclose(times(5, 15) * 15, [15, 12, 9, 6, 3, 0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "shift"])
@pytest.mark.parametrize("fresh", [False, True])
def test_any_number_of_steps_draws_what_a_perfect_network_knows(schedule: str, fresh: bool):
    """Residuals of a normal distribution of deviation 1 around 0: the best estimate is linear, and the network's target 0."""
    rng = np.random.default_rng(0)
    noise, low = rng.normal(size=(40, 12, 4, 4)), np.zeros((40, 3, 4, 4))
    if schedule != "shift":  # of 15 steps that are far apart
        drawn = draw(lambda x, _, __: 0 * x, low, noise, 200, schedule, 200, (lambda: rng.normal(size=noise.shape)) if fresh else None)
        assert abs(drawn.std() - 1) < 0.05
    truth = rng.normal(size=noise.shape)

    def knowing(x: np.ndarray, _: np.ndarray, time: float) -> np.ndarray:
        alpha, sigma = (float(v) for v in SCHEDULES[schedule](np.asarray(time)))
        size = np.hypot(alpha, sigma)
        return (truth - alpha / size**2 * (x * size)) * size / sigma

    for steps in (1, 3, 5):
        np.testing.assert_allclose(draw(knowing, low, noise, steps, schedule, 15), truth, atol=1e-9)


def test_the_loss_asks_for_what_the_sampler_reads():
    """A network that answers its target everywhere draws the residual; its loss is 0."""
    pictures = Pictures(noisy_pictures(8), 32, 0.05)
    run = train.Run(Path("nowhere"), "cifar10", "cosine", SETTINGS, 0.05)
    low, high = train.batch_of(pictures, 8, np.random.default_rng(0))
    target = run.model.residual(low, high)

    def knowing(x: torch.Tensor, _: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        alpha, sigma = train.columns(*SCHEDULES["cosine"](at.numpy()))
        return (target - alpha * x) / sigma

    run.model.raw = knowing
    assert float(train.diffusion_loss(run, low, high, np.random.default_rng(1))) < 1e-9
    level = (float(np.cos(0.3)), float(np.sin(0.3)))
    x = level[0] * target + level[1] * torch.randn_like(target)
    found = denoised(lambda x, low, t: (target - level[0] * x) / level[1], x, low, 0.2, level)
    torch.testing.assert_close(run.model.picture(low, found), high, atol=1e-5, rtol=0)


# Networks and training


def test_every_variant_has_at_most_150_000_parameters():
    for name, variant in VARIANTS.items():
        assert sum(p.numel() for p in train.Restorer(variant, 0.05).parameters()) <= 150_000, name


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Pictures:
    """Every variant with a tiny network."""
    for name, variant in VARIANTS.items():
        base = replace(TINY, state=0, deep=0) if variant.base else None
        monkeypatch.setitem(VARIANTS, name, replace(variant, shape=TINY, base=base, share=1.0))
    return Pictures(noisy_pictures(40), 32, 0.05)


def trained_state(folder: Path, name: str, small: Pictures, settings: train.Settings = SETTINGS) -> dict[str, torch.Tensor]:
    run = train.start(folder, "cifar10", name, settings, small)
    train.train(run, small)
    return {**run.model.state_dict(), "average": torch.cat([p.flatten() for p in run.average.shadow])}


@pytest.mark.parametrize("name", ["cosine", "resshift", "resdiff", "sinsr", "regression"])
def test_a_run_that_was_stopped_ends_as_the_unbroken_one(name: str, small: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for folder in ("whole", "broken"):
        if VARIANTS[name].teacher:
            trained_state(tmp_path / folder, VARIANTS[name].teacher, small)
    whole = trained_state(tmp_path / "whole", name, small)
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "out_of_time", property(lambda clock: clock.images >= 24))
        trained_state(tmp_path / "broken", name, small)
    if name == "cosine":
        with pytest.raises(SystemExit, match="24 of 48"):
            train.trained(tmp_path / "broken", "cifar10", name)
        with pytest.raises(SystemExit, match="seed"):
            trained_state(tmp_path / "broken", name, small, replace(SETTINGS, seed=1))
    again = trained_state(tmp_path / "broken", name, small)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    start = train.Restorer(VARIANTS[name], 0.05).state_dict()
    assert not torch.equal(whole["network.leave.weight"], start["network.leave.weight"])
    low = area(small.all[:3])
    single, mean = restored(train.trained(tmp_path / "whole", "cifar10", name)[0], low, 1)
    assert single.shape == mean.shape == (3, 32, 32, 3)
    assert np.array_equal(single, restored(train.trained(tmp_path / "broken", "cifar10", name)[0], low, 1, TURNS[:1])[0])


def test_a_few_steps_of_training_bring_more_than_bicubic(tmp_path: Path):
    """Of pictures whose fine detail follows from the coarse: stripes along their gradients."""
    pictures = Pictures(np.tile(np.kron(np.eye(4, dtype=np.uint8), np.full((8, 8), 200, np.uint8))[..., None], (64, 1, 1, 3)), 32, 0.1)
    run = train.start(tmp_path, "cifar10", "regression", replace(SETTINGS, total=640), pictures)
    train.train(run, pictures)
    model = train.trained(tmp_path, "cifar10", "regression")[0]
    true = pictures.all[:4]
    low = area(true)
    plain = np.round(bicubic(low.transpose(0, 3, 1, 2).astype(np.float32)).clip(0, 255)).transpose(0, 2, 3, 1)
    error = np.square(restored(model, low, 1, TURNS[:1])[0].astype(float) - true).mean()
    assert error < 0.7 * np.square(plain - true).mean()


# Pictures


def test_mosaics_are_unfolded_one_picture_a_row():
    pictures = noisy_pictures(4)
    np.testing.assert_array_equal(cifar.unfolded(pictures.reshape(4, 1024, 3)), pictures)


def test_another_package_is_refused(tmp_path: Path):
    (tmp_path / cifar.FILE).write_bytes(b"no tarball")
    with pytest.raises(SystemExit, match="checksum"):
        cifar.pictures(tmp_path, "test")


def test_patches_of_renders_lie_at_even_places_so_that_their_small_pictures_are_the_renders_own():
    pictures = Pictures(noisy_pictures(3, 96), 32, 0.05)
    drawn = pictures.draw(20, np.random.default_rng(0))
    small = area(pictures.all)
    for patch in area(drawn):
        places = ((i, y, x) for i in range(3) for y in range(33) for x in range(33))
        assert any(np.array_equal(small[i, y : y + 16, x : x + 16], patch) for i, y, x in places)


def test_held_out_renders_show_pairs_that_are_never_trained():
    large = Compositor(np.ascontiguousarray(drawn_icons().repeat(2, 2).repeat(2, 3)))
    for i in range(30):
        rng = np.random.default_rng((1, i))
        scene = sets.held_out_scene(large, rng)
        assert not allowed(scene)
    assert large.draw(scene, rng).shape == (256, 256, 3)
    assert sets.composed(large, "test", 2).shape == (2, 256, 256, 3)


def test_a_scene_in_twice_the_size_is_the_scene():
    icons = drawn_icons()
    small, large = Compositor(icons), Compositor(np.ascontiguousarray(icons.repeat(2, 2).repeat(2, 3)))
    scene = small.random_scene(np.random.default_rng(5))
    one, two = (c.draw(scene, np.random.default_rng(6)).astype(int) for c in (small, large))
    halved = np.asarray(Image.fromarray(two.astype(np.uint8)).resize((128, 128), Image.Resampling.BOX)).astype(int)
    assert np.abs(one - halved).mean() < 2


def test_the_report_has_a_line_for_every_row_and_says_what_was_left_out():
    judged = {"psnr": 28.0, "ssim": 0.9, "lpips": 0.1}
    figures = {"bicubic-0": {"single": judged}} | {
        f"{name}-{steps}": {"single": judged, "images": 10, "cpu_min": 1.0, "parameters": 5} | ({"mean": judged} if steps == 5 else {})
        for name, variant in VARIANTS.items() for steps in variant.steps
    }  # fmt: skip
    text = report(figures, {"cosine-50": 10.0} | {key: 1.0 for key in figures}, 10_000, "today")
    assert all(text.count(f"| {variant.about} |") == len(variant.steps) for variant in VARIANTS.values())
    assert "| 15 | 1.00 | 1 | 0.100 | 28.00 |  | 0.9000 |  | 0.1000 |  |" in text
